"""Everything that is wrong with a configuration file, not only what is wrong first.

How this works. The reader stops at the first problem. It is remembered, what it complains of is taken out (an
unknown key takes the name it is nearest to), and the rest is read again, until it can be read or what is
complained of cannot be found. Lines are those on which tables and keys begin.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cotenant.config import ConfigError, Scenario, scenario_from_table

MOST = 200
"""Most problems that are looked for."""
_WHERE = re.compile(r"(the file|\[\[?[\w.-]+\]?\])(?: ('[^']*'|\d+))?(?: ([\w.-]+))?\Z")
_AT = re.compile(r"\(at line (\d+), column \d+\)")
_HEADER = re.compile(r"\s*\[\[?\s*([^\[\]#]+?)\s*\]\]?\s*(?:#.*)?\Z")
_KEY = re.compile(r"""\s*["']?([A-Za-z0-9_-]+)["']?\s*(?:\.[^=]*)?=""")


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something wrong with a file: where in it (table and key; empty: the file itself), and the line, if
    there is one."""

    file: str
    where: str
    message: str
    line: int | None = None

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{place}: {self.message}"


def read_all(path: Path) -> tuple[Scenario | None, list[Problem]]:
    """What can be read of a file, and every problem with the rest. Raises nothing."""
    try:
        text = path.read_text(encoding="utf-8")
        raw = tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        return None, [Problem(file=str(path), where="", message=f"cannot be read: {reason}")]
    except tomllib.TOMLDecodeError as error:
        at = _AT.search(str(error))
        line = int(at[1]) if at else None
        return None, [Problem(file=str(path), where="", message=f"not valid TOML: {error}", line=line)]
    problems: list[Problem] = []
    while len(problems) < MOST:
        try:
            return scenario_from_table(path, raw), problems
        except ConfigError as error:
            problems.append(problem_at(path, text, error.where, str(error)))
            if not _repair(raw, error):
                break
    return None, problems


def problem_at(path: Path, text: str, where: str, message: str) -> Problem:
    """A problem with a place of the file's text; the file's name is left out of the message."""
    return Problem(
        file=str(path),
        where=where,
        message=message.removeprefix(f"{path}: ").removeprefix(f"{path.resolve()}: "),
        line=line_of(text, where),
    )


@dataclass(frozen=True, slots=True)
class _Line:
    """A header (no key) or an assignment; `n`: which of the tables of that name it belongs to, from 1."""

    number: int
    table: str
    n: int
    key: str = ""
    value: str = ""


def _lines(text: str) -> Iterator[_Line]:
    table, counts = "the file", Counter[str]()
    for number, line in enumerate(text.splitlines(), 1):
        header, assigned = _HEADER.match(line), _KEY.match(line)
        if header is not None:
            table = header[1]
            counts[table] += 1
            yield _Line(number, table, counts[table])
        elif assigned is not None:
            value = line.partition("=")[2].partition("#")[0].strip().strip("\"'")
            yield _Line(number, table, counts[table], assigned[1], value)


def line_of(text: str, where: str) -> int | None:
    """The line (from 1) of the key, or else of its table, that `where` names."""
    match = _WHERE.match(where)
    if match is None:
        return None
    kind, name, key = match.groups()
    lines = [line for line in _lines(text) if line.table == kind.strip("[]")]
    if name is not None and name.isdigit():
        lines = [line for line in lines if line.n == int(name)]
    elif name is not None:
        named = [line.n for line in lines if line.key == "name" and line.value == name.strip("'")]
        lines = [line for line in lines if line.n in named]
    wanted = [line for line in lines if key is not None and line.key == key.partition(".")[0]]
    headers = [line for line in lines if not line.key]
    return (wanted or headers[-1:] or lines)[0].number if lines else None


# --- taking out what is wrong ------------------------------------------------------------------------------


def _repair(raw: dict[str, Any], error: ConfigError) -> bool:
    """Change the tables so that this error does not come again; False where that is not possible."""
    match = _WHERE.match(error.where)
    if match is None:
        return False
    kind, name, key = match.groups()
    if kind == "the file":
        return key is not None and raw.pop(key, None) is not None
    table = kind.strip("[]")
    if kind.startswith("[["):
        return _repair_entry(raw, table, name, key, error.meant)
    if table.startswith("phase.model."):
        return _repair_phase(raw, table.removeprefix("phase.model."), key)
    if key is None:
        return raw.pop(table, None) is not None
    return _without(raw.get(table), key, error.meant)


def _repair_entry(
    raw: dict[str, Any], table: str, name: str | None, key: str | None, meant: str | None
) -> bool:
    entries = raw.get(table)
    if not isinstance(entries, list) or name is None:
        return raw.pop(table, None) is not None
    index = int(name) - 1 if name.isdigit() else _index(entries, name.strip("'"), key)
    if not 0 <= index < len(entries):
        return False
    if key is not None and _without(entries[index], key, meant):
        return True
    del entries[index]
    return True


def _index(entries: list[Any], name: str, key: str | None) -> int:
    """The first of that name that has the key; else the last: of two alike the second is one too many."""
    found = [i for i, entry in enumerate(entries) if isinstance(entry, dict) and entry.get("name") == name]
    having = [i for i in found if key is not None and key.partition(".")[0] in entries[i]]
    return (having or found[-1:] or [-1])[0]


def _repair_phase(raw: dict[str, Any], name: str, key: str | None) -> bool:
    changed = False
    for phase in raw.get("phase", ()):
        models = phase.get("model", {}) if isinstance(phase, dict) else {}
        if isinstance(models, dict) and name in models:
            if key is None or not _without(models[name], key, None):
                del models[name]
            changed = True
    return changed


STAND_INS: dict[str, Any] = {"slo_ms": 1000.0, "source": "zoo:echo", "at_s": 0, "path": "."}
"""What stands for a key that others need."""


def _without(table: Any, key: str, meant: str | None) -> bool:
    """Take a key out of a table: an unknown one takes its right name, one that others need a value that will
    do."""
    key = key.partition(".")[0]
    if not isinstance(table, dict) or (key not in table and key not in STAND_INS):
        return False
    value = table.pop(key, None)
    if meant is not None and meant not in table:
        table[meant] = value
    elif key in STAND_INS and value != STAND_INS[key]:
        table[key] = STAND_INS[key]
    return True

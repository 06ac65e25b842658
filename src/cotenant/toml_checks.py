"""Checks of one TOML file: keys, types and choices, with errors that name the file, the place and the nearest
known word."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names file, place, what was wrong and expected.
    `where`: the table and the key alone, `[[model]] 'm' slo_ms`; `meant`: the known key that an unknown one
    is nearest to."""

    def __init__(self, message: str, where: str = "", meant: str | None = None) -> None:
        super().__init__(message)
        self.where = where
        self.meant = meant


class TomlChecks:
    """Checks one file; every complaint carries its path."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def _table(self, cls: type[T], raw: Any, where: str) -> T:
        """A frozen config from a table, with unknown keys and wrong types refused."""
        self._check(isinstance(raw, dict), where, "must be a table")
        types = {f.name: str(f.type) for f in fields(cls)}  # type: ignore[arg-type]
        self._known(raw, tuple(types), where)
        values = {key: self._value(value, types[key], f"{where} {key}") for key, value in raw.items()}
        return cls(**values)

    def _value(self, value: Any, wanted: str, where: str) -> Any:
        """A value of the annotated type. A lone number stands for a list of one."""
        if wanted == "tuple[float, ...]":
            entries = value if isinstance(value, list) else [value]
            self._check(
                entries and all(map(is_number, entries)),
                where,
                f"must be a finite number or a list of them, not {value!r}",
            )
            return tuple(map(float, entries))
        if "float" in wanted:
            good, expected = is_number(value), "a finite number"
            value = float(value) if good else value
        elif wanted == "int":
            good, expected = type(value) is int, "a whole number"
        elif wanted == "bool":
            good, expected = type(value) is bool, "true or false"
        elif "str" in wanted and "Mapping" not in wanted:
            good, expected = isinstance(value, str), "a text"
        else:
            good, expected = True, ""
        self._check(good, where, f"must be {expected}, not {value!r}")
        return value

    def _list(self, raw: dict[str, Any], key: str) -> list[Any]:
        value = raw.get(key, [])
        self._check(isinstance(value, list), f"[[{key}]]", f"must be written [[{key}]], with double brackets")
        return list(value)

    def _known(self, raw: Mapping[str, Any], known: tuple[str, ...] | list[str], where: str) -> None:
        for key in raw:
            self._nearest(key, list(known), f"{where}: unknown key")

    def _nearest(self, key: str, known: list[str], what: str) -> None:
        if key not in known:
            close = difflib.get_close_matches(key, known, 1, 0.4)
            hint = f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"
            place, meant = what.rpartition(":")[0], close[0] if close else None
            raise ConfigError(f"{self._path}: {what} {key!r}{hint}", f"{place} {key}", meant)

    def _choice(self, value: Any, known: tuple[str, ...], where: str) -> str:
        if value not in known:
            close = difflib.get_close_matches(str(value), known, 1, 0.4)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            message = f"must be one of {', '.join(known)}, not {value!r}{hint}"
            raise ConfigError(f"{self._path}: {where} {message}", where)
        return str(value)

    def _check(self, good: Any, where: str, message: str) -> None:
        if not good:
            raise ConfigError(f"{self._path}: {where} {message}", where)


def is_number(value: Any) -> bool:
    """Whether it is a finite number (not a truth value)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond every float
        return False

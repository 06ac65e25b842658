"""What was measured: kept as it comes, so that a run can go on; medians, the result file, a table."""

from __future__ import annotations

import json
import platform
import re
import statistics
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from catalogue import SERVERS
from rich.console import Console
from rich.table import Table
from settings import CONNECTIONS, OTHERS_TARGET, ROOT

Row = dict[str, Any]


@dataclass
class Partial:
    """Results of the parts of a run, one JSON line each, by key; what is there is not measured again."""

    path: Path
    parts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> Partial:
        """What an earlier run left."""
        path.parent.mkdir(parents=True, exist_ok=True)
        parts = {}
        for line in path.read_text().splitlines() if path.is_file() else ():
            try:
                key, value = json.loads(line)
            except ValueError:  # the last line of a run that was stopped
                continue
            parts[key] = value
        return cls(path, parts)

    def add(self, key: str, value: Any) -> None:
        """Keep a result."""
        self.parts[key] = value
        with self.path.open("a") as file:
            file.write(json.dumps([key, value]) + "\n")


def medians(rows: Iterable[Row], keys: Sequence[str]) -> list[Row]:
    """One row per combination of `keys`: medians of the numbers, and how many repeats there were."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return [
        dict(zip(keys, which, strict=True)) | _median(group, keys) | {"repeats": len(group)}
        for which, group in groups.items()
    ]


def _median(group: Sequence[Row], keys: Sequence[str]) -> Row:
    found: Row = {}
    for name, value in group[0].items():
        if name in keys:
            continue
        if isinstance(value, Mapping):
            found[name] = _median([row[name] for row in group], ())
        else:
            known = [row[name] for row in group if row[name] is not None]
            found[name] = statistics.median(known) if known else None
    return found


def machine() -> Row:
    """The machine for the result file."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.+)", info.read_text()) if info.exists() else []
    return {"cpu": names[0] if names else platform.machine(), "system": platform.release()}


def commit() -> str:
    """The commit measured, marked where files differ from it."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no")
    return (git("rev-parse", "HEAD") or "unknown") + ("-changed" if changed else "")


def show(result: Row) -> None:
    """The tables."""
    console = Console()
    _show_echo(console, result["echo"])
    _show_mixed(console, result)
    busiest = result["others_cpu"]["max"]
    verdict = "" if busiest < OTHERS_TARGET else " [yellow](too much for figures to be quoted)[/]"
    console.print(
        f"other processes' CPU: median {result['others_cpu']['median']:.1%}, at most {busiest:.1%}{verdict}"
    )
    for name, reason in result["left_out"].items():
        console.print(f"{name} left out: {reason}", highlight=False, markup=False)


def _show_echo(console: Console, rows: Sequence[Row]) -> None:
    table = Table(box=None, header_style="bold", title="echo of 16 floats", title_justify="left")
    for name in ("connections", "server", "requests/s", "p50 ms", "CPU us/request", "ours / theirs"):
        table.add_column(name, justify="left" if name == "server" else "right")
    for connections in CONNECTIONS:
        here = [row for row in rows if row["connections"] == connections]
        ours = next((row["req_per_s"] for row in here if row["server"] == "cotenant"), None)
        for row in sorted(here, key=lambda row: -row["req_per_s"]):
            ratio = "" if ours is None or not row["req_per_s"] else f"{ours / row['req_per_s']:.2f}"
            table.add_row(
                str(connections), row["server"], f"{row['req_per_s']:.0f}", f"{row['p50_ms']:.2f}",
                f"{row['cpu_us']:.0f}", ratio,
            )  # fmt: skip
    console.print(table)


def _show_mixed(console: Console, result: Row) -> None:
    rows = result["mixed"]
    scales = sorted({row["scale"] for row in rows})
    title = (
        f"three models: requests answered by their deadline, by load as a multiple of the capacity "
        f"({result['capacity_per_s']:.0f}/s)"
    )
    table = Table(box=None, header_style="bold", title=title, title_justify="left")
    table.add_column("server")
    for scale in scales:
        table.add_column(f"{scale:g}", justify="right")
    for name in SERVERS:
        found = {row["scale"]: row["attainment"] for row in rows if row["server"] == name}
        if found:
            table.add_row(name, *(f"{found[s]:.1%}" if s in found else "" for s in scales))
    console.print(table)

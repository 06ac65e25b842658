"""What the benchmark commands share: options, tables of figures against targets, results as JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Row:
    """One figure. `met`: whether it reaches the target, None where there is none."""

    name: str
    figure: str
    target: str = ""
    met: bool | None = None


def arguments(doc: str | None, **numbers: float) -> argparse.Namespace:
    """The command's options: `--json FILE` and one `--name N` per keyword, with its default."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def note(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def table(title: str, rows: list[Row]) -> None:
    """Print figures against their targets."""
    shown = Table(title=title, title_justify="left", box=None, header_style="bold")
    for name in ("figure", "measured", "target", ""):
        shown.add_column(name)
    for row in rows:
        verdict = "" if row.met is None else "[green]met[/]" if row.met else "[yellow]not met[/]"
        shown.add_row(row.name, row.figure, row.target, verdict)
    Console().print(shown)


def finish(options: argparse.Namespace, facts: dict[str, Any], rows: list[Row]) -> int:
    """Write the JSON, if asked for, with the machine and the figures."""
    if options.json is not None:
        machine = {"cores": os.cpu_count(), "python": platform.python_version()}
        body = {**facts, "figures": [asdict(row) for row in rows], "machine": machine}
        options.json.write_text(json.dumps(body, indent=1) + "\n")
    return 0

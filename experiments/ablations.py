"""What is each ingredient of `ours` worth?

    python experiments/ablations.py SCENARIO.toml:SCALE... [--seeds 3] [--part 1.0] [--json FILE]

Simulates `ours` and each of its ablations on the scenarios at a load (`examples/headline.toml:1.2`), from the
same seeds, and prints attainment of `ours` (%), and by how many points that of the ablation differs: the mean
over seeds of the difference, with half its 95 % interval. Below 0: the ingredient is worth something.
`--part` runs a share of each scenario's time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cotenant.catalogue import places
from cotenant.config import load_scenario
from cotenant.experiment.averages import half_width
from cotenant.experiment.simulated import device_of, simulate
from cotenant.experiment.workers import shortened
from cotenant.schedule.policies import POLICIES

console = Console(width=None if sys.stdout.isatty() else 130)
ABLATIONS = tuple(name for name in POLICIES if name.startswith("ours-"))


def attained(path: Path, scale: float, part: float, seeds: int, store: Path) -> dict[str, list[float]]:
    """Attainment by policy, a figure per seed."""
    scenario = shortened(load_scenario(path), part)
    device = device_of(scenario, places(store))
    found: dict[str, list[float]] = {}
    for policy in ("ours", *ABLATIONS):
        found[policy] = [
            float(simulate(scenario, device, policy, seed=seed, scale=scale)["attainment"])
            for seed in range(scenario.load.seed, scenario.load.seed + seeds)
        ]
        console.print(f"{path.name}: {policy} done", style="dim")
    return found


def row(policy: str, of: dict[str, list[float]]) -> dict[str, Any]:
    """By how much an ablation differs from `ours`, in points."""
    gaps = [100 * (one - whole) for one, whole in zip(of[policy], of["ours"], strict=True)]
    return {"points": statistics.mean(gaps), "ci95": half_width(gaps)}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="+", metavar="SCENARIO.toml:SCALE")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--part", type=float, default=1.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    table = Table(title="attainment (%) of ours, and points more without", title_justify="left", box=None)
    for name in ("", "load", "ours", *(name.removeprefix("ours-no-") for name in ABLATIONS)):
        table.add_column(name, justify="right" if name else "left")
    facts = []
    with tempfile.TemporaryDirectory() as store:
        for case in options.cases:
            text, _, scale = case.rpartition(":")
            try:
                at, path = float(scale), Path(text)
            except ValueError:
                parser.error(f"{case}: give a scenario and a load, as in examples/headline.toml:1.2")
            found = attained(path, at, options.part, options.seeds, Path(store))
            rows = {policy: row(policy, found) for policy in ABLATIONS}
            facts.append({"scenario": path.name, "scale": at, "attainment": found, "without": rows})
            cells = [f"{r['points']:+.2f} ±{r['ci95'] or 0.0:.2f}" for r in rows.values()]
            table.add_row(path.name, f"{at:g}", f"{100 * statistics.mean(found['ours']):.2f}", *cells)
    console.print(table)
    if options.json:
        seeds = {"seeds": options.seeds, "part": options.part}
        options.json.write_text(json.dumps({**seeds, "cases": facts}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

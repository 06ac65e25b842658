"""The same scenario simulated and live in process: does the simulator tell the truth about attainment?

How this works. The models are profiled on this machine (solo times, lane-by-lane slowdowns), the capacity
is measured live, and for every scale the same seeded arrivals run live on the real lanes and in the
simulator. Repeats go through the scales in turn, so that a slow spell of the machine hits all alike. The
simulator agrees when |simulated - median live| attainment is within 5 points or the live spread (largest
minus smallest), whichever is larger. No HTTP: what is compared is the device and the scheduler.

    python benchmarks/sim_vs_live.py [--seconds 6] [--repeats 5] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cotenant.assemble import Prepared, prepare
from cotenant.catalogue import places
from cotenant.config import Scenario, load_scenario
from cotenant.experiment.coruns import measure_coruns
from cotenant.experiment.live import live_capacity, run_live
from cotenant.experiment.simulated import SimulatedDevice, simulate, simulated_device

ROOT = Path(__file__).resolve().parents[1]
SCALES = (1.2, 0.8, 0.5)
"""Heaviest first: a shared machine that has rested is faster for some seconds than it can keep up."""
TOLERANCE = 0.05


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


async def live_runs(
    prepared: Prepared, scenario: Scenario, capacity: float, repeats: int
) -> dict[float, list[dict[str, Any]]]:
    """Reports by scale, the repeats interleaved. Each repeat has a seed of its own."""
    runs: dict[float, list[dict[str, Any]]] = {scale: [] for scale in SCALES}
    for repeat in range(repeats):
        for scale in SCALES:
            note(f"live: repeat {repeat + 1} of {repeats}, {scale} x capacity")
            report = await run_live(
                prepared, scenario, scale=scale, seed=scenario.load.seed + repeat, capacity_per_s=capacity
            )
            runs[scale].append(report)
    return runs


def compare(
    scenario: Scenario,
    device: SimulatedDevice,
    live: dict[float, list[dict[str, Any]]],
    capacity: float,
) -> list[dict[str, Any]]:
    """One row per scale: simulated and live attainment, and whether they agree."""
    rows = []
    for scale, reports in sorted(live.items()):
        measured = [report["attainment"] for report in reports]
        simulated = [
            simulate(scenario, device, seed=report["seed"], scale=scale, capacity_per_s=capacity)[
                "attainment"
            ]
            for report in reports
        ]
        median, spread = statistics.median(measured), max(measured) - min(measured)
        gap = abs(statistics.median(simulated) - median)
        rows.append(
            {
                "scale": scale,
                "simulated": simulated,
                "simulated_median": statistics.median(simulated),
                "live": measured,
                "live_median": median,
                "live_spread": spread,
                "gap": gap,
                "agrees": gap <= max(TOLERANCE, spread),
                "live_p99_ms": [report["p99_ms"] for report in reports],
            }
        )
    return rows


def show(rows: list[dict[str, Any]], capacity: float) -> None:
    table = Table(
        box=None, header_style="bold", title=f"attainment, capacity {capacity:.0f}/s", title_justify="left"
    )
    for name in ("scale", "simulated %", "live median %", "live runs %", "gap, points", "allowed", "agrees"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            f"{row['scale']:.1f}",
            f"{100 * row['simulated_median']:.1f}",
            f"{100 * row['live_median']:.1f}",
            " ".join(f"{100 * value:.1f}" for value in row["live"]),
            f"{100 * row['gap']:.1f}",
            f"{100 * max(TOLERANCE, row['live_spread']):.1f}",
            "yes" if row["agrees"] else "no",
        )
    Console().print(table)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenario", type=Path, default=ROOT / "examples" / "demo.toml")
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--store", type=Path, help="profiles to use; without it they are measured anew")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    scenario = load_scenario(options.scenario)
    scenario = replace(scenario, load=replace(scenario.load, duration_s=options.seconds))
    where = places(options.store or Path(tempfile.mkdtemp(prefix="cotenant-bench-")))
    prepared = prepare(scenario, where, progress=lambda what, done, total: None)
    try:
        note("measuring how the lanes slow each other down")
        device = simulated_device(scenario, measure_coruns(prepared, where))
        note("measuring the capacity")
        capacity = asyncio.run(live_capacity(prepared, scenario))
        live = asyncio.run(live_runs(prepared, scenario, capacity, options.repeats))
    finally:
        prepared.executor.close()
    rows = compare(scenario, device, live, capacity)
    show(rows, capacity)
    if options.json:
        facts = {
            "scenario": options.scenario.name,
            "seconds": options.seconds,
            "capacity_per_s": capacity,
            "rows": rows,
            "figures": [
                {
                    "name": f"simulated against live attainment, {row['scale']} x capacity",
                    "figure": f"{100 * row['simulated_median']:.1f} % simulated, "
                    f"{100 * row['live_median']:.1f} % live",
                    "target": f"within {100 * max(TOLERANCE, row['live_spread']):.1f} points",
                    "met": row["agrees"],
                }
                for row in rows
            ],
            "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
        }
        options.json.write_text(json.dumps(facts, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

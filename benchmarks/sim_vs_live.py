"""The same scenario simulated and live in process, under one policy or several: does the simulator tell the
truth about attainment, and which policy keeps most deadlines on the real device?

How this works. The models are profiled on this machine (solo times, lane-by-lane slowdowns), the capacity
is measured live, and for every scale and policy the same seeded arrivals run live on the real lanes and in
the simulator. Repeats go through scales and policies in turn, so that a slow spell of the machine hits all
alike. The simulator agrees when |simulated - median live| attainment is within a few points (`--tolerance`)
or the live spread (largest minus smallest), whichever is larger. No HTTP: what is compared is the device and
the scheduler.

    python benchmarks/sim_vs_live.py [--seconds 6] [--repeats 5] [--json FILE]
    python benchmarks/sim_vs_live.py --scenario examples/live_cpu.toml --scales 1.5,1.2,1.0,0.8 \
        --policies fcfs,exclusive_edf,deferred_edf,k_edf,ours --tolerance 3 --json docs/results/live_cpu.json
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
from collections.abc import Sequence
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

Runs = dict[tuple[str, float], list[dict[str, Any]]]
"""Reports by policy and scale, one per repeat."""


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


async def live_runs(
    prepared: Prepared,
    scenario: Scenario,
    capacity: float,
    repeats: int,
    scales: Sequence[float],
    policies: Sequence[str],
) -> Runs:
    """The repeats interleaved. Each has a seed of its own, the same for all policies."""
    runs: Runs = {(policy, scale): [] for policy in policies for scale in scales}
    for repeat in range(repeats):
        for scale in scales:
            turn = repeat % len(policies)
            for policy in [*policies[turn:], *policies[:turn]]:
                seed = scenario.load.seed + repeat
                report = await run_live(
                    prepared, scenario, policy, scale=scale, seed=seed, capacity_per_s=capacity
                )
                note(
                    f"live: repeat {repeat + 1} of {repeats}, {scale} x capacity, {policy}: "
                    f"{100 * report['attainment']:.1f} %"
                )
                runs[policy, scale].append(report)
    return runs


def compare(
    scenario: Scenario, device: SimulatedDevice, live: Runs, capacity: float, tolerance: float
) -> list[dict[str, Any]]:
    """One row per scale and policy: simulated and live attainment, and whether they agree."""
    rows = []
    for (policy, scale), reports in sorted(live.items(), key=lambda item: item[0][1]):
        measured = [report["attainment"] for report in reports]
        simulated = [
            simulate(scenario, device, policy, seed=report["seed"], scale=scale, capacity_per_s=capacity)[
                "attainment"
            ]
            for report in reports
        ]
        median, spread = statistics.median(measured), max(measured) - min(measured)
        gap = abs(statistics.median(simulated) - median)
        rows.append(
            {
                "scale": scale,
                "policy": policy,
                "simulated": simulated,
                "simulated_median": statistics.median(simulated),
                "live": measured,
                "live_median": median,
                "live_spread": spread,
                "gap": gap,
                "agrees": gap <= max(tolerance, spread),
                "live_p99_ms": [report["p99_ms"] for report in reports],
                "live_decision_p99_us": [report["decision_us"]["p99"] for report in reports],
            }
        )
    return rows


def show(rows: list[dict[str, Any]], capacity: float, tolerance: float) -> None:
    table = Table(
        box=None, header_style="bold", title=f"attainment, capacity {capacity:.0f}/s", title_justify="left"
    )
    for name in (
        "scale", "policy", "simulated %", "live median %", "live runs %", "gap, points", "allowed", "agrees",
    ):  # fmt: skip
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            f"{row['scale']:.1f}",
            row["policy"],
            f"{100 * row['simulated_median']:.1f}",
            f"{100 * row['live_median']:.1f}",
            " ".join(f"{100 * value:.1f}" for value in row["live"]),
            f"{100 * row['gap']:.1f}",
            f"{100 * max(tolerance, row['live_spread']):.1f}",
            "yes" if row["agrees"] else "no",
        )
    Console(width=None if sys.stdout.isatty() else 110).print(table)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenario", type=Path, default=ROOT / "examples" / "demo.toml")
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--scales", default=",".join(map(str, SCALES)), help="of capacity, in this order")
    parser.add_argument("--policies", default="default", help="names, separated by commas")
    parser.add_argument("--tolerance", type=float, default=100 * TOLERANCE, help="points")
    parser.add_argument("--store", type=Path, help="profiles to use; without it they are measured anew")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    scenario = load_scenario(options.scenario)
    scenario = replace(scenario, load=replace(scenario.load, duration_s=options.seconds))
    scales, policies = [float(part) for part in options.scales.split(",")], options.policies.split(",")
    tolerance = options.tolerance / 100
    where = places(options.store or Path(tempfile.mkdtemp(prefix="cotenant-bench-")))
    prepared = prepare(scenario, where, progress=lambda what, done, total: None)
    try:
        note("measuring how the lanes slow each other down")
        device = simulated_device(scenario, measure_coruns(prepared, where))
        note("measuring the capacity")
        capacity = asyncio.run(live_capacity(prepared, scenario))
        live = asyncio.run(live_runs(prepared, scenario, capacity, options.repeats, scales, policies))
    finally:
        prepared.executor.close()
    rows = compare(scenario, device, live, capacity, tolerance)
    show(rows, capacity, tolerance)
    if options.json:
        facts = {
            "scenario": options.scenario.name,
            "seconds": options.seconds,
            "capacity_per_s": capacity,
            "rows": rows,
            "figures": [
                {
                    "name": f"simulated against live attainment, {row['scale']} x capacity, {row['policy']}",
                    "figure": f"{100 * row['simulated_median']:.1f} % simulated, "
                    f"{100 * row['live_median']:.1f} % live",
                    "target": f"within {100 * max(tolerance, row['live_spread']):.1f} points",
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

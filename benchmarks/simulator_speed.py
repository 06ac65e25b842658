"""Simulated requests per second of real time, on one core.

The demo's scenario at 0.8 of its capacity, on the profile committed beside it, by policy. Decisions are the
scheduler's own, the very ones that a server takes, so a policy that thinks longer simulates slower; the rest
is the simulated device, the bookkeeping of requests and the learning.

    python benchmarks/simulator_speed.py [--seconds 40] [--repeats 3] [--json FILE]
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

from common import ROOT, Row, arguments, finish, note, table
from cotenant.config import load_scenario
from cotenant.experiment.capacity import simulated_capacity
from cotenant.experiment.simulated import simulate, simulated_device
from cotenant.profile.export import load_profile

POLICIES = ("fcfs", "exclusive_edf", "default")
SCALE = 0.8
TARGET = 20_000.0


def main() -> int:
    options = arguments(__doc__, seconds=40.0, repeats=3)
    scenario = load_scenario(ROOT / "examples" / "demo.toml")
    scenario = replace(scenario, load=replace(scenario.load, duration_s=options.seconds))
    device = simulated_device(scenario, load_profile(scenario.path.with_suffix(".profile.json")))
    capacity = simulated_capacity(scenario, device)
    runs: dict[str, list[dict[str, Any]]] = {policy: [] for policy in POLICIES}
    for repeat in range(options.repeats):
        for policy, found in runs.items():
            note(f"repeat {repeat + 1} of {options.repeats}: {policy}")
            found.append(simulate(scenario, device, policy, scale=SCALE, capacity_per_s=capacity))
    rows, facts = [], {}
    for policy, found in runs.items():
        per_s = statistics.median(run["offered"] / run["wall_s"] for run in found)
        decision_us = statistics.median(run["decision_us"]["p50"] for run in found)
        facts[policy] = {
            "requests_per_s": per_s,
            "us_per_request": 1e6 / per_s,
            "decision_p50_us": decision_us,
        }
        rows.append(
            Row(
                f"simulated requests/s, {policy}",
                f"{per_s:,.0f} ({1e6 / per_s:.0f} us each; decision p50 {decision_us:.0f} us)",
                f">= {TARGET:,.0f}",
                per_s >= TARGET,
            )
        )
    table("simulator speed, one core", rows)
    return finish(options, {"policies": facts, "capacity_per_s": capacity, "scale": SCALE}, rows)


if __name__ == "__main__":
    raise SystemExit(main())

"""What the interpreter's switch interval does to lanes that share it with the deciding thread.

Live in process, the demo's models at 0.7 of the measured capacity, 5 ms (Python's default) against the 0.5 ms
that the engine sets, in turn over the repeats: attainment, p99 latency, and the hand-over (decision to start
of the run), which is what a lane that waits for the interpreter makes longer.

    python benchmarks/switch_interval.py [--seconds 6] [--repeats 3] [--json FILE]
"""

from __future__ import annotations

import asyncio
import statistics
from dataclasses import replace
from typing import Any

import numpy as np

import cotenant.engine
from common import ROOT, Row, arguments, finish, note, table
from cotenant.assemble import Prepared, prepare
from cotenant.catalogue import places
from cotenant.config import Scenario, load_scenario
from cotenant.domain import NS_PER_MS, Observation, Outcome
from cotenant.experiment.live import live_capacity, run_live

INTERVALS_MS = (5.0, 0.5)
SCALE = 0.7


class Handovers:
    """An `Observer` that keeps how long each dispatch waited for its lane (ms)."""

    def __init__(self) -> None:
        self.spans_ms: list[float] = []

    def settled(self, outcome: Outcome) -> None: ...

    def decided(self, spent_ns: int, at: int) -> None: ...

    def observed(self, observation: Observation) -> None:
        self.spans_ms.append((observation.started_at - observation.decided_at) / NS_PER_MS)


def run(
    prepared: Prepared, scenario: Scenario, interval_ms: float, seed: int, capacity: float
) -> dict[str, Any]:
    """One live run with the interval."""
    cotenant.engine.SWITCH_INTERVAL_S = interval_ms / 1000
    seen = Handovers()
    report = asyncio.run(
        run_live(prepared, scenario, scale=SCALE, seed=seed, capacity_per_s=capacity, observers=[seen])
    )
    return {
        "attainment": report["attainment"],
        "p99_ms": report["p99_ms"],
        "handover_p50_ms": float(np.percentile(seen.spans_ms, 50)),
        "handover_p99_ms": float(np.percentile(seen.spans_ms, 99)),
    }


def main() -> int:
    options = arguments(__doc__, seconds=6.0, repeats=3)
    scenario = load_scenario(ROOT / "examples" / "demo.toml")
    scenario = replace(scenario, load=replace(scenario.load, duration_s=options.seconds))
    prepared = prepare(scenario, places())
    runs: dict[float, list[dict[str, Any]]] = {interval: [] for interval in INTERVALS_MS}
    try:
        note("measuring the capacity")
        capacity = asyncio.run(live_capacity(prepared, scenario, seconds=4.0, warm_s=4.0))
        for repeat in range(options.repeats):
            for interval in INTERVALS_MS if repeat % 2 == 0 else INTERVALS_MS[::-1]:
                note(f"repeat {repeat + 1} of {options.repeats}: {interval} ms")
                runs[interval].append(run(prepared, scenario, interval, repeat, capacity))
    finally:
        prepared.executor.close()
    facts = {
        f"{interval:g}": {key: statistics.median(run[key] for run in found) for key in found[0]}
        for interval, found in runs.items()
    }
    rows = [
        Row(
            f"switch interval {interval} ms",
            f"attainment {100 * f['attainment']:.1f} %, p99 {f['p99_ms']:.0f} ms, "
            f"hand-over p50 {f['handover_p50_ms']:.2f} ms, p99 {f['handover_p99_ms']:.2f} ms",
        )
        for interval, f in facts.items()
    ]
    table(f"effect of the switch interval at {SCALE} x capacity ({capacity:.0f}/s)", rows)
    return finish(options, {"intervals_ms": facts, "scale": SCALE, "capacity_per_s": capacity}, rows)


if __name__ == "__main__":
    raise SystemExit(main())

"""The server's simple policies, live on this device: the engine and its lanes under open-loop load, no HTTP.

Every model gets an equal share of the device's time; deadlines are ten times the solo latency; rates are
shares of the capacity that the same models have under a standing backlog, measured here.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

from episodes import Solo
from subjects import LARGEST_BATCH, Subject, say

SLO_SCALE = 10
SLO_FLOOR_MS = 5
SCALES = {True: (0.6, 0.9, 1.2), False: (0.6,)}
"""By whether the device is a GPU: a dry run has seconds only."""
POLICIES = ("fcfs", "exclusive_edf", "deferred_edf", "k_edf")
KEPT = ("offered", "ok", "attainment", "goodput_per_s", "p50_ms", "p99_ms", "device_busy", "mean_batch")
CAPACITY_SHARE = 0.2
"""Of the time, for measuring the capacity."""


def run(subjects: dict[str, Subject], solo_ns: Solo, seconds: float, *, cuda: bool) -> dict[str, Any]:
    """Reports in short, or the reason why there are none."""
    try:
        from cotenant.assemble import prepare
        from cotenant.catalogue import Places
        from cotenant.config import load_scenario
        from cotenant.experiment.live import live_capacity, run_live
        from cotenant.profile.measure import Budget
    except ImportError as error:
        return {"skipped": f"{error}"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "live.toml"
        each_s = seconds * (1 - CAPACITY_SHARE) / len(POLICIES) / len(SCALES[cuda])
        path.write_text(_scenario(subjects, solo_ns, each_s, cuda=cuda))
        scenario = load_scenario(path)
        where = Places(cache=Path(folder), store=Path(folder))
        prepared = prepare(scenario, where, budget=Budget(per_variant_s=0.05, max_runs=30))
        try:
            capacity = asyncio.run(
                live_capacity(
                    prepared, scenario, seconds=seconds * CAPACITY_SHARE * 0.7, warm_s=seconds * 0.06
                )
            )
            rows = []
            for scale in sorted(SCALES[cuda], reverse=True):
                for policy in POLICIES:
                    say(f"  {policy} at {scale}")
                    report = asyncio.run(
                        run_live(
                            prepared, scenario, policy, scale=scale, capacity_per_s=capacity, drain_s=2.0
                        )
                    )
                    rows.append({"policy": policy, "scale": scale, **{key: report[key] for key in KEPT}})
        finally:
            prepared.executor.close()
    return {"capacity_per_s": capacity, "slo_scale": SLO_SCALE, "seconds_each": each_s, "runs": rows}


def _scenario(subjects: dict[str, Subject], solo_ns: Solo, duration_s: float, *, cuda: bool) -> str:
    lines = [
        "[load]", f"duration_s = {duration_s:.2f}", 'scale_of = "capacity"', "seed = 1",
        "[device]", f'kind = "{"cuda" if cuda else "cpu"}"', "lanes = 4" if cuda else "",
    ]  # fmt: skip
    for name, subject in sorted(subjects.items()):
        single = subject.variants[0]
        buckets = ", ".join(f"{axis} = [{size}]" for axis, size in single.axes)
        lines += [
            "[[model]]", f'name = "{name}"', f'source = "torch:{name}{"" if cuda else "-small"}"',
            f"slo_scale = {SLO_SCALE}", f"slo_ms = {SLO_FLOOR_MS}", f"max_batch = {LARGEST_BATCH[not cuda]}",
            f"rate_per_s = {1e9 / solo_ns[single, 1.0]:.3f}", f"buckets = {{ {buckets} }}" if buckets else "",
        ]  # fmt: skip
    return "\n".join(lines) + "\n"

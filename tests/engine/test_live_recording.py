"""A live run in process, recorded: the same dispatches as its observers saw."""

from __future__ import annotations

import asyncio
from pathlib import Path

from cotenant.assemble import prepare
from cotenant.catalogue import places
from cotenant.config import load_scenario
from cotenant.experiment.coruns import recorded_live
from cotenant.experiment.datasets import read_dataset
from cotenant.experiment.live import run_live
from cotenant.experiment.recorder import Recorder
from cotenant.profile.measure import Budget

CONFIG = """
[load]
duration_s = 0.5
[device]
lanes = 2
[[model]]
name = "echo"
source = "zoo:echo"
slo_ms = 100
rate_per_s = 200
max_batch = 4
[[model]]
name = "twin"
source = "zoo:echo"
slo_ms = 100
rate_per_s = 200
max_batch = 1
"""


def test_a_live_run_records_every_dispatch_with_its_times(tmp_path: Path) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text(CONFIG)
    scenario = load_scenario(path)
    prepared = prepare(scenario, places(tmp_path), budget=Budget(per_variant_s=0.02, min_runs=3))
    seen = Recorder(prepared.executor.lanes)
    with recorded_live(prepared, tmp_path / "live", 4.0, complain=lambda message: None) as recorders:
        asyncio.run(run_live(prepared, scenario, "k_edf", observers=[seen, *recorders]))
    prepared.executor.close()
    found = [row for rows in read_dataset(tmp_path / "live-00001").runs.values() for row in rows]
    spans = sorted((o.variant.label, (o.ended_at - o.started_at) / 1e6) for o in seen.observations)
    assert len(found) == len(spans) > 0
    for (label, span_ms), row in zip(
        spans, sorted(found, key=lambda row: (row.variant.label, row.span_ms)), strict=True
    ):
        assert row.variant.label == label
        assert abs(row.span_ms - span_ms) < 1e-3

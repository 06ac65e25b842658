"""Features of a real device: measured by `cotenant profile`, taken from the graph before that."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cotenant.assemble import Prepared, know_features, prepare
from cotenant.catalogue import Places, places
from cotenant.cli import app
from cotenant.config import load_scenario
from cotenant.domain import Variant
from cotenant.experiment.probing import probe_models
from cotenant.profile.demand import STATICS
from cotenant.profile.features import FeatureTable
from cotenant.profile.measure import Budget
from cotenant.profile.probe import ProbeBudget
from cotenant.profile.records import RESOURCES

CONFIG = """
[device]
kind = "cpu"

[[model]]
name = "m"
source = "zoo:mobilenet"
max_batch = 2
"""
QUICK = ProbeBudget(per_model_s=0.3, rounds=2, min_rounds=1, min_runs=2)


@pytest.fixture
def where(tmp_path: Path) -> Places:
    return places(tmp_path / "store")


@pytest.fixture
def prepared(tmp_path: Path, where: Places) -> Prepared:
    path = tmp_path / "server.toml"
    path.write_text(CONFIG)
    found = prepare(load_scenario(path), where, budget=Budget(per_variant_s=0.01, min_runs=3))
    yield found
    found.executor.close()


def known(prepared: Prepared, where: Places) -> FeatureTable:
    know_features(prepared, where)
    return prepared.features


def test_a_server_knows_graphs_at_once_and_measurements_once_they_are_stored(
    prepared: Prepared, where: Places
) -> None:
    gflop, pressed = STATICS.index("gflop"), STATICS.index("pressure_core")
    before = known(prepared, where).of(Variant("m", 2))
    assert before.statics[gflop] > 0.1
    assert all(map(math.isnan, before.demand))

    probed = probe_models(prepared, where, budget=QUICK)
    assert probed is not None
    after = known(prepared, where).of(Variant("m", 2))
    assert after == probed.table.of(Variant("m", 2))
    assert after.statics[gflop] == before.statics[gflop]
    assert math.isfinite(after.statics[pressed])
    assert 1 <= len(after.segment_ns) <= 16
    assert sum(after.segment_ns) == pytest.approx(after.solo_ns)
    for demand in (after.demand, *after.segment_demand):
        assert len(demand) == len(RESOURCES)
        assert all(0 <= share <= 1 for share in demand)


def test_probing_can_be_left_out(tmp_path: Path) -> None:
    path = tmp_path / "server.toml"
    path.write_text(CONFIG.replace("mobilenet", "echo"))
    command = ["profile", str(path), "--store", str(tmp_path / "store"), "--no-probe"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "sensitivity" not in result.output

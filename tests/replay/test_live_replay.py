"""A recorded live run replays through a fresh scheduler to the very same actions."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from cotenant.assemble import Prepared, prepare, subjects_of
from cotenant.catalogue import places
from cotenant.clock import MonotonicClock
from cotenant.config import ConfigError, Scenario, load_scenario
from cotenant.experiment.live import run_live
from cotenant.experiment.replaying import replay_log
from cotenant.predictors import PARTS, Kind, Parts
from cotenant.profile.drive_lanes import LaneDriver
from cotenant.profile.measure import Budget, measure_pairs
from cotenant.schedule.policies import POLICIES

CONFIG = """
[load]
duration_s = 1.0
[[model]]
name = "echo"
source = "zoo:echo"
slo_ms = 50
rate_per_s = 150
max_batch = 8
[[model]]
name = "mobilenet"
source = "zoo:mobilenet"
slo_ms = 60
rate_per_s = 60
max_batch = 4
"""


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> Scenario:
    path = tmp_path_factory.mktemp("replay") / "scenario.toml"
    path.write_text(CONFIG)
    return load_scenario(path)


def kind(policy: str) -> Kind:
    return PARTS.get(policy, Parts()).kind


def with_pairs(prepared: Prepared) -> Prepared:
    """As after `cotenant profile --corun`."""
    driver = LaneDriver(prepared.executor, MonotonicClock())
    budget = Budget(per_pair_s=0.02, rounds=1)
    prepared.pairs = measure_pairs(driver, subjects_of(prepared), device=prepared.device, budget=budget)
    return prepared


@pytest.mark.parametrize("policy", sorted(name for name in POLICIES if kind(name) is not Kind.ORACLE))
def test_a_live_log_replays_to_the_same_actions(scenario: Scenario, tmp_path: Path, policy: str) -> None:
    prepared = prepare(scenario, places(tmp_path), budget=Budget(per_variant_s=0.02, min_runs=3))
    if kind(policy) is Kind.STATIC_LINEAR:
        prepared = with_pairs(prepared)
    log = tmp_path / "events.log"
    busy = replace(scenario, load=replace(scenario.load, scale=2.0))
    report = asyncio.run(run_live(prepared, busy, policy, log_path=log))
    prepared.executor.close()
    n_events, n_actions, mismatch = replay_log(log)
    assert mismatch is None
    assert n_events > 0  # arrivals of one turn are one event
    assert n_actions >= report["offered"]


def test_a_policy_that_needs_the_truth_does_not_run_live(scenario: Scenario, tmp_path: Path) -> None:
    prepared = prepare(scenario, places(tmp_path), budget=Budget(per_variant_s=0.02, min_runs=3))
    with pytest.raises(ConfigError, match="oracle"):
        asyncio.run(run_live(prepared, scenario, "oracle"))
    prepared.executor.close()


def test_a_log_torn_by_a_crash_replays_as_far_as_it_goes(scenario: Scenario, tmp_path: Path) -> None:
    prepared = prepare(scenario, places(tmp_path), budget=Budget(per_variant_s=0.02, min_runs=3))
    log = tmp_path / "events.log"
    asyncio.run(run_live(prepared, scenario, "default", log_path=log))
    prepared.executor.close()
    body = log.read_bytes()
    log.write_bytes(body[: len(body) // 2])
    n_events, _, mismatch = replay_log(log)
    assert mismatch is None
    assert n_events > 0


def test_a_file_that_is_no_log_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "not.log"
    path.write_bytes(b"hello, this is no log")
    with pytest.raises(ValueError, match=r"not\.log"):
        replay_log(path)

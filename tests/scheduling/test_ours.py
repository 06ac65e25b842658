"""The overlapping policy on a twin: what a user would see of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cotenant.catalogue import places
from cotenant.config import load_scenario
from cotenant.experiment.policies_summary import HONEST, SIMPLE
from cotenant.experiment.simulated import device_of, simulate
from cotenant.schedule.policies import POLICIES

HEADLINE = Path(__file__).parents[2] / "examples" / "headline.toml"


@pytest.fixture(scope="module")
def headline(tmp_path_factory):
    text = (
        HEADLINE.read_text().replace("duration_s = 120", "duration_s = 20").replace("at_s = 60", "at_s = 10")
    )
    folder = tmp_path_factory.mktemp("ours")
    (folder / "kernels").symlink_to(HEADLINE.parent / "kernels")
    path = folder / "headline.toml"
    path.write_text(text)
    scenario = load_scenario(path)
    return scenario, device_of(scenario, places(folder / "store"))


def test_overlap_meets_more_deadlines_than_one_at_a_time(headline):
    scenario, device = headline
    ours = simulate(scenario, device, "ours", scale=1.2)
    alone = simulate(scenario, device, "exclusive_edf", scale=1.2)
    assert ours["attainment"] > alone["attainment"]


def test_the_same_seed_decides_the_same(headline):
    scenario, device = headline
    first, second = (simulate(scenario, device, "ours", scale=1.0) for _ in range(2))
    for key in ("offered", "ok", "late", "rejected", "expired", "p99_ms", "mean_batch"):
        assert first[key] == second[key]


def test_every_request_ends_once_whatever_is_switched_off(headline):
    scenario, device = headline
    for policy in (name for name in POLICIES if name.startswith("ours-")):
        report = simulate(scenario, device, policy, scale=1.5)
        ended = sum(report[key] for key in ("ok", "late", "rejected", "expired", "cancelled", "failed"))
        assert report["offered"] == ended > 0


def test_the_static_policy_is_a_fair_opponent_and_predicts_worse(headline):
    scenario, device = headline
    static = simulate(scenario, device, "static_linear", scale=1.0)
    simple = [simulate(scenario, device, name, scale=1.0) for name in SIMPLE]
    assert static["goodput_per_s"] >= HONEST * max(report["goodput_per_s"] for report in simple)
    ours = simulate(scenario, device, "ours", scale=1.0)
    assert static["prediction"]["mape"] > ours["prediction"]["mape"]

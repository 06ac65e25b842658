"""The overlapping policy on a twin: what a user would see of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cotenant.catalogue import places
from cotenant.config import load_scenario
from cotenant.experiment.policies_summary import HONEST, SIMPLE
from cotenant.experiment.simulated import device_of, simulate
from cotenant.schedule.policies import POLICIES

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ours")
    (folder / "kernels").symlink_to(EXAMPLES / "kernels")
    return folder


def shortened(folder, name, *changes):
    text = (EXAMPLES / f"{name}.toml").read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = folder / f"{name}-{len(changes)}.toml"
    path.write_text(text)
    scenario = load_scenario(path)
    return scenario, device_of(scenario, places(folder / "store"))


@pytest.fixture(scope="module")
def headline(folder):
    return shortened(folder, "headline", ("duration_s = 120", "duration_s = 20"), ("at_s = 60", "at_s = 10"))


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


def test_a_protected_model_hardly_notices_best_effort_work_that_fills_the_device(folder):
    brief = ("duration_s = 120", "duration_s = 8")
    busy = simulate(*shortened(folder, "busy", brief), "ours")
    alone = simulate(*shortened(folder, "busy", brief, ("rate_per_s = 400.0", "rate_per_s = 0.01")), "ours")
    assert busy["device_busy"] > 0.85 > alone["device_busy"]
    assert busy["best_effort_per_s"] > 0
    of = [report["per_model"]["bert"] for report in (busy, alone)]
    assert of[0]["attainment"] >= 0.99
    assert of[0]["p50_ms"] < 1.2 * of[1]["p50_ms"]

"""Arrivals are seeded, independent per model, and keep the rate and burstiness that was asked for."""

from __future__ import annotations

import numpy as np
import pytest

from cotenant.workload.arrivals import instants, merged
from cotenant.workload.traffic import Traffic


def poisson(rate: float, **more: object) -> list[Traffic]:
    return [Traffic(from_s=0.0, rate_per_s=rate, **more)]  # type: ignore[arg-type]


def test_the_same_seed_and_name_give_the_same_arrivals_and_others_do_not() -> None:
    first = instants(poisson(50), 20, 1, "a")
    assert (first == instants(poisson(50), 20, 1, "a")).all()
    assert len(np.intersect1d(first, instants(poisson(50), 20, 2, "a"))) == 0
    assert len(np.intersect1d(first, instants(poisson(50), 20, 1, "b"))) == 0


@pytest.mark.parametrize(("process", "cv"), [("poisson", 1.0), ("gamma", 2.0), ("gamma", 0.5)])
def test_rate_and_burstiness_are_those_asked_for(process: str, cv: float) -> None:
    at = instants(poisson(200, process=process, cv=cv), 500, 7, "m")
    gaps = np.diff(at) / 1e9
    assert len(at) / 500 == pytest.approx(200, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.08)
    assert (gaps >= 0).all()
    assert at[-1] < 500e9


def test_a_phase_changes_the_rate_from_its_instant_on() -> None:
    phases = [Traffic(from_s=0, rate_per_s=10), Traffic(from_s=50, rate_per_s=200)]
    at = instants(phases, 100, 1, "m") / 1e9
    assert (at < 50).sum() == pytest.approx(500, rel=0.2)
    assert (at >= 50).sum() == pytest.approx(10_000, rel=0.1)


def test_merging_keeps_order_and_owner() -> None:
    at, which = merged([np.array([1, 5]), np.array([2, 5])])
    assert at.tolist() == [1, 2, 5, 5]
    assert which.tolist() == [0, 1, 0, 1]


def test_a_model_without_rate_never_arrives() -> None:
    assert len(instants(poisson(0), 10, 1, "m")) == 0


# --- processes whose rate changes -----------------------------------------------------------------------

VARYING = [
    {"process": "mmpp"},
    {"process": "mmpp", "burst_ratio": (2.0, 8.0), "burst_share": (0.2, 0.05), "burst_s": (2.0, 0.2)},
    {"process": "diurnal", "diurnal_amplitude": 1.0, "diurnal_period_s": 20.0, "diurnal_phase": 0.3},
    {"process": "flash", "flash_at_s": 100.0, "flash_s": 50.0, "flash_ramp_s": 10.0},
    {"process": "gamma", "cv": 8.0},
]


@pytest.mark.parametrize("settings", VARYING, ids=lambda settings: "-".join(map(str, settings.values())))
def test_the_declared_rate_is_the_mean_rate_over_seeds(settings: dict[str, object]) -> None:
    counts = [len(instants(poisson(30, **settings), 200, seed, "m")) for seed in range(60)]
    standard_error = np.std(counts) / len(counts) ** 0.5
    assert np.mean(counts) == pytest.approx(6000, abs=4 * standard_error)


@pytest.mark.parametrize("settings", VARYING, ids=lambda settings: "-".join(map(str, settings.values())))
def test_varying_arrivals_are_seeded_ascending_and_within_their_phase(settings: dict[str, object]) -> None:
    phases = [Traffic(from_s=0, rate_per_s=5), Traffic(from_s=90, rate_per_s=40, **settings)]  # type: ignore[arg-type]
    at = instants(phases, 180, 3, "m")
    assert (at == instants(phases, 180, 3, "m")).all()
    assert not np.array_equal(at, instants(phases, 180, 4, "m"))
    assert (np.diff(at) >= 0).all()
    assert at[0] >= 0
    assert at[-1] < 180e9
    assert (at < 90e9).sum() == pytest.approx(450, abs=100)


def test_bursts_take_their_share_of_time_at_their_rate() -> None:
    """Ten times the mean rate for a tenth of the time leaves nothing for the rest."""
    bursts = {"burst_ratio": (10.0,), "burst_share": (0.1,), "burst_s": (0.5,)}
    at = instants(poisson(200, process="mmpp", **bursts), 2000, 1, "m") / 1e9
    counts = np.bincount((at / 0.01).astype(int), minlength=200_000)
    assert (counts > 0).mean() == pytest.approx(0.1, rel=0.1)
    assert counts[counts > 0].mean() == pytest.approx(20, rel=0.05)
    n_bursts = (np.diff(at) > 0.05).sum()
    assert n_bursts == pytest.approx(0.1 * 2000 / 0.5, rel=0.15)


def test_several_kinds_of_bursts_show_in_the_shares_of_time() -> None:
    bursts = {"burst_ratio": (4.0, 40.0), "burst_share": (0.1, 0.01), "burst_s": (1.0, 1.0)}
    at = instants(poisson(50, process="mmpp", **bursts), 4000, 2, "m") / 1e9
    counts = np.bincount((at / 0.1).astype(int), minlength=40_000)
    assert (counts > 100).mean() == pytest.approx(0.01, rel=0.4)
    assert ((counts > 10) & (counts <= 100)).mean() == pytest.approx(0.1, rel=0.25)


def test_bursts_stay_where_they_are_when_the_rate_is_scaled() -> None:
    bursts = {"process": "mmpp", "burst_ratio": (10.0,), "burst_share": (0.1,), "burst_s": (5.0,)}
    few, many = (instants(poisson(rate, **bursts), 300, 1, "m") / 1e9 for rate in (20, 200))
    began = {int(t) for t in many}
    assert all(int(t) in began for t in few)


def test_a_day_rises_and_falls_around_its_mean_also_across_a_phase() -> None:
    day = {"process": "diurnal", "diurnal_amplitude": 0.8, "diurnal_period_s": 40.0}
    phases = [Traffic(from_s=0, rate_per_s=500, **day), Traffic(from_s=30, rate_per_s=500, **day)]  # type: ignore[arg-type]
    at = instants(phases, 80, 1, "m") / 1e9
    up, down = ((at % 40) < 20).sum(), ((at % 40) >= 20).sum()
    assert up / 40 == pytest.approx(500 * (1 + 0.8 * 2 / np.pi), rel=0.04)
    assert down / 40 == pytest.approx(500 * (1 - 0.8 * 2 / np.pi), rel=0.08)


@pytest.mark.parametrize("ramp_s", [0.0, 4.0])
def test_a_flash_crowd_comes_and_goes_when_it_should(ramp_s: float) -> None:
    crowd = {"flash_at_s": 30.0, "flash_s": 10.0, "flash_factor": 5.0, "flash_ramp_s": ramp_s}
    at = instants(poisson(1000, process="flash", **crowd), 100, 1, "m") / 1e9
    base = 1000 * 100 / (100 + 4 * 10)
    assert (at < 30).sum() / 30 == pytest.approx(base, rel=0.05)
    assert (at >= 44).sum() / 56 == pytest.approx(base, rel=0.05)
    assert ((at >= 30 + ramp_s) & (at < 40)).sum() / (10 - ramp_s) == pytest.approx(5 * base, rel=0.05)
    if ramp_s:
        first_half = ((at >= 30) & (at < 32)).sum() / 2
        assert first_half == pytest.approx(2 * base, rel=0.1)


def test_a_flash_crowd_outside_of_a_phase_changes_nothing_in_it() -> None:
    crowd = {"process": "flash", "flash_at_s": 50.0, "flash_s": 10.0, "flash_factor": 20.0}
    phases = [Traffic(from_s=0, rate_per_s=100, **crowd), Traffic(from_s=50, rate_per_s=100, **crowd)]  # type: ignore[arg-type]
    at = instants(phases, 100, 1, "m") / 1e9
    assert (at < 50).sum() / 50 == pytest.approx(100, rel=0.07)
    assert (at < 25).sum() == pytest.approx((at < 50).sum() / 2, rel=0.1)
    assert (at >= 50).sum() / 50 == pytest.approx(100, rel=0.07)


@pytest.mark.parametrize("settings", [{"process": "poisson"}, {"process": "gamma", "cv": 4.0}, *VARYING[:4]])
def test_a_million_arrivals_are_drawn_in_full(settings: dict[str, object]) -> None:
    at = instants(poisson(5000, **settings), 200, 1, "m")
    assert len(at) == pytest.approx(1_000_000, rel=0.2)

"""The load meter finds rate, burstiness and mix of what arrives, and follows when they change."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from cotenant.domain import NS_PER_MS, NS_PER_S, LoadEstimate, ModelLoad, Request
from cotenant.workload.arrivals import Instants, instants, merged
from cotenant.workload.characterise import OnlineLoadMeter
from cotenant.workload.traffic import Traffic

LOOK_EVERY_NS = 100 * NS_PER_MS


def request(model: str, at: int, rows: int = 1) -> Request:
    return Request(id=f"{model}-{at}", model=model, arrived_at=at, deadline_at=None, rows=rows)


def gamma(rate: float, cv: float = 1.0, from_s: float = 0.0) -> Traffic:
    return Traffic(from_s=from_s, rate_per_s=rate, process="gamma", cv=cv)


def looks(
    phases: list[Traffic], duration_s: float, *, from_s: float = 1.0, seed: int = 1
) -> Iterator[ModelLoad]:
    """What the meter says of one model every 100 ms from `from_s` on, when something has arrived."""
    meter = OnlineLoadMeter()
    look_at = int(from_s * NS_PER_S)
    for at in instants(phases, duration_s, seed, "m").tolist():
        while look_at <= at:
            yield meter.estimate(look_at).models["m"]
            look_at += LOOK_EVERY_NS
        meter.arrived(request("m", at))


def estimate_after(streams: dict[str, Instants], at: int, rows: dict[str, int] | None = None) -> LoadEstimate:
    meter = OnlineLoadMeter()
    names = list(streams)
    for instant, index in zip(*(a.tolist() for a in merged(list(streams.values()))), strict=True):
        meter.arrived(request(names[index], instant, (rows or {}).get(names[index], 1)))
    return meter.estimate(at)


# --- rate -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [20.0, 200.0, 2000.0])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_rate_of_poisson_arrivals_is_found_and_kept(rate: float, seed: int) -> None:
    found = [look.rate_per_s for look in looks([gamma(rate)], 60.0, from_s=20.0, seed=seed)]
    five_sigma = 5 * (rate / 10.0) ** 0.5  # variance of counts decayed over 5 s: rate / 2 tau
    assert np.mean(found) == pytest.approx(rate, rel=0.1)
    assert min(found) > rate - five_sigma
    assert max(found) < rate + five_sigma


def test_a_stream_that_has_only_begun_is_not_taken_for_a_slow_one() -> None:
    after_2_s = next(looks([gamma(200.0)], 3.0, from_s=2.0))
    assert after_2_s.rate_per_s == pytest.approx(200.0, rel=0.2)


@pytest.mark.parametrize(("before", "after"), [(20.0, 200.0), (200.0, 20.0)])
def test_after_a_step_of_the_rate_most_of_it_is_seen_in_5_s_and_all_of_it_in_20_s(
    before: float, after: float
) -> None:
    phases = [gamma(before), gamma(after, from_s=40.0)]
    found = [look.rate_per_s for look in looks(phases, 80.0, from_s=30.0)]
    per_s = NS_PER_S // LOOK_EVERY_NS
    assert np.mean(found[: 10 * per_s]) == pytest.approx(before, rel=0.1)
    assert 0.5 < (found[15 * per_s] - before) / (after - before) < 0.8
    assert np.mean(found[30 * per_s :]) == pytest.approx(after, rel=0.1)


def test_a_stream_that_stops_fades() -> None:
    stream = {"m": instants([gamma(100.0)], 20.0, 1, "m")}
    last_at = int(stream["m"][-1])
    rates = [
        estimate_after(stream, last_at + after_s * NS_PER_S).models["m"].rate_per_s for after_s in (0, 5, 60)
    ]
    assert rates[0] == pytest.approx(100.0, rel=0.2)
    assert rates[1] == pytest.approx(rates[0] / np.e, rel=0.03)
    assert 0.0 <= rates[2] < 0.01


def test_the_rate_counts_rows() -> None:
    stream = {"m": instants([gamma(100.0)], 30.0, 1, "m")}
    single, octet = (estimate_after(stream, 30 * NS_PER_S, {"m": rows}).models["m"] for rows in (1, 8))
    assert octet.rate_per_s == pytest.approx(8 * single.rate_per_s)


# --- burstiness -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cv", [0.25, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("rate", [30.0, 300.0])
def test_the_variation_of_gamma_gaps_is_found_at_any_rate(cv: float, rate: float) -> None:
    found = [look.cv for look in looks([gamma(rate, cv)], 90.0, from_s=30.0)]
    assert np.mean(found) == pytest.approx(cv, rel=0.2)


def test_a_clockwork_has_no_variation() -> None:
    stream = {"m": np.arange(0, 10 * NS_PER_S, 10 * NS_PER_MS)}
    found = estimate_after(stream, 10 * NS_PER_S).models["m"]
    assert found.cv == pytest.approx(0.0, abs=1e-6)
    assert found.rate_per_s == pytest.approx(100.0, rel=0.02)


def test_a_stream_that_turns_bursty_is_seen_to() -> None:
    phases = [gamma(100.0, 0.25), gamma(100.0, 2.0, from_s=30.0)]
    found = [look.cv for look in looks(phases, 60.0, from_s=20.0)]
    per_s = NS_PER_S // LOOK_EVERY_NS
    assert np.mean(found[: 10 * per_s]) < 0.35
    assert np.mean(found[20 * per_s :]) > 1.4


# --- mix ------------------------------------------------------------------------------------------------


def test_the_mix_adds_up_and_matches_the_rates() -> None:
    rates = {"often": 120.0, "seldom": 60.0, "rarely": 20.0}
    streams = {name: instants([gamma(rate)], 30.0, 2, name) for name, rate in rates.items()}
    models = estimate_after(streams, 30 * NS_PER_S).models
    assert sum(load.mix for load in models.values()) == pytest.approx(1.0)
    for name, rate in rates.items():
        assert models[name].mix == pytest.approx(rate / 200.0, abs=0.05)


def test_one_models_traffic_does_not_touch_anothers_rate_and_variation() -> None:
    calm = instants([gamma(50.0)], 30.0, 2, "calm")
    wild = instants([gamma(500.0, 3.0)], 30.0, 2, "wild")
    alone = estimate_after({"calm": calm}, 30 * NS_PER_S).models["calm"]
    beside = estimate_after({"calm": calm, "wild": wild}, 30 * NS_PER_S).models["calm"]
    assert (beside.rate_per_s, beside.cv) == (alone.rate_per_s, alone.cv)
    assert beside.mix < 0.2 < alone.mix == 1.0


# --- lanes ----------------------------------------------------------------------------------------------


def run_lane(meter: OnlineLoadMeter, *, runs: int, run_ns: int, gap_ns: int) -> int:
    """One lane of two works `runs` times, with a gap in between; returns the instant of the end."""
    at = 0
    for _ in range(runs):
        meter.lanes_busy(1, 2, at)
        meter.lanes_busy(0, 2, at + run_ns)
        at += run_ns + gap_ns
    return at


@pytest.mark.parametrize(("gap_ms", "low", "high"), [(0, 0.95, 1.0), (50, 0.0, 0.05)])
def test_a_lane_taken_at_once_counts_as_refilled_and_one_left_idle_does_not(
    gap_ms: int, low: float, high: float
) -> None:
    meter = OnlineLoadMeter()
    end_at = run_lane(meter, runs=100, run_ns=20 * NS_PER_MS, gap_ns=gap_ms * NS_PER_MS)
    assert low <= meter.estimate(end_at).refill <= high


@pytest.mark.parametrize(("run_ms", "gap_ms", "share"), [(10, 0, 0.5), (10, 10, 0.25), (5, 45, 0.05)])
def test_busy_is_the_recent_share_of_lanes_in_use(run_ms: int, gap_ms: int, share: float) -> None:
    meter = OnlineLoadMeter()
    runs = 40_000 // (run_ms + gap_ms)
    end_at = run_lane(meter, runs=runs, run_ns=run_ms * NS_PER_MS, gap_ns=gap_ms * NS_PER_MS)
    assert meter.estimate(end_at).busy == pytest.approx(share, rel=0.05)


# --- edges ----------------------------------------------------------------------------------------------


def test_before_anything_arrives_nothing_is_claimed() -> None:
    for at in (0, NS_PER_S, 10**18):
        found = OnlineLoadMeter().estimate(at)
        assert found == LoadEstimate(models={}, refill=0.0, busy=0.0)


def test_one_arrival_and_simultaneous_arrivals_give_finite_figures() -> None:
    for n in (1, 2, 1000):
        found = estimate_after({"m": np.zeros(n, np.int64)}, 0).models["m"]
        assert np.isfinite([found.rate_per_s, found.cv, found.mix]).all()
        assert found.rate_per_s > 0
        assert found.mix == 1.0


def test_the_same_calls_give_the_same_estimate() -> None:
    def figures() -> list[ModelLoad]:
        return list(looks([gamma(100.0, 2.0)], 10.0, from_s=0.5))

    assert figures() == figures()

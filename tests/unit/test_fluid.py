"""The fluid predictor: what it makes of overlap, what it learns from it, and that nothing throws it off."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from cotenant.domain import (
    NS_PER_MS,
    NS_PER_S,
    Candidate,
    InFlight,
    LaneUse,
    LoadEstimate,
    Observation,
    Overlap,
    Prediction,
    Snapshot,
    Variant,
)
from cotenant.ports import LaneInfo
from cotenant.predict.fluid import FluidConfig, FluidPredictor
from cotenant.predict.pair_map import ReducedMap
from cotenant.predict.row_kernels import FLOOR
from cotenant.profile.features import FeatureTable, WorkloadFeatures

A, B, C = (Variant(name, 1) for name in "abc")
SOLO_MS = {A: 10, B: 8, C: 20}
LANES = [LaneInfo(index=i, units=(0,)) for i in range(3)]
NOW = 100 * NS_PER_S


def table() -> FeatureTable:
    found = FeatureTable(("dram",), ("mb",))
    for variant, solo in SOLO_MS.items():
        found.add(
            WorkloadFeatures(
                variant=variant,
                share=1.0,
                solo_ns=solo * NS_PER_MS,
                demand=(0.1 * solo / 4,),
                statics=(solo,),
            )
        )
    return found


def predictor(config: FluidConfig | None = None) -> FluidPredictor:
    features = table()
    return FluidPredictor(features, ReducedMap(features).begin(), lanes=LANES, config=config)


def ran(
    variant: Variant, at: int, span_ms: float, beside: dict[Variant, tuple[float, float]], **more: Any
) -> Observation:
    """A run of lane 0 that began at `at` beside others, each from and to so many ms after its start."""
    overlaps = tuple(
        Overlap(n, other, at + round(begin * NS_PER_MS), at + round(end * NS_PER_MS), 1 + n, 1.0)
        for n, (other, (begin, end)) in enumerate(beside.items())
    )
    values: dict[str, Any] = {
        "dispatch_id": 1, "variant": variant, "rows": 1, "lane": 0, "share": 1.0, "decided_at": at,
        "started_at": at, "ended_at": at + round(span_ms * NS_PER_MS), "first_segment": 0, "end_segment": 1,
        "segment_ended_at": (), "predictions": (), "overlaps": overlaps,
    }  # fmt: skip
    return Observation(**{**values, **more})


def flight(variant: Variant, lane: int, started_at: int) -> InFlight:
    return InFlight(
        dispatch_id=lane, variant=variant, lane=lane, share=1.0, decided_at=started_at,
        started_at=started_at, segment=0, end_segment=1, boundary_at=None,
    )  # fmt: skip


def slowdown(of: FluidPredictor, victim: Variant, other: Variant) -> float:
    """What is expected for full overlap."""
    solo = SOLO_MS[victim]
    return of.given_overlap(ran(victim, NOW, solo, {other: (0, solo)})) / (solo * NS_PER_MS)


def finish_ms(of: FluidPredictor, snapshot: Snapshot, candidate: Candidate) -> float:
    return (of.predict(snapshot, [candidate]).finish_at[0][0] - snapshot.at) / NS_PER_MS


def taught(sigma: float, n: int = 300, *, overlap: float = 1.0) -> FluidPredictor:
    """Taught that a is `sigma` times slower beside b, from runs of which only a share was beside b."""
    of = predictor()
    work = SOLO_MS[A]
    beside_ms = overlap * work * sigma  # wall time beside b, in which overlap x work gets done
    for n_run in range(n):
        span = beside_ms + (1 - overlap) * work
        at = NOW + n_run * 50 * NS_PER_MS
        of.learn(ran(A, at, span, {B: (0, beside_ms)}))
        of.learn(ran(A, at + 25 * NS_PER_MS, work, {}))
    return of


@pytest.mark.parametrize("overlap", [1.0, 0.5, 0.2])
def test_the_slowdown_of_a_pair_is_learned_from_runs_that_overlapped_in_part(overlap: float) -> None:
    of = taught(1.8, overlap=overlap)
    assert slowdown(of, A, B) == pytest.approx(1.8, rel=0.08)


def test_a_run_beside_nobody_is_expected_to_take_its_solo_span() -> None:
    of = taught(1.8)
    alone = of.given_overlap(ran(A, NOW + 20 * NS_PER_S, 10, {}))
    assert alone == pytest.approx(SOLO_MS[A] * NS_PER_MS, rel=0.03)


def test_a_partial_overlap_slows_in_part() -> None:
    of = taught(2.0)
    at = NOW + 15 * NS_PER_S
    candidate = Candidate(variant=A, lane=0, start_at=at)
    alone = finish_ms(of, Snapshot(at=at, in_flight=()), candidate)
    fresh = finish_ms(of, Snapshot(at=at, in_flight=(flight(B, 1, at),)), candidate)
    nearly_over = Snapshot(at=at, in_flight=(flight(B, 1, at - 7 * NS_PER_MS),))
    assert alone < finish_ms(of, nearly_over, candidate) < fresh
    assert fresh < 1.05 * alone * slowdown(of, A, B)


def test_a_candidate_slows_what_is_in_flight() -> None:
    of = taught(2.0)
    at = NOW + 15 * NS_PER_S
    snapshot = Snapshot(at=at, in_flight=(flight(A, 1, at),))
    forecast = of.predict(snapshot, [Candidate(variant=B, lane=0, start_at=at)])
    assert forecast.in_flight_finish_at[0][0][0] > 1.3 * (forecast.baseline_finish_at[0][0] - at) + at


def test_a_staged_run_begins_when_the_one_before_it_ends() -> None:
    of = predictor()
    snapshot = Snapshot(at=NOW, in_flight=(flight(C, 0, NOW),))
    behind = finish_ms(of, snapshot, Candidate(variant=A, lane=0, start_at=NOW + 20 * NS_PER_MS))
    assert behind == pytest.approx(30, rel=0.02)


def test_likely_joiners_make_it_later_and_are_left_out_on_demand() -> None:
    load = LoadEstimate(
        models={}, refill=0.9, busy=0.9, fill_per_s=500.0, span_ns=2e7, variants=((C, 1.0),),
        lanes=tuple(LaneUse(lane=i, fill_per_s=500.0, refill=0.9) for i in range(3)),
    )  # fmt: skip
    candidate = Candidate(variant=A, lane=0, start_at=NOW)
    quiet, busy = Snapshot(at=NOW, in_flight=()), Snapshot(at=NOW, in_flight=(), load=load)
    assert finish_ms(predictor(), busy, candidate) > 1.1 * finish_ms(predictor(), quiet, candidate)
    blind = predictor(FluidConfig(joiners=False))
    assert finish_ms(blind, busy, candidate) == finish_ms(blind, quiet, candidate)


def test_a_change_of_pace_is_followed_and_fades_when_nothing_is_seen() -> None:
    of = predictor()
    for n in range(100):
        of.learn(ran(A, NOW + n * 100 * NS_PER_MS, 30, {}))
    end = NOW + 10 * NS_PER_S
    slow, later = of.solo(A, end)[0], of.solo(A, end + 120 * NS_PER_S)[0]
    assert slow == pytest.approx(30 * NS_PER_MS, rel=0.1)
    assert later == pytest.approx(10 * NS_PER_MS, rel=0.05)


def test_pessimism_about_a_pair_fades_when_it_is_not_seen() -> None:
    of = taught(4.0, n=20)
    of.learn(ran(A, NOW + 3600 * NS_PER_S, 10, {}))  # an hour later
    at = NOW + 3600 * NS_PER_S + NS_PER_S
    expected = of.given_overlap(ran(A, at, 10, {B: (0, 10)}))
    assert expected < 0.8 * 4.0 * SOLO_MS[A] * NS_PER_MS


def test_what_is_impossible_or_not_finite_is_refused_and_counted() -> None:
    of = predictor()
    before = of.state()
    for broken in (
        {"ended_at": NOW - 1},
        {"ended_at": math.nan},
        {"started_at": NOW - 5},
        {"end_segment": 0},
    ):
        assert of.learn(ran(A, NOW, 10, {}, **broken)) is None
    assert of.n_refused == 4
    of.n_refused = 0
    assert of.state() == before


def test_a_state_of_other_features_or_a_damaged_one_is_refused_and_changes_nothing() -> None:
    of = taught(1.5, n=20)
    features = table()
    features.add(WorkloadFeatures(variant=A, share=1.0, solo_ns=1.0, demand=(0.5,), statics=(1.0,)))
    other = FluidPredictor(features, ReducedMap(features).begin(), lanes=LANES)
    before = other.state()
    with pytest.raises(ValueError, match="other measured features"):
        other.restore(of.state())
    with pytest.raises(ValueError, match="cannot be read"):
        other.restore(of.state()[:-20])
    assert other.state() == before


def test_a_restored_predictor_answers_and_learns_the_same() -> None:
    of = taught(1.5, n=50)
    again = predictor()
    again.restore(of.state())
    at = NOW + 4 * NS_PER_S
    snapshot = Snapshot(at=at, in_flight=(flight(B, 1, at),))
    candidate = Candidate(variant=A, lane=0, start_at=at)
    for _ in range(3):
        assert of.predict(snapshot, [candidate]) == again.predict(snapshot, [candidate])
        for each in (of, again):
            each.learn(ran(A, at, 17, {B: (0, 9)}))


def test_two_hundred_thousand_steps_of_anything_leave_it_finite_and_bounded() -> None:
    """Outliers, stalls, constant inputs, and long times without excitation."""
    of = predictor()
    rng = np.random.default_rng(3)
    at = NOW
    kinds = rng.choice(4, 200_000, p=(0.4, 0.3, 0.2, 0.1))
    factors = np.exp(rng.standard_t(2, 200_000)).clip(1e-4, 1e4)
    for n in range(200_000):
        kind = kinds[n]
        beside = {B: (0.0, 8.0)} if kind != 2 else {}
        span = 15.0 if kind == 1 else 10.0 * factors[n]
        at += 10 * NS_PER_MS if kind != 3 else 3 * NS_PER_S
        of.learn(ran(A if kind != 3 else C, at, span, beside))
    estimator = of.estimator
    assert np.isfinite(estimator.theta).all()
    assert np.isfinite(estimator.root).all()
    assert np.isfinite(estimator.terms.level).all()
    assert np.abs(estimator.theta).max() < 50
    assert (estimator.root**2).sum() < 2 * len(estimator.theta)
    assert estimator.n_clipped > 0
    assert FLOOR < slowdown(of, A, B) < 20
    issued = of.predict(Snapshot(at=at, in_flight=()), [Candidate(variant=A, lane=0, start_at=at)])
    assert np.isfinite(issued.finish_at[0]).all()


def test_upper_quantiles_cover_what_they_say() -> None:
    """Log-normal spans: about as many as promised end by each quantile issued."""
    of = predictor()
    rng = np.random.default_rng(5)
    n_within = np.zeros(3)
    for n in range(4000):
        at = NOW + n * 30 * NS_PER_MS
        forecast = of.predict(Snapshot(at=at, in_flight=()), [Candidate(variant=A, lane=0, start_at=at)])
        span = 10 * math.exp(0.2 * rng.standard_normal())
        issued = Prediction(
            issued_at=at, finish_at=tuple(forecast.finish_at[0]), slo_level=0.99, version=1, corunners=0,
            features=forecast.features[0],
        )  # fmt: skip
        if n >= 1000:
            n_within += np.array(issued.finish_at[1:4]) >= at + span * NS_PER_MS
        of.learn(ran(A, at, span, {}, predictions=(issued,)))
    assert n_within / 3000 == pytest.approx([0.9, 0.95, 0.99], abs=0.015)


def test_a_resumed_dispatch_has_only_its_rest_left_before_it_has_passed_a_boundary() -> None:
    features = FeatureTable(("dram",), ("mb",))
    features.add(
        WorkloadFeatures(
            variant=A, share=1.0, solo_ns=10.0 * NS_PER_MS, demand=(0.1,), statics=(1.0,),
            segment_ns=(6.0 * NS_PER_MS, 4.0 * NS_PER_MS), segment_demand=((0.1,), (0.1,)),
        )
    )  # fmt: skip
    fluid = FluidPredictor(features, ReducedMap(features).begin(), lanes=LANES)
    whole = flight(A, 0, NOW)
    resumed = InFlight(
        dispatch_id=1, variant=A, lane=1, share=1.0, decided_at=NOW, started_at=NOW, segment=1, end_segment=2,
        boundary_at=None,
    )  # fmt: skip
    ends = [
        fluid.predict(Snapshot(at=NOW, in_flight=(one,), load=None), []).baseline_finish_at[0][0] - NOW
        for one in (whole, resumed)
    ]
    assert ends[1] == pytest.approx(0.4 * ends[0], rel=0.01)

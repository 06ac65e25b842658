"""The regression that is fitted before the run: what it says, and what it never learns."""

from __future__ import annotations

import math

import pytest
from msgspec import structs

from cotenant.domain import NS_PER_MS, Candidate, InFlight, ModelSpec, Snapshot, SoloProfile, Variant
from cotenant.predict.zoo.static_linear import StaticLinear
from cotenant.profile.features import FeatureTable, WorkloadFeatures
from cotenant.profile.pairs import Pair, coruns_of_pairs, steady
from cotenant.testing import TableProfiles

A, B = Variant("a", 1), Variant("b", 1)
SOLO_MS = {"a": 10.0, "b": 20.0}
DEMAND = {"a": (0.2, 0.6), "b": (0.5, 0.3)}
SLOWDOWN = {A: 1.0 + 0.5 * 0.3 + 0.1, B: 1.0 + 0.5 * 0.6 + 0.1}
"""Of each beside the other; noisy pairs lie around it."""
NOISE = (0.9, 1.0, 1.0, 1.0, 1.3)


def table() -> FeatureTable:
    found = FeatureTable(("compute", "bandwidth"))
    for name, demand in DEMAND.items():
        found.add(
            WorkloadFeatures(
                variant=Variant(name, 1), share=1.0, solo_ns=SOLO_MS[name] * NS_PER_MS, demand=demand
            )
        )
    return found


def profiles(slo_percentile: float = 0.99) -> TableProfiles:
    specs = {
        name: ModelSpec(name=name, slo_ns=None, slo_percentile=slo_percentile, n_segments=4)
        for name in SOLO_MS
    }
    return TableProfiles(specs, SOLO_MS)


def fitted(slo_percentile: float = 0.99) -> StaticLinear:
    predictor = StaticLinear(table(), (), profiles(slo_percentile))
    predictor.fit(
        [
            steady(victim, [other], SLOWDOWN[victim] * factor, SOLO_MS[victim.model] * NS_PER_MS, 50_000)
            for victim, other in ((A, B), (B, A))
            for factor in NOISE
            for _ in range(10)
        ]
    )
    return predictor


def flight(variant: Variant, started_at: int = 0, segment: int = 0) -> InFlight:
    return InFlight(
        dispatch_id=1, variant=variant, lane=0, share=1.0, decided_at=started_at, started_at=started_at,
        segment=segment, end_segment=4, boundary_at=None,
    )  # fmt: skip


def test_one_factor_counts_for_a_whole_run_and_for_what_is_left_of_those_it_joins():
    predictor, at = fitted(), 8 * NS_PER_MS
    asked = predictor.predict(
        Snapshot(at=at, in_flight=(flight(B),)), [Candidate(variant=A, lane=1, start_at=at)]
    )
    assert asked.finish_at[0][0] - at == pytest.approx(SLOWDOWN[A] * 10e6 + 50_000, rel=0.06)
    beside = asked.in_flight_finish_at[0][0][0]
    assert beside == pytest.approx(at + SLOWDOWN[B] * (20e6 - at), rel=0.06)
    assert asked.baseline_finish_at[0][0] == pytest.approx(20e6, rel=1e-6)


def test_the_margin_is_the_quantile_of_the_fits_residuals_for_every_model():
    predictor, at = fitted(), 0
    found = {}
    for victim, other in ((A, B), (B, A)):
        asked = predictor.predict(
            Snapshot(at=at, in_flight=(flight(other),)), [Candidate(variant=victim, lane=1, start_at=at)]
        )
        median, *_, at_99, own = asked.finish_at[0]
        assert own == at_99
        found[victim] = at_99 / median
    assert found[A] == pytest.approx(found[B], rel=1e-6)
    assert math.log(found[A]) == pytest.approx(math.log(1.3), abs=0.08)


def test_a_model_with_a_level_of_its_own_gets_its_own_column():
    predictor = fitted(slo_percentile=0.5)
    asked = predictor.predict(
        Snapshot(at=0, in_flight=(flight(B),)), [Candidate(variant=A, lane=1, start_at=0)]
    )
    assert asked.finish_at[0][-1] < asked.finish_at[0][1]


def test_alone_the_profile_holds():
    predictor = fitted()
    spans = predictor.solo(A, 0)
    assert spans[0] == pytest.approx(10e6 + 50_000, rel=1e-6)
    assert 10e6 < spans[-1] < 1.2 * 10e6
    asked = predictor.predict(Snapshot(at=0, in_flight=()), [Candidate(variant=A, lane=0, start_at=0)])
    assert asked.finish_at[0] == pytest.approx(spans, rel=1e-3)


def test_a_run_that_went_on_from_a_boundary_has_only_the_rest_to_do():
    features = table()
    quarters = WorkloadFeatures(
        variant=A, share=1.0, solo_ns=10e6, demand=DEMAND["a"], segment_ns=(2.5e6,) * 4,
        segment_demand=(DEMAND["a"],) * 4,
    )  # fmt: skip
    features.add(quarters)
    predictor = StaticLinear(features, (), profiles())
    resumed = predictor.predict(Snapshot(at=0, in_flight=(flight(A, segment=3),)), [])
    assert resumed.baseline_finish_at[0][0] == pytest.approx(2.5e6, rel=1e-6)


def test_it_learns_nothing():
    predictor = fitted()
    before, version = predictor.state(), predictor.version
    slow = steady(A, [B], 9.0, 10e6)
    assert predictor.learn(slow) is None
    assert predictor.learn(structs.replace(slow, ended_at=slow.started_at)) is None
    assert predictor.n_refused == 1
    assert (predictor.state(), predictor.version) == (before, version)


def test_a_model_loaded_anew_is_known_by_its_new_profile():
    predictor = fitted()
    spec = ModelSpec(name="a", slo_ns=None, n_segments=4)
    profile = SoloProfile(variant=A, share=1.0, median_ns=30 * NS_PER_MS, spread_ns=NS_PER_MS, n_samples=30)
    predictor.loaded(spec, [profile])
    assert predictor.prior(A) == 30 * NS_PER_MS
    assert predictor.solo(A, 0)[0] == pytest.approx(30e6 + 50_000, rel=1e-6)


def test_pairs_stand_for_demands_where_none_were_measured():
    bare = FeatureTable()
    for name, ms in SOLO_MS.items():
        bare.add(bare.bare(Variant(name, 1), ms * NS_PER_MS))
    ratios = {(A, A): 1.5, (A, B): 1.1, (B, A): 2.0, (B, B): 1.2}
    found = coruns_of_pairs([Pair(v, a, ratio) for (v, a), ratio in ratios.items()], bare)
    assert found.features.of(A).demand == pytest.approx((0.3, 0.75))
    predictor = StaticLinear(found.features, ())
    predictor.fit(found.observations)
    for observation in found.observations:
        measured = observation.ended_at - observation.started_at
        assert predictor.given_overlap(observation) == pytest.approx(measured, rel=0.25)


def test_measured_demands_are_kept_beside_pairs():
    found = coruns_of_pairs([Pair(A, B, 1.4)], table())
    assert found.features.of(A).demand == DEMAND["a"]

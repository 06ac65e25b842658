"""The solo predictor keeps the contract of `Predictor` and `Learner`: pure, monotone, calibrated."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from itertools import pairwise, permutations
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cotenant.domain import (
    LEVELS,
    NS_PER_MS,
    NS_PER_S,
    Candidate,
    InFlight,
    ModelSpec,
    Observation,
    Prediction,
    Snapshot,
    SoloProfile,
    Variant,
)
from cotenant.predict.solo import SoloConfig, SoloPredictor
from cotenant.testing import TableProfiles

SOLO_MS = {"a": 10.0, "b": 3.0}
A = Variant("a", 1)
B = Variant("b", 1)
VARIANTS = [Variant(model, rows) for model in SOLO_MS for rows in (1, 2, 4, 8)]


def specs(slo_percentile: float = 0.99) -> dict[str, ModelSpec]:
    return {
        name: ModelSpec(
            name=name,
            slo_ns=50 * NS_PER_MS,
            slo_percentile=slo_percentile,
            max_batch=8,
            row_buckets=(1, 2, 4, 8),
        )
        for name in SOLO_MS
    }


def predictor(slo_percentile: float = 0.99, config: SoloConfig | None = None) -> SoloPredictor:
    return SoloPredictor(TableProfiles(specs(slo_percentile), SOLO_MS), config or SoloConfig())


def seen(
    of: SoloPredictor, at: int, span_ns: float, *, variant: Variant = A, wait_ns: int = 0, **other: Any
) -> Observation:
    """What the scheduler would hand over: a dispatch decided at `at` with the prediction issued then."""
    forecast = of.predict(Snapshot(at=at, in_flight=()), [Candidate(variant=variant, lane=0, start_at=at)])
    issued = Prediction(
        issued_at=at,
        finish_at=tuple(forecast.finish_at[0]),
        slo_level=0.99,
        version=forecast.version,
        corunners=0,
    )
    values: dict[str, Any] = {
        "dispatch_id": 1, "variant": variant, "rows": variant.rows, "lane": 0, "share": 1.0,
        "decided_at": at, "started_at": at + wait_ns, "ended_at": at + wait_ns + span_ns,
        "first_segment": 0, "end_segment": 1, "segment_ended_at": (), "predictions": (issued,),
        "overlaps": (),
    }  # fmt: skip
    return Observation(**{**values, **other})


def teach(of: SoloPredictor, spans_ms: Iterable[float], *, at: int = 0, variant: Variant = A) -> int:
    """Runs back to back from `at` on; returns the instant of the last end."""
    for span_ms in spans_ms:
        span = int(span_ms * NS_PER_MS)
        of.learn(seen(of, at, span, variant=variant))
        at += span
    return at


def answers(of: SoloPredictor, at: int) -> list[list[int]]:
    """Everything that can be asked at an instant."""
    return [list(of.solo(variant, at)) for variant in VARIANTS]


def flight(dispatch_id: int, variant: Variant, started_at: int | None) -> InFlight:
    return InFlight(
        dispatch_id=dispatch_id,
        variant=variant,
        lane=dispatch_id,
        share=1.0,
        decided_at=0,
        started_at=started_at,
        segment=0,
        end_segment=1,
        boundary_at=None,
    )


# --- before anything is learned -------------------------------------------------------------------------


def test_with_nothing_learned_the_median_is_the_profiles() -> None:
    fresh = predictor()
    assert fresh.version == 0
    for variant in VARIANTS:
        measured = fresh.profiles.solo(variant).median_ns
        assert fresh.prior(variant) == fresh.solo(variant, 0)[0] == measured


class OneVariant(TableProfiles):
    """Only `a[2]` was measured."""

    def solo(self, variant: Variant) -> SoloProfile:
        if variant != Variant("a", 2):
            raise KeyError(variant)
        return super().solo(variant)


def test_a_variant_that_was_never_measured_is_predicted_from_the_nearest_of_its_model() -> None:
    partly = SoloPredictor(OneVariant(specs(), SOLO_MS))
    measured = partly.prior(Variant("a", 2))
    assert [partly.prior(Variant("a", rows)) for rows in (1, 4, 8)] == [
        measured // 2, 2 * measured, 4 * measured
    ]  # fmt: skip


def test_a_model_of_which_nothing_was_measured_is_predicted_finite_and_then_learned() -> None:
    blind = SoloPredictor(OneVariant(specs(), SOLO_MS))
    before = blind.solo(B, 0)
    assert all(0 < span < 3600 * NS_PER_S for span in before)
    at = teach(blind, [40.0] * 100, variant=B)
    assert blind.solo(B, at)[0] == pytest.approx(40 * NS_PER_MS, rel=0.02)


def test_a_variant_never_seen_leans_on_what_was_learned_of_its_model() -> None:
    taught = predictor()
    at = teach(taught, [20.0] * 50)
    other = Variant("a", 8)
    assert taught.solo(other, at)[0] == pytest.approx(2 * taught.prior(other), rel=0.1)
    assert taught.solo(B, at)[0] == taught.prior(B)


def test_an_unknown_model_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        predictor().solo(Variant("nobody", 1), 0)


# --- a pure function of state and arguments -------------------------------------------------------------


def taught_at_random(seed: int, n: int = 150) -> tuple[SoloPredictor, int]:
    rng = random.Random(seed)
    taught, at = predictor(), 0
    for _ in range(n):
        variant = rng.choice(VARIANTS)
        span = taught.prior(variant) * math.exp(rng.gauss(0.3, 0.4))
        taught.learn(seen(taught, at, int(span), variant=variant, wait_ns=rng.randrange(NS_PER_MS)))
        at += rng.randrange(2 * NS_PER_S)
    return taught, at


def test_a_restored_checkpoint_predicts_the_same_now_and_after_learning_more() -> None:
    original, at = taught_at_random(1)
    copy = predictor()
    copy.restore(original.state())
    assert copy.version == original.version > 0
    for later_s in (0, 1, 7, 300):
        assert answers(copy, at + later_s * NS_PER_S) == answers(original, at + later_s * NS_PER_S)
    for of in (original, copy):
        teach(of, [31.0, 2.0, 17.0] * 20, at=at)
    assert answers(copy, at + 5 * NS_PER_S) == answers(original, at + 5 * NS_PER_S)
    assert copy.state() == original.state()


def test_restoring_replaces_what_was_learned_before() -> None:
    fresh, other = predictor(), predictor()
    at = teach(other, [90.0] * 50)
    other.solo(A, at)
    other.restore(fresh.state())
    assert answers(other, at) == answers(fresh, at)


@pytest.mark.parametrize("state", [b"", b"not a state", msgspec.msgpack.encode({"format": 99}), b"\x81\xa1"])
def test_a_state_that_cannot_be_used_is_refused_and_the_old_one_kept(state: bytes) -> None:
    taught, at = taught_at_random(2, 30)
    before = answers(taught, at)
    with pytest.raises(ValueError, match="learned state"):
        taught.restore(state)
    assert answers(taught, at) == before


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1 << 20), steps=st.lists(st.integers(0, 3), max_size=60))
def test_asking_changes_no_answer_whatever_was_asked_before(seed: int, steps: list[int]) -> None:
    """Answers are cached inside; they must equal those of a predictor that was never asked anything."""
    rng = random.Random(seed)
    busy, at = predictor(), 0
    for step in steps:
        variant = rng.choice(VARIANTS)
        if step == 0:
            at += rng.randrange(10 * NS_PER_S)
        elif step == 1:
            span = int(busy.prior(variant) * math.exp(rng.gauss(0.0, 0.6)))
            busy.learn(seen(busy, at, span, variant=variant, wait_ns=rng.randrange(NS_PER_MS)))
        asked_at = max(0, at + rng.randrange(-NS_PER_S, NS_PER_S))
        idle = predictor()
        idle.restore(busy.state())
        assert busy.solo(variant, asked_at) == idle.solo(variant, asked_at)


def test_the_order_of_candidates_and_of_what_is_in_flight_does_not_matter() -> None:
    taught, at = taught_at_random(3)
    candidates = [Candidate(variant=v, lane=i, start_at=at + i * NS_PER_MS) for i, v in enumerate(VARIANTS)]
    flights = [flight(1, A, at - NS_PER_MS), flight(2, B, at - NS_PER_S), flight(3, A, None)]
    whole = taught.predict(Snapshot(at=at, in_flight=tuple(flights)), candidates)
    for order in permutations(range(3)):
        snapshot = Snapshot(at=at, in_flight=tuple(flights[i] for i in order))
        found = taught.predict(snapshot, candidates[::-1])
        assert list(found.finish_at)[::-1] == list(whole.finish_at)
        assert [found.baseline_finish_at[order.index(i)] for i in range(3)] == whole.baseline_finish_at
    for i, candidate in enumerate(candidates):
        alone = taught.predict(Snapshot(at=at, in_flight=tuple(flights)), [candidate])
        assert alone.finish_at[0] == whole.finish_at[i]
        assert alone.in_flight_finish_at[0] == whole.in_flight_finish_at[i]


def test_without_candidates_only_the_baseline_is_filled() -> None:
    found = predictor().predict(Snapshot(at=0, in_flight=(flight(1, A, 0),)), [])
    assert list(found.finish_at) == list(found.in_flight_finish_at) == []
    assert len(found.baseline_finish_at) == 1


def test_nothing_is_predicted_to_have_ended_already() -> None:
    overdue = flight(1, A, 0)
    at = 3600 * NS_PER_S
    found = predictor().predict(Snapshot(at=at, in_flight=(overdue,)), [])
    assert all(finish_at > at for finish_at in found.baseline_finish_at[0])


# --- quantiles ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slo_percentile", [0.5, 0.9, 0.93, 0.99, 0.999])
@settings(max_examples=25, deadline=None)
@given(
    spans=st.lists(st.floats(0.01, 10_000.0), max_size=40),
    waits=st.lists(st.integers(0, NS_PER_S), min_size=1, max_size=5),
    idle_s=st.integers(0, 100),
)
def test_quantiles_never_descend_in_the_level(
    slo_percentile: float, spans: list[float], waits: list[int], idle_s: int
) -> None:
    taught, at = predictor(slo_percentile), 0
    for i, span_ms in enumerate(spans):
        span = int(span_ms * NS_PER_MS)
        wait = waits[i % len(waits)]
        taught.learn(seen(taught, at, span, wait_ns=wait))
        at += span + wait
    at += idle_s * NS_PER_S
    found = taught.predict(
        Snapshot(at=at, in_flight=(flight(1, A, at - 5 * NS_PER_MS),)),
        [Candidate(variant=variant, lane=0, start_at=at) for variant in VARIANTS],
    )
    for row in [*found.finish_at, *found.baseline_finish_at]:
        by_level = [finish_at for _, finish_at in sorted(zip((*LEVELS, slo_percentile), row, strict=True))]
        assert by_level == sorted(row)
        assert row[0] > at


@pytest.mark.parametrize("sigma", [0.05, 0.3])
def test_upper_quantiles_cover_about_what_they_claim(sigma: float) -> None:
    rng = random.Random(4)
    taught, at = predictor(), 0
    covered = dict.fromkeys(LEVELS, 0)
    n = 3000
    for _ in range(n):
        observation = seen(taught, at, int(14 * NS_PER_MS * math.exp(rng.gauss(0.0, sigma))))
        for level, finish_at in zip(LEVELS, observation.predictions[0].finish_at, strict=False):
            covered[level] += observation.ended_at <= finish_at
        taught.learn(observation)
        at += 20 * NS_PER_MS
    for level, slack in zip(LEVELS, (0.06, 0.04, 0.03, 0.012), strict=True):
        assert covered[level] / n == pytest.approx(level, abs=slack), (level, covered)


# --- learning and forgetting ----------------------------------------------------------------------------


def test_a_lasting_change_is_followed_and_a_lone_outlier_is_not() -> None:
    taught = predictor()
    at = teach(taught, [10.0] * 50)
    at = teach(taught, [1000.0], at=at)
    assert taught.solo(A, at)[0] < 11 * NS_PER_MS
    at = teach(taught, [25.0] * 60, at=at)
    assert taught.solo(A, at)[0] == pytest.approx(25 * NS_PER_MS, rel=0.05)


def log_excess(of: SoloPredictor, at: int, column: int) -> float:
    """How far a quantile is above that of a predictor that has learned nothing, as a log ratio."""
    return math.log(of.solo(A, at)[column] / predictor().solo(A, at)[column])


@pytest.mark.parametrize(("name", "column"), [("median", 0), ("upper", len(LEVELS))])
def test_after_a_slow_spell_and_then_silence_predictions_return_with_a_half_life_of_10_s(
    name: str, column: int
) -> None:
    taught = predictor()
    end_at = teach(taught, [50.0] * 200)
    slow = log_excess(taught, end_at, column)
    assert slow > 0.9 * math.log(5.0)
    after = [log_excess(taught, end_at + s * NS_PER_S, column) for s in range(0, 121, 5)]
    assert all(later <= earlier for earlier, later in pairwise(after))
    half_life_s = next(s for s in range(60) if log_excess(taught, end_at + s * NS_PER_S, column) <= slow / 2)
    assert 8 <= half_life_s <= 12
    assert after[-1] < 0.01


def test_a_spell_of_slow_hand_overs_is_forgotten_in_silence_too() -> None:
    taught, at = predictor(), 0
    for _ in range(64):
        taught.learn(seen(taught, at, 10 * NS_PER_MS, wait_ns=50 * NS_PER_MS))
        at += 100 * NS_PER_MS
    assert taught.solo(A, at)[0] > 50 * NS_PER_MS
    assert taught.solo(A, at + 120 * NS_PER_S)[0] < 11 * NS_PER_MS


def test_one_slow_first_hand_over_does_not_set_every_prediction() -> None:
    taught = predictor()
    taught.learn(seen(taught, 0, 10 * NS_PER_MS, wait_ns=200 * NS_PER_MS))
    at = teach(taught, [10.0] * 20, at=NS_PER_S)
    assert taught.solo(A, at)[0] < 20 * NS_PER_MS


def test_with_learning_off_nothing_is_learned() -> None:
    fixed = predictor(config=SoloConfig(learns=False))
    at = teach(fixed, [77.0] * 50)
    assert answers(fixed, at) == answers(predictor(), at)
    assert fixed.version == 0


# --- what is refused ------------------------------------------------------------------------------------


def n_refused(of: SoloPredictor) -> int:
    return int(msgspec.msgpack.decode(of.state())["n_refused"])


AT = 5 * NS_PER_S


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"ended_at": AT}, id="no span"),
        pytest.param({"ended_at": AT - 1}, id="negative span"),
        pytest.param({"started_at": AT - 1}, id="before its decision"),
        pytest.param({"ended_at": math.inf}, id="infinite"),
        pytest.param({"ended_at": math.nan}, id="not a number"),
        pytest.param({"first_segment": 1}, id="no segments"),
    ],
)
def test_an_impossible_observation_is_refused_counted_and_changes_nothing(wrong: dict[str, Any]) -> None:
    taught = predictor()
    teach(taught, [12.0] * 20)
    before, version = answers(taught, AT), taught.version
    observation = seen(taught, AT, 12 * NS_PER_MS, **wrong)
    assert taught.learn(observation) is None
    assert taught.version == version
    assert answers(taught, AT) == before
    assert n_refused(taught) == 1
    teach(taught, [12.0], at=AT)
    assert n_refused(taught) == 1


def test_a_preempted_run_teaches_nothing_of_whole_runs() -> None:
    taught = predictor()
    teach(taught, [12.0] * 20)
    before = answers(taught, AT)
    halved = seen(taught, AT, 2 * NS_PER_MS, end_segment=3, segment_ended_at=(AT + 2 * NS_PER_MS,))
    assert taught.learn(halved) is None
    assert answers(taught, AT) == before

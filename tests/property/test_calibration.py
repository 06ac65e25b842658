"""Whatever residuals come in whatever order: bounds are finite, bounded, in order, and survive a restore."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from cotenant.domain import LEVELS
from cotenant.predict.calibrate import Calibrator
from cotenant.predict.calibrate_kernels import LIMIT
from cotenant.predict.drift import DriftDetector

MODELS = ("a", "b")
numbers = st.floats(allow_nan=True, allow_infinity=True)
completions = st.lists(
    st.tuples(
        st.sampled_from(MODELS),
        st.integers(0, 6),
        st.one_of(st.floats(-0.5, 0.5), numbers),
        st.integers(0, 30_000_000_000),
        st.sampled_from(["learn", "learn", "learn", "widen", "widen all", "forget"]),
    ),
    max_size=60,
)


def told(calibrator: Calibrator, events: list[tuple[str, int, float, int, str]], at: int = 0) -> int:
    for model, n, residual, gap, what in events:
        at += gap
        match what:
            case "learn":
                calibrator.learn((model, n), residual, calibrator.offsets((model, n), at), at)
            case "widen":
                calibrator.widen(at, model)
            case "widen all":
                calibrator.widen(at)
            case _:
                calibrator.forget(model)
    return at


def declared(slo_level: float) -> Calibrator:
    calibrator = Calibrator()
    for model in MODELS:
        calibrator.declare(model, 0.1, slo_level)
    return calibrator


@settings(max_examples=200, deadline=None)
@given(events=completions, later=completions, slo_level=st.floats(0.01, 0.9999))
def test_offsets_stay_in_order_and_bounded_and_survive_a_restore(
    events: list[tuple[str, int, float, int, str]],
    later: list[tuple[str, int, float, int, str]],
    slo_level: float,
) -> None:
    one, two = declared(slo_level), declared(slo_level)
    at = told(one, events)
    two.restore(one.state())
    assert told(one, later, at) == told(two, later, at)
    for model in MODELS:
        for n in range(7):
            offsets = one.offsets((model, n), at)
            by_level = sorted(zip((*LEVELS, slo_level), offsets, strict=True))
            assert [value for _, value in by_level] == sorted(offsets)
            assert all(math.isfinite(value) and abs(value) <= LIMIT for value in offsets)
            assert two.offsets((model, n), at) == offsets


@settings(max_examples=100, deadline=None)
@given(residuals=st.lists(numbers, max_size=200))
def test_the_drift_detector_stays_finite_and_survives_a_restore(residuals: list[float]) -> None:
    one, two = DriftDetector(), DriftDetector()
    for residual in residuals:
        one.learn("m", residual)
    two.restore(one.state())
    again = [1.0, -1.0, 0.3] * 30
    assert [one.learn("m", value) for value in again] == [two.learn("m", value) for value in again]
    assert one.state() == two.state()

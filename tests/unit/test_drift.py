"""The drift detector finds shifts soon, is rarely fooled by heavy tails, and re-arms itself."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest

from cotenant.predict.drift import DriftDetector, DriftState


def heavy(n: int, seed: int) -> np.ndarray:
    """Student t with 3 degrees of freedom, standard deviation 1."""
    return np.random.default_rng(seed).standard_t(3, n) / math.sqrt(3.0)


def delay(shift: float, seed: int) -> int:
    """Completions from a shift until the alarm; 1,000 when there is none."""
    detector, values = DriftDetector(), heavy(1_500, seed)
    values[500:] += shift
    alarms = [
        i for i, value in enumerate((0.08 * values).tolist()) if detector.learn("m", value) and i >= 500
    ]
    return alarms[0] - 500 if alarms else 1_000


def test_heavy_tails_alone_raise_less_than_one_alarm_in_ten_thousand() -> None:
    n_alarms = 0
    for seed in range(20):
        detector = DriftDetector()
        n_alarms += sum(detector.learn("m", value) for value in (0.08 * heavy(10_000, seed)).tolist())
    assert n_alarms <= 20


@pytest.mark.parametrize(("shift", "within"), [(0.5, 80), (1.0, 25), (2.0, 10), (-0.5, 80), (-1.0, 25)])
def test_a_shift_is_found_soon(shift: float, within: int) -> None:
    assert np.median([delay(shift, seed) for seed in range(30)]) <= within


def test_it_arms_itself_again_and_counts() -> None:
    detector = DriftDetector()
    for step in range(4):
        for value in (0.08 * (heavy(600, step) + 2.0 * (step % 2))).tolist():
            detector.learn("m", value)
    assert detector.n_alarms("m") == 3
    assert detector.n_alarms("other") == 0


def test_models_are_watched_apart() -> None:
    detector = DriftDetector()
    for i, value in enumerate((0.08 * heavy(1_000, 1)).tolist()):
        detector.learn("m", value + (0.3 if i > 500 else 0.0))
        assert not detector.learn("other", value)
    assert detector.n_alarms("m") == 1


def test_lone_outliers_raise_no_alarm() -> None:
    detector = DriftDetector()
    for i, value in enumerate((0.02 * heavy(5_000, 4)).tolist()):
        assert not detector.learn("m", 1e6 if i % 100 == 99 else value)


def test_constant_residuals_raise_no_alarm_and_leave_the_detector_able() -> None:
    detector = DriftDetector()
    assert not any(detector.learn("m", 0.1) for _ in range(2_000))
    assert any(detector.learn("m", 0.2) for _ in range(20))


def test_what_is_not_finite_is_refused() -> None:
    detector = DriftDetector()
    detector.learn("m", 0.1)
    before = detector.state()
    assert not detector.learn("m", math.nan)
    assert not detector.learn("m", math.inf)
    assert detector.state() == msgspec.structs.replace(before, n_refused=2)


def test_a_forgotten_model_starts_anew() -> None:
    detector = DriftDetector()
    detector.learn("m", 0.1)
    detector.forget("m")
    assert detector.state() == DriftState()


def test_a_state_that_cannot_be_used_is_refused() -> None:
    detector = DriftDetector()
    detector.learn("m", 0.1)
    for broken in (DriftState(format=9), detector.state()):
        for watch in broken.watches.values():
            watch.up = math.nan
        with pytest.raises(ValueError, match="drift detector"):
            detector.restore(broken)

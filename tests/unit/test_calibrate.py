"""The calibrator keeps coverage through change, comes back from bad spells, and refuses nonsense."""

from __future__ import annotations

import math
from itertools import pairwise

import msgspec
import numpy as np
import pytest
from calibrate_runs import Half, SlowCalibrator, covered

from cotenant.domain import LEVELS, NS_PER_S
from cotenant.predict.calibrate import CalibrateConfig, Calibrator, CalibratorState
from cotenant.predict.calibrate_kernels import LIMIT, MAX_SHIFT, SHIFTS, N
from cotenant.predict.quantiles import standard_normal

GROUP = ("m", 1)
CHANGES = {
    "none": [Half(), Half()],
    "wider": [Half(), Half(scale=2.0)],
    "narrower": [Half(scale=2.0), Half()],
    "slower": [Half(), Half(location=0.2)],
    "faster": [Half(location=0.2), Half()],
    "co-runners cost more": [Half(), Half(per_corunner=0.1, scale=1.5)],
    "another mix": [Half(mix=(0.6, 0.3, 0.05, 0.05)), Half(mix=(0.05, 0.05, 0.3, 0.6))],
}


def make(sigma: float = 0.05, slo_level: float = 0.99, config: CalibrateConfig | None = None) -> Calibrator:
    calibrator = Calibrator(config or CalibrateConfig())
    for model in ("m", "other"):
        calibrator.declare(model, sigma, slo_level)
    return calibrator


def feed(
    calibrator: Calibrator, centre: float, *, at: int, seconds: float, per_s: float = 50.0, seed: int = 1
) -> int:
    """Complete dispatches of `GROUP` around a residual, from the instant `at`; returns the instant after."""
    rng = np.random.default_rng(seed)
    for _ in range(int(seconds * per_s)):
        at += int(NS_PER_S / per_s)
        issued = calibrator.offsets(GROUP, at)
        calibrator.learn(GROUP, centre + 0.05 * rng.standard_normal(), issued, at)
    return at


def bound(calibrator: Calibrator, at: int, group: tuple[str, int] = GROUP) -> float:
    return calibrator.offsets(group, at)[3]


def width(calibrator: Calibrator, at: int) -> float:
    offsets = calibrator.offsets(GROUP, at)
    return offsets[3] - offsets[0]


PRIOR = 0.05 * standard_normal(0.99)


# --- coverage ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", CHANGES)
def test_coverage_holds_in_both_halves_of_a_run_that_changes_midway(change: str) -> None:
    hits = np.stack([covered(CHANGES[change], seed) for seed in range(5)])
    for half in (hits[:, :3_000], hits[:, 3_000:]):
        n = half.shape[0] * half.shape[1]
        for k, level in enumerate(LEVELS):
            allowed = max(0.015, 2 * math.sqrt(level * (1 - level) / n))
            assert half[:, :, k].mean() == pytest.approx(level, abs=allowed), f"level {level}"
    if change == "none":
        assert 0.985 < hits[:, :, 3].mean() < 0.995


@pytest.mark.parametrize("change", CHANGES)
def test_the_first_window_after_a_change_is_back_within_two_points(change: str) -> None:
    before = 1_000
    runs = np.stack([covered(CHANGES[change], seed, n_per_half=before) for seed in range(20)])
    coverage = runs[:, before : before + 300].mean(axis=(0, 1))
    assert coverage[1:] == pytest.approx(LEVELS[1:], abs=0.02)


def test_bounds_are_little_wider_than_those_of_one_who_knows() -> None:
    calibrator, rng = make(), np.random.default_rng(3)
    at, issued = 0, []
    for _ in range(6_000):
        at += NS_PER_S // 50
        issued.append(calibrator.offsets(GROUP, at))
        calibrator.learn(GROUP, 0.3 + 0.1 * rng.standard_normal(), issued[-1], at)
    widths = np.mean(issued[1_000:], axis=0) - 0.3
    for k in (1, 2, 3):
        assert widths[k] / (0.1 * standard_normal(LEVELS[k])) == pytest.approx(1.07, abs=0.1)


# --- forgetting -------------------------------------------------------------------------------------------


def test_before_anything_is_learned_the_profile_speaks() -> None:
    offsets = make(sigma=0.1, slo_level=0.97).offsets(GROUP, 0)
    assert offsets == pytest.approx([0.1 * standard_normal(level) for level in (*LEVELS, 0.97)], abs=1e-9)


def test_in_silence_bounds_return_to_the_prior_with_the_half_life() -> None:
    calibrator = make()
    at = feed(calibrator, 0.0, at=0, seconds=10)
    at = feed(calibrator, 3.0, at=at, seconds=20)
    assert bound(calibrator, at) > 3.0
    widths = [bound(calibrator, at + s * NS_PER_S) - PRIOR for s in (1, 11, 21, 31)]
    for wide, narrow in pairwise(widths):
        assert narrow < 0.62 * wide
    assert bound(calibrator, at + 120 * NS_PER_S) == pytest.approx(PRIOR, rel=0.1)


def test_after_a_bad_spell_rare_good_completions_free_the_model_faster_than_silence() -> None:
    calibrator = make()
    at = feed(calibrator, 0.0, at=0, seconds=10)
    at = feed(calibrator, 3.0, at=at, seconds=20)
    silent = bound(calibrator, at + 6 * NS_PER_S)
    at = feed(calibrator, 0.0, at=at, seconds=6, per_s=1.0)
    assert bound(calibrator, at) < min(0.6, 0.3 * silent)


def test_what_was_learned_before_a_silence_counts_little_after_it() -> None:
    calibrator = make()
    at = feed(calibrator, 1.0, at=0, seconds=20) + 60 * NS_PER_S
    before = bound(calibrator, at)
    calibrator.learn(GROUP, 0.0, calibrator.offsets(GROUP, at), at)
    assert bound(calibrator, at) < before + 0.01


def test_an_alarm_widens_and_completions_narrow_again() -> None:
    calibrator = make()
    at = feed(calibrator, 0.0, at=0, seconds=20)
    twin, others = make(), bound(calibrator, at, ("other", 1))
    twin.restore(calibrator.state())
    calibrator.widen(at, "m")
    assert width(calibrator, at) == pytest.approx(1.3 * width(twin, at), rel=0.01)
    assert bound(calibrator, at, ("other", 1)) == others
    for one in (calibrator, twin):
        feed(one, 0.0, at=at, seconds=2)
    at += 2 * NS_PER_S
    assert width(calibrator, at) < 1.15 * width(twin, at)


def test_a_widening_of_all_reaches_models_that_were_never_seen() -> None:
    calibrator = make()
    calibrator.widen(0)
    assert bound(calibrator, 0, ("other", 0)) == pytest.approx(1.3 * PRIOR)
    assert bound(calibrator, 60 * NS_PER_S, ("other", 0)) == pytest.approx(PRIOR, rel=0.05)


# --- pooling ----------------------------------------------------------------------------------------------


def test_groups_without_samples_borrow_from_their_model_and_from_everyone() -> None:
    calibrator = make()
    at = feed(calibrator, 0.5, at=0, seconds=10)
    own, model, other = [calibrator.offsets(g, at)[0] for g in (GROUP, ("m", 3), ("other", 3))]
    assert own == pytest.approx(0.5, abs=0.05)
    assert 0.5 > model > other > 0.1


def test_crowds_beyond_the_cap_are_one_group() -> None:
    calibrator = make()
    for i in range(50):
        calibrator.learn(("m", 9), 0.4, calibrator.offsets(("m", 9), i), i)
    assert calibrator.offsets(("m", 4), 50) == calibrator.offsets(("m", 17), 50)


def test_compiled_steps_are_those_of_the_slow_version() -> None:
    calibrator, slow, rng = make(slo_level=0.93), SlowCalibrator(0.05, 0.93), np.random.default_rng(5)
    for i in range(2_000):
        n = int(rng.integers(3))
        issued = calibrator.offsets(("m", n), i)
        assert issued == pytest.approx(slow.offsets(n), abs=1e-9)
        residual = (0.5 if i > 1_000 else 0.0) + 0.05 * rng.standard_t(3)
        calibrator.learn(("m", n), residual, issued, i)
        slow.learn(n, residual, list(issued))


# --- robustness and state ---------------------------------------------------------------------------------


@pytest.mark.parametrize("nonsense", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused_and_counted(nonsense: float) -> None:
    calibrator = make()
    at = feed(calibrator, 0.1, at=0, seconds=1)
    before, issued = calibrator.state(), calibrator.offsets(GROUP, at)
    assert not calibrator.learn(GROUP, nonsense, issued, at)
    assert not calibrator.learn(GROUP, 0.0, (nonsense, *issued[1:]), at)
    assert calibrator.state() == msgspec.structs.replace(before, n_refused=2)


def test_two_hundred_thousand_steps_of_nonsense_stay_bounded() -> None:
    calibrator, rng = make(), np.random.default_rng(7)
    residuals = rng.standard_t(1, 200_000) * np.repeat(rng.choice([0.0, 0.05, 5.0, 1e6], 200), 1_000)
    gaps = (rng.exponential(2e7, 200_000) * np.repeat(rng.choice([0, 1, 500], 200), 1_000)).astype(int)
    at, junk = 0, (-3.0, 5.0, -9.0, 0.0, 1e9)
    for i, (residual, gap) in enumerate(zip(residuals.tolist(), gaps.tolist(), strict=True)):
        at += gap
        group = ("m", "other")[i % 2], i % 7
        issued = calibrator.offsets(group, at)
        assert all(-LIMIT <= value <= LIMIT for value in issued)
        calibrator.learn(group, residual, junk if i % 50_000 < 5_000 else issued, at)
    state = calibrator.state()
    assert len(state.terms) == 2 * 6 + 6
    for term in state.terms.values():
        assert all(math.isfinite(number) for number in term)
        assert max(map(abs, term[SHIFTS:])) <= MAX_SHIFT
        assert max(abs(term[0]), abs(term[1])) < 20.0


def test_constant_residuals_narrow_the_bound_to_a_floor() -> None:
    calibrator = make()
    for i in range(20_000):
        calibrator.learn(GROUP, 0.25, calibrator.offsets(GROUP, i), i)
    assert calibrator.offsets(GROUP, 20_000) == pytest.approx([0.25] * 5, abs=0.03)
    feed(calibrator, 0.0, at=20_000, seconds=4)
    assert bound(calibrator, 5 * NS_PER_S) == pytest.approx(PRIOR, abs=0.08)


def test_a_restored_calibrator_gives_and_learns_the_same() -> None:
    one, two = make(), make()
    at = feed(one, 0.2, at=0, seconds=5)
    one.widen(at, "m")
    two.restore(msgspec.msgpack.decode(msgspec.msgpack.encode(one.state()), type=CalibratorState))
    for calibrator in (one, two):
        feed(calibrator, -0.1, at=at, seconds=2)
    assert one.state() == two.state()
    assert one.offsets(("m", 0), at) == two.offsets(("m", 0), at)


@pytest.mark.parametrize("damage", ["format", "short", "nan"])
def test_a_state_that_cannot_be_used_is_refused(damage: str) -> None:
    calibrator = make()
    feed(calibrator, 0.2, at=0, seconds=1)
    before, state = calibrator.state(), calibrator.state()
    match damage:
        case "format":
            state.format = 99
        case "short":
            state.terms["m"] = (0.0, 1.0)
        case _:
            state.terms["m"] = (math.nan, *state.terms["m"][1:])
    with pytest.raises(ValueError, match="calibration"):
        calibrator.restore(state)
    assert calibrator.state() == before


def test_a_forgotten_model_starts_from_what_everyone_shows() -> None:
    calibrator = make()
    at = feed(calibrator, 0.5, at=0, seconds=10)
    calibrator.forget("m")
    assert {"*", "*/1"} == set(calibrator.state().terms)
    assert bound(calibrator, at) == bound(calibrator, at, ("other", 1))


def test_an_undeclared_model_is_an_error() -> None:
    with pytest.raises(KeyError):
        make().offsets(("unknown", 0), 0)


def test_evidence_is_capped() -> None:
    calibrator = make()
    for i in range(12_000):
        calibrator.learn(GROUP, 0.0, calibrator.offsets(GROUP, i), i)
    assert max(term[N] for term in calibrator.state().terms.values()) == 10_000.0

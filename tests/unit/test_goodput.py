"""Searching the load that a level of attainment is held to: few runs, the right step, whatever the curve."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cotenant.experiment.goodput import Limits, bracket, crosses_at, position, scale_at, search, value_at

Curve = Callable[[float], float]
LIMITS = Limits(lowest=-300, highest=300)
levels = st.sampled_from((0.95, 0.99, 0.7))


def found(
    curve: Curve,
    level: float,
    seen: Mapping[float, float] | None = None,
    *,
    start: float = 1.0,
    limits: Limits = LIMITS,
    step: int = 1,
) -> tuple[float | None, dict[float, float]]:
    """What the search returns on a curve, and all that is known then."""
    known = dict(seen or {})
    asking = search(known, level, start=start, limits=limits, step=step)
    try:
        scale = next(asking)
        while True:
            assert scale not in known, "a run is asked for once"
            known[scale] = curve(scale)
            scale = asking.send(known[scale])
    except StopIteration as stop:
        return stop.value, known


def falling(capacity: float, steepness: float) -> Curve:
    """Attainment that falls from 1 to 0 about a capacity."""
    return lambda scale: 1 / (1 + math.exp(min(steepness * math.log(scale / capacity), 700)))


def saturating(capacity: float) -> Curve:
    """Attainment of a policy that sheds what is too much."""
    return lambda scale: min(1.0, capacity / scale)


curves = st.one_of(
    st.builds(falling, st.floats(0.3, 4.0), st.floats(5.0, 200.0)), st.builds(saturating, st.floats(0.3, 4.0))
)


@given(
    curve=curves, level=levels, start=st.floats(0.2, 5.0), known=st.sets(st.integers(-250, 250), max_size=12)
)
def test_on_a_falling_curve_the_last_step_that_holds_the_level_is_found(
    curve: Curve, level: float, start: float, known: set[int]
) -> None:
    seen = {scale_at(index): curve(scale_at(index)) for index in known}
    scale, _ = found(curve, level, seen, start=start)
    holding = [index for index in range(LIMITS.lowest, LIMITS.highest + 1) if curve(scale_at(index)) >= level]
    assert scale == scale_at(max(holding))


def asked(curve: Curve, level: float) -> int:
    """Runs besides those of a curve known at every 18th step."""
    grid = {scale_at(index): curve(scale_at(index)) for index in range(-300, 301, 18)}
    return len(found(curve, level, grid)[1]) - len(grid)


@given(curve=curves, level=levels)
def test_a_curve_known_at_every_18th_step_never_costs_much_more_than_bisection(
    curve: Curve, level: float
) -> None:
    assert asked(curve, level) <= 7


def test_a_curve_known_at_every_18th_step_costs_two_or_three_runs_as_a_rule() -> None:
    rng = random.Random(1)
    shapes = [falling(rng.uniform(0.4, 3.0), rng.uniform(8, 60)) for _ in range(100)]
    shapes += [saturating(rng.uniform(0.4, 3.0)) for _ in range(100)]
    assert sum(asked(curve, level) for curve in shapes for level in (0.95, 0.99)) / 400 < 3.0


@given(curve=curves, level=levels, start=st.floats(0.2, 5.0))
def test_without_anything_known_some_fifteen_runs_are_enough(
    curve: Curve, level: float, start: float
) -> None:
    _, known = found(curve, level, start=start)
    assert len(known) <= 18


@given(curve=curves, level=levels, seed=st.integers(0, 1000), noise=st.floats(0.0, 0.05))
def test_with_noise_the_result_holds_the_level_and_the_next_step_was_seen_to_break_it(
    curve: Curve, level: float, seed: int, noise: float
) -> None:
    def noisy(scale: float) -> float:
        return min(1.0, max(0.0, curve(scale) + random.Random(f"{seed}/{scale}").gauss(0, noise)))

    scale, known = found(noisy, level)
    holding = [at for at, attained in known.items() if attained >= level]
    assert scale == max(holding, default=None)
    if scale is not None and scale < scale_at(LIMITS.highest):
        index = round(position(scale))
        assert known[scale_at(index + 1)] < level


@given(curve=curves, level=levels)
def test_a_coarse_search_stays_on_its_steps(curve: Curve, level: float) -> None:
    scale, known = found(curve, level, step=8)
    assert all(round(position(at)) % 8 == 0 or round(position(at)) in (-300, 300) for at in known)
    assert scale is not None
    assert curve(scale) >= level > curve(scale_at(round(position(scale)) + 8))


def test_a_level_that_no_load_holds_is_none_and_one_that_all_hold_is_the_limit() -> None:
    never, known = found(lambda scale: 0.6, 0.95)
    assert never is None
    assert min(known) == scale_at(LIMITS.lowest)
    assert len(known) < 20
    always, _ = found(lambda scale: 1.0, 0.95)
    assert always == scale_at(LIMITS.highest)


def test_scales_that_are_not_on_the_ladder_are_used_too() -> None:
    curve = saturating(1.0)
    scale, known = found(curve, 0.95, {0.9: 1.0, 1.06: curve(1.06)})
    assert scale is not None
    assert 1.04 < scale <= 1 / 0.95
    assert all(0.9 <= at <= 1.06 for at in known)


@settings(max_examples=30)
@given(st.integers(-500, 500))
def test_steps_are_one_per_cent_apart_and_found_again(index: int) -> None:
    assert scale_at(index + 1) / scale_at(index) == pytest.approx(1.01, rel=2e-4)
    assert round(position(scale_at(index))) == index


def test_a_bracket_is_the_largest_that_holds_and_the_next_above() -> None:
    seen = {1.0: 0.99, 1.2: 0.94, 1.4: 0.96, 1.6: 0.5, 2.0: 0.4}
    assert (bracket(seen, 0.95).held, bracket(seen, 0.95).broken) == (1.4, 1.6)
    assert (bracket(seen, 0.3).held, bracket(seen, 0.3).broken) == (2.0, None)
    assert (bracket(seen, 0.995).held, bracket(seen, 0.995).broken) == (None, 1.0)


def test_a_curve_is_read_between_its_points_and_nowhere_else() -> None:
    points = [(1.0, 0.9), (2.0, 0.8), (4.0, 0.5)]
    assert value_at(points, 1.0) == 0.9
    assert value_at(points, math.sqrt(8)) == pytest.approx(0.65)
    assert value_at(points, 4.0) == 0.5
    assert value_at(points, 0.9) is None
    assert value_at(points, 4.1) is None
    assert value_at([], 1.0) is None
    at = crosses_at(points, 0.75)
    assert at is not None
    assert 2.0 < at < 4.0
    assert crosses_at(points, 0.95) is None
    assert crosses_at(points, 0.4) is None

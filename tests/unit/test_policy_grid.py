"""The loads of a curve, and settings of the simple policies: chosen from attainments alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotenant.experiment.averages import half_width, mean_report
from cotenant.experiment.goodput import Limits, crosses_at, position, scale_at
from cotenant.experiment.grid import choose
from cotenant.experiment.tuning import CANDIDATES, screen
from cotenant.experiment.workers import Choice

LIMITS = Limits(lowest=-200, highest=300)
Curve = Callable[[float], float]


def falling(capacity: float, steepness: float) -> Curve:
    return lambda scale: 1 / (1 + math.exp(min(steepness * math.log(scale / capacity), 700)))


def chosen(curves: Mapping[str, Curve], low: float, high: float, reference: str | None = None) -> list[float]:
    asking = choose(low, high, LIMITS, reference)
    wanted = next(asking)
    try:
        while True:
            wanted = asking.send([{name: curve(scale) for name, curve in curves.items()} for scale in wanted])
    except StopIteration as stop:
        return list(stop.value)


policies = st.dictionaries(
    st.sampled_from(("fcfs", "k_edf", "static_linear", "ours", "oracle")),
    st.builds(falling, st.floats(0.4, 3.0), st.floats(4.0, 40.0)),
    min_size=1,
)


@given(curves=policies, low=st.floats(0.1, 2.0), width=st.floats(1.1, 8.0))
def test_every_policy_goes_from_above_99_to_below_70_per_cent_over_12_points_or_more(
    curves: Mapping[str, Curve], low: float, width: float
) -> None:
    scales = chosen(curves, low, low * width)
    assert scales == sorted(set(scales))
    assert 12 <= len(scales) <= 26
    for curve in curves.values():
        assert curve(scales[0]) > 0.99 or scales[0] == scale_at(LIMITS.lowest)
        assert curve(scales[-1]) < 0.70


def test_points_are_denser_where_the_reference_passes_75_per_cent() -> None:
    curves = {"static_linear": falling(1.0, 12.0), "fcfs": falling(0.7, 30.0), "oracle": falling(1.3, 12.0)}
    scales = chosen(curves, 0.4, 1.6, "static_linear")
    at = crosses_at([(scale, curves["static_linear"](scale)) for scale in scales], 0.75)
    assert at is not None
    gaps = [position(b) - position(a) for a, b in pairwise(scales)]
    here = next(i for i, scale in enumerate(scales[1:]) if scale > at)
    assert gaps[here] <= 6
    assert gaps[here] < sum(gaps) / len(gaps)


def test_a_policy_that_never_attains_99_per_cent_goes_down_to_the_smallest_load() -> None:
    scales = chosen({"fcfs": lambda scale: min(0.9, 1 / scale)}, 0.5, 2.0)
    assert scales[0] == scale_at(LIMITS.lowest)


@pytest.mark.parametrize("attained", [0.0, 0.8, 1.0])
def test_a_policy_that_no_load_moves_still_gets_a_curve(attained: float) -> None:
    scales = chosen({"fcfs": lambda scale: attained}, 1.0, 1.0)
    assert len(scales) >= 12
    assert scales == sorted(set(scales))


def screened(capacities: Mapping[Choice, float], start: float = 1.0) -> tuple[Choice, int]:
    """The winner, and how many runs were asked for."""
    curves = {choice: falling(capacity, 20.0) for choice, capacity in capacities.items()}
    asking = screen(list(capacities), start, LIMITS)
    wanted, asked = next(asking), set()
    try:
        while True:
            asked.update(wanted)
            wanted = asking.send([curves[choice](scale) for choice, scale in wanted])
    except StopIteration as stop:
        return stop.value, len(asked)


@given(
    capacities=st.lists(st.floats(0.5, 2.0), min_size=20, max_size=20), start=st.sampled_from((0.3, 1.0, 3.0))
)
def test_the_setting_that_holds_95_per_cent_longest_wins(capacities: list[float], start: float) -> None:
    candidates = CANDIDATES["k_edf"]
    winner, n_runs = screened(dict(zip(candidates, capacities, strict=True)), start)
    assert dict(zip(candidates, capacities, strict=True))[winner] >= max(capacities) * 0.999
    assert n_runs <= 150


def test_of_equals_the_usual_setting_wins() -> None:
    winner, _ = screened(dict.fromkeys(CANDIDATES["k_edf"], 1.0))
    assert winner.settings == (("k", 2), ("margin", 1.3))


def test_settings_become_policies() -> None:
    policy = Choice("k_edf", (("k", 4), ("margin", 1.6))).policy()
    assert not isinstance(policy, str)
    assert (policy.name, policy.k, policy.margin) == ("k_edf", 4, 1.6)  # type: ignore[attr-defined]
    assert Choice("exclusive_edf").policy() == "exclusive_edf"


def test_the_mean_of_reports_keeps_what_agrees_and_leaves_out_what_is_missing() -> None:
    reports = [
        {"seed": 3, "policy": "fcfs", "ok": 1, "p99_ms": None, "per_model": {"a": {"ok": 1}},
         "versions": {"n": "1"}},
        {"seed": 4, "policy": "fcfs", "ok": 2, "p99_ms": 5.0, "per_model": {"a": {"ok": 4}, "b": {"ok": 2}},
         "versions": {"n": "1"}},
    ]  # fmt: skip
    assert mean_report(reports) == {
        "seed": 3, "policy": "fcfs", "ok": 1.5, "p99_ms": 5.0,
        "per_model": {"a": {"ok": 2.5}, "b": {"ok": 2}}, "versions": {"n": "1"},
    }  # fmt: skip


def test_intervals_are_students() -> None:
    assert half_width([5.0]) is None
    assert half_width([1.0, 3.0]) == pytest.approx(12.706)
    assert half_width([1.0, 2.0, 3.0]) == pytest.approx(4.303 / 3**0.5)
    assert half_width([0.0, 1.0] * 50) == pytest.approx(0.0997, rel=0.01)

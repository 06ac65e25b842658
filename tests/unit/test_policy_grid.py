"""The loads of a curve, and settings of the simple policies: chosen from attainments alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotenant.experiment.averages import half_width, mean_report
from cotenant.experiment.goodput import Limits, crosses_at, hinted_at, position, scale_at
from cotenant.experiment.grid import COARSE, Outline, laid, outside
from cotenant.experiment.scouting import scout
from cotenant.experiment.tuning import CANDIDATES, screen
from cotenant.experiment.workers import Choice, Run

LIMITS = Limits(lowest=-200, highest=300)
Curve = Callable[[float], float]


def falling(capacity: float, steepness: float) -> Curve:
    return lambda scale: 1 / (1 + math.exp(min(steepness * math.log(scale / capacity), 700)))


def scouted(curve: Curve, *, top: bool = True, start: float = 1.0) -> tuple[Outline, int]:
    """What is found of a curve, and in how many runs."""
    choice = Choice("fcfs")
    chain = scout(lambda scale: Run(choice, 1, scale), start, LIMITS, top=top)
    asked: list[float] = []
    try:
        wanted = next(chain)
        while True:
            asked += [run.scale for run in wanted]
            wanted = chain.send([{"attainment": curve(run.scale)} for run in wanted])
    except StopIteration as stop:
        assert len(asked) == len(set(asked)), "a run is asked for once"
        found: Outline = stop.value
        return found, len(asked)


def chosen(curves: Mapping[str, Curve], reference: str | None = None) -> list[float]:
    """The scales of the curve, its ends moved out as a study does."""
    scales = laid({name: scouted(curve)[0] for name, curve in curves.items()}, reference, LIMITS)
    while True:
        ends = (min(scales), max(scales))
        beyond = outside({at: {name: curve(at) for name, curve in curves.items()} for at in ends}, LIMITS)
        if beyond is None:
            return scales
        scales = sorted([*scales, beyond])


policies = st.dictionaries(
    st.sampled_from(("fcfs", "k_edf", "static_linear", "ours", "oracle")),
    st.builds(falling, st.floats(0.4, 3.0), st.floats(4.0, 40.0)),
    min_size=1,
)


@given(curves=policies)
def test_every_policy_goes_from_above_99_to_below_70_per_cent_over_12_points_or_more(
    curves: Mapping[str, Curve],
) -> None:
    scales = chosen(curves)
    assert scales == sorted(set(scales))
    assert 12 <= len(scales) <= 16
    assert min(position(b) - position(a) for a, b in pairwise(scales)) > 2.9
    for curve in curves.values():
        assert curve(scales[0]) > 0.99 or scales[0] == scale_at(LIMITS.lowest)
        assert curve(scales[-1]) < 0.70


@given(curves=policies)
def test_no_scale_lies_far_beyond_where_all_policies_are_below_70_per_cent(
    curves: Mapping[str, Curve],
) -> None:
    scales = chosen(curves)
    lost = [scale for scale in scales if all(curve(scale) < 0.7 for curve in curves.values())]
    at = max(hinted_at([(scale, curve(scale)) for scale in scales], 0.7) for curve in curves.values())
    assert len([scale for scale in lost if scale > 1.1 * at]) <= 5


@given(curve=st.builds(falling, st.floats(0.4, 3.0), st.floats(3.0, 40.0)), start=st.floats(0.3, 3.0))
def test_a_few_short_runs_tell_where_a_policy_falls(curve: Curve, start: float) -> None:
    found, n_runs = scouted(curve, start=start)
    assert n_runs <= 14
    assert found.low == pytest.approx(scale_at(LIMITS.lowest)) or curve(found.low) >= 0.99
    assert found.passing is not None
    apart = scale_at(COARSE)
    for at, level in ((found.high, 0.70), (found.passing, 0.75)):
        assert curve(at / apart) >= level > curve(at * apart)
    assert scouted(curve, top=False, start=start)[1] <= 10


def test_points_are_denser_where_the_reference_passes_75_per_cent() -> None:
    curves = {"static_linear": falling(1.0, 6.0), "fcfs": falling(0.5, 30.0), "oracle": falling(1.6, 6.0)}
    scales = chosen(curves, "static_linear")
    at = crosses_at([(scale, curves["static_linear"](scale)) for scale in scales], 0.75)
    assert at is not None
    gaps = [position(b) - position(a) for a, b in pairwise(scales)]
    here = next(i for i, scale in enumerate(scales[1:]) if scale > at)
    assert gaps[here] <= 12
    assert gaps[here] < sum(gaps) / len(gaps)


def test_the_ends_are_moved_out_until_the_means_are_far_enough() -> None:
    calm, lost = {"fcfs": 0.999, "ours": 1.0}, {"fcfs": 0.4, "ours": 0.69}
    assert outside({0.5: calm, 3.0: lost}, LIMITS) is None
    below = outside({0.5: {"fcfs": 0.98, "ours": 1.0}, 3.0: lost}, LIMITS)
    above = outside({0.5: calm, 3.0: {"fcfs": 0.4, "ours": 0.77}}, LIMITS)
    assert below is not None
    assert 0.3 < below < 0.5
    assert above is not None
    assert 3.3 < above < 4.0
    lowest, highest = scale_at(LIMITS.lowest), scale_at(LIMITS.highest)
    assert outside({lowest: lost, highest: calm}, LIMITS) is None


def test_a_policy_that_never_attains_99_per_cent_goes_down_to_the_smallest_load() -> None:
    scales = chosen({"fcfs": lambda scale: min(0.9, 1 / scale)})
    assert scales[0] == scale_at(LIMITS.lowest)


@pytest.mark.parametrize("attained", [0.0, 0.8, 1.0])
def test_a_policy_that_no_load_moves_still_gets_a_curve(attained: float) -> None:
    scales = chosen({"fcfs": lambda scale: attained})
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
            wanted = asking.send([curves[trial.choice](trial.scale) for trial in wanted])
    except StopIteration as stop:
        return stop.value, len(asked)


@given(
    capacities=st.lists(st.floats(0.5, 2.0), min_size=20, max_size=20), start=st.sampled_from((0.3, 1.0, 3.0))
)
def test_the_setting_that_holds_95_per_cent_longest_wins(capacities: list[float], start: float) -> None:
    candidates = CANDIDATES["k_edf"]
    winner, n_runs = screened(dict(zip(candidates, capacities, strict=True)), start)
    assert dict(zip(candidates, capacities, strict=True))[winner] >= max(capacities) * 0.999
    assert n_runs <= 110


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

"""The compiled integration says what the slow, clear one says."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cotenant.predict.kernel import (
    AFTER,
    FIRST,
    IDLE,
    LANE,
    LEFT,
    LIKELY,
    N_COLUMNS,
    N_SEGMENTS,
    PACE,
    REFILL,
    START,
    TAU,
    integrate,
    integrate_all,
)
from cotenant.predict.overlap_kernels import MAX_CROWD, MAX_SEGMENTS
from cotenant.predict.replay import Course, replay


def case(seed: int, n: int, n_lanes: int, n_resources: int = 3) -> tuple[Any, ...]:
    """Random runs: some yet to begin, some waiting for another, some in the middle of a segment."""
    rng = np.random.default_rng(seed)
    runs, segments = np.zeros((n, N_COLUMNS)), np.zeros((n, MAX_SEGMENTS))
    demands, means = rng.random((n, MAX_SEGMENTS, n_resources)), np.zeros((n, n_resources))
    for e in range(n):
        k = int(rng.integers(1, MAX_SEGMENTS + 1))
        segments[e, :k] = rng.exponential(1e6, k) + 1e4
        runs[e, START] = rng.random() * 5e6 if rng.random() < 0.3 else 0.0
        runs[e, AFTER] = rng.integers(0, e) if e and rng.random() < 0.2 else -1
        runs[e, PACE], runs[e, LEFT] = 0.8 + rng.random() / 2, 0.05 + 0.95 * rng.random()
        runs[e, FIRST], runs[e, N_SEGMENTS] = rng.integers(0, k), k
        runs[e, LANE] = e if e < n_lanes else -1
        means[e] = segments[e, :k] @ demands[e, :k] / segments[e, :k].sum()
    crowd = np.concatenate([np.ones(2), 0.6 + rng.random(MAX_CROWD - 1)])
    joiners = np.array([[0.6, 3e6, 0.8, 0.1 * lane] for lane in range(n_lanes)]).reshape(-1, 4)
    return (
        runs, segments, demands, means, rng.random((n, n)), rng.random(n_resources) * 2 - 0.5, crowd, joiners,
        rng.random((n, n_lanes)) / 2,
    )  # fmt: skip


def slow(
    runs, segments, demands, means, excess, weights, crowd, joiners, joiner_excess, longest_step=None
) -> list[float]:
    n, n_lanes = joiner_excess.shape
    since, first = [0.0] * n_lanes, joiners[:, IDLE].tolist()
    taken = [int((runs[:, LANE] == lane).sum()) for lane in range(n_lanes)]

    def slowdown(run, others, now: float) -> float:
        e, k = run
        total = 0.0
        for j, m in others:
            term = 1 + float(weights @ (demands[e, k] * demands[j, m] - means[e] * means[j]))
            total += excess[e, j] * max(0.0, term)
        total *= crowd[min(len(others), MAX_CROWD)]
        for lane in range(n_lanes):
            if not taken[lane]:
                likely = joiners[lane, LIKELY]
                gone = math.exp(-(now - since[lane]) / joiners[lane, TAU])
                total += joiner_excess[e, lane] * (likely + (first[lane] - likely) * gone)
        return float(runs[e, PACE] * (1 + max(0.0, total)))

    def ended(e: int, now: float) -> None:
        lane = int(runs[e, LANE])
        if lane >= 0:
            taken[lane] -= 1
            if not taken[lane]:
                since[lane], first[lane] = now, joiners[lane, REFILL]

    courses = []
    for e in range(n):
        first_segment, last = int(runs[e, FIRST]), int(runs[e, N_SEGMENTS])
        pieces = (segments[e, first_segment] * runs[e, LEFT], *segments[e, first_segment + 1 : last])
        after = None if runs[e, AFTER] < 0 else int(runs[e, AFTER])
        courses.append(Course(pieces=pieces, first=first_segment, start=runs[e, START], after=after))
    longest = longest_step or (joiners[0, TAU] if n_lanes else math.inf)
    return replay(courses, slowdown, longest_step=longest, ended=ended)


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(0, 5))
def test_the_compiled_integration_agrees_with_the_plain_one(seed: int, n: int, n_lanes: int) -> None:
    arrays = case(seed, n, n_lanes)
    finish = np.zeros(n)
    integrate(np.arange(n), *arrays, finish)
    assert finish == pytest.approx(slow(*arrays), rel=1e-9)


@pytest.mark.parametrize("seed", range(8))
def test_a_lane_that_is_always_taken_at_once_asks_for_short_steps_only_at_first(seed: int) -> None:
    """Many thousand steps of its time constant give about the same."""
    arrays = case(seed, 4, 6)
    arrays[7][:, TAU], arrays[7][2, TAU] = 3e6, 3e3
    finish = np.zeros(4)
    integrate(np.arange(4), *arrays, finish)
    assert finish == pytest.approx(slow(*arrays, longest_step=3e4), rel=0.03)


def test_lanes_for_which_no_joiners_are_known_are_left_alone() -> None:
    """Uncompiled, because compiled code does not look where it writes."""
    arrays = case(3, 4, 0)
    arrays[0][:, LANE] = np.arange(4)
    finish, compiled = np.zeros(4), np.zeros(4)
    integrate.py_func(np.arange(4), *arrays, finish)
    integrate(np.arange(4), *arrays, compiled)
    assert finish == pytest.approx(compiled)


def test_each_candidate_is_an_alternative() -> None:
    arrays = case(7, 5, 0)
    arrays[0][:, AFTER] = -1
    finish = np.zeros((3, 5))
    integrate_all(3, *arrays, finish)
    alone = np.zeros(5)
    integrate(np.arange(3), *arrays, alone)
    assert finish[0, :3] == pytest.approx(alone[:3])
    with_last = np.zeros(5)
    integrate(np.array([0, 1, 2, 4]), *arrays, with_last)
    assert finish[2, [0, 1, 2, 4]] == pytest.approx(with_last[[0, 1, 2, 4]])


def test_alone_a_run_takes_its_solo_span_and_beside_another_longer() -> None:
    courses = [Course(pieces=(2.0, 3.0)), Course(pieces=(4.0,))]
    assert replay(courses[:1], lambda run, others, now: 1.0) == [5.0]
    assert replay(courses, lambda run, others, now: 1.0 + len(others)) == [9.0, 8.0]


def test_runs_that_wait_for_one_another_are_refused() -> None:
    with pytest.raises(ValueError, match="circle"):
        replay([Course(pieces=(1.0,), after=1), Course(pieces=(1.0,), after=0)], lambda run, others, now: 1.0)

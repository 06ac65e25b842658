"""Compiled: how far a run gets beside others whose overlap with it is known.

`who` and `times` hold, of each other that was beside a run, the columns OTHER, ITS_LANE and BEGAN, ENDED,
STARTED below; instants are ns of the clock that decides. What pairs of workloads say of their slowdown is in
`row_kernels.py`.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from cotenant.predict.row_kernels import FLOOR, Array, believed

MAX_SEGMENTS = 16
"""Segments of a workload; shorter neighbours are put together beyond it."""
MAX_CROWD = 8
"""Others beyond this many count as so many in `crowd`."""
LEAST_SLOWDOWN = 0.7
LEAST_STEP = 1.0
"""Shortest step of a walk (ns)."""
OTHER, ITS_LANE = range(2)
"""Columns of `who`: the other's workload and lane (-1: unknown)."""
BEGAN, ENDED, STARTED = range(3)
"""Columns of `times`: from when to when it was there (`OPEN`: it still is), and when it had started."""
OPEN = 1e30
FORWARD, BACK = range(2)
"""Of each two pairs wanted for another run: this run as the victim, and the other."""

Tables = tuple[Array, Array, Array, Array, Array, Array]
"""Of all workloads: segments (solo spans, ns), demands, their means, numbers of segments, terms of the pace,
their models' sets of the calibrator."""


@njit(cache=True, fastmath=True)
def pace(level: Array, own: Array, at: float) -> float:
    """Factor on a solo span by its terms `own`."""
    total = 0.0
    for k in range(own.shape[0]):
        total += believed(level, own[k], at)
    return math.exp(total)


@njit(cache=True, fastmath=True)
def crowd_factors(level: Array, crowd_slots: Array, at: float) -> Array:
    """Factor on the summed excess by the number of others; 1 where there is no term."""
    crowd = np.ones(crowd_slots.shape[0])
    for k in range(crowd_slots.shape[0]):
        if crowd_slots[k] >= 0:
            crowd[k] = math.exp(believed(level, crowd_slots[k], at))
    return crowd


@njit(cache=True, fastmath=True)
def modulation(level: Array, weight_slots: Array, at: float) -> Array:
    """The weights by which unusual demands modulate an excess, by resource."""
    weights = np.empty(weight_slots.shape[0])
    for r in range(weight_slots.shape[0]):
        weights[r] = believed(level, weight_slots[r], at)
    return weights


@njit(cache=True)
def gather(
    work: int, lane: int, begin: float, until: float, who: Array, times: Array, first: int, n: int,
    relations: Array, others: Array, spans: Array, wanted: Array,
) -> int:  # fmt: skip
    """Those of the entries [first, first + n) that were beside a run of workload `work` on `lane` between
    `begin` and `until` (ns). Writes their workloads, when they were there and had started (ns from `begin`,
    3 x n), and which pairs they make (2 n x 3, as for `row_kernels.look_up`). Returns how many."""
    m = 0
    for k in range(first, first + n):
        if times[k, ENDED] <= begin:
            continue
        other, relation = who[k, OTHER], relations[lane, who[k, ITS_LANE]]
        others[m] = other
        spans[BEGAN, m] = times[k, BEGAN] - begin
        spans[ENDED, m] = min(times[k, ENDED], until) - begin
        spans[STARTED, m] = times[k, STARTED] - begin
        forward, back = 2 * m + FORWARD, 2 * m + BACK
        wanted[forward, 0], wanted[forward, 1], wanted[forward, 2] = relation, work, other
        wanted[back, 0], wanted[back, 1], wanted[back, 2] = relation, other, work
        m += 1
    return m


@njit(cache=True, fastmath=True)
def part(both: Array, n: int, excess: Array, slower: Array) -> None:
    """From the excesses of each two pairs: the run's, and how much slower than alone the other is taken to
    go."""
    for k in range(n):
        excess[k] = both[2 * k + FORWARD]
        slower[k] = max(1.0, 1.0 + both[2 * k + BACK])


@njit(cache=True, fastmath=True)
def walk(
    span: float, work: int, first: int, pace_of_run: float, n: int, others: Array, spans: Array,
    slower: Array, excess: Array, crowd: Array, weights: Array, tables: Tables, learning: bool,
    shares: Array, crowd_shares: Array, weight_shares: Array, reached: Array,
) -> float:  # fmt: skip
    """Solo work (ns) that a run of workload `work`, in segment `first` at time 0, gets done in `span` (ns)
    beside `n` others: the k-th, of workload `others[k]`, was there and had started when `spans` says (as
    from `gather`) and goes through its own segments `slower[k]` times slower than alone.

    While both are in segments of unusual demand a pair's excess is modulated, as in `kernel.integrate`.
    `reached` becomes the segment reached and what is left of it. When `learning`, `shares[k]` becomes
    d log slowdown / d log(excess_k + 1 - FLOOR), averaged over the work done, `crowd_shares[n]` the same for
    the factor of n others and `weight_shares[r]` for the weight of a resource."""
    segments, demands, means, n_segments = tables[0], tables[1], tables[2], tables[3]
    n_resources = weights.shape[0]
    if learning:
        shares[:], crowd_shares[:], weight_shares[:] = 0.0, 0.0, 0.0
    flat = n_resources == 0 or n == 0
    at, left, last = first, segments[work, first], n_segments[work] - 1
    theirs, theirs_left, term = np.zeros(n, np.int64), np.zeros(n), np.ones(n)
    common, there, open_ = np.ones(n), np.empty(n, np.int64), np.empty(n, np.int64)
    for k in range(n):
        open_[k] = k
        if not flat:
            elapsed = max(0.0, spans[BEGAN, k]) - spans[STARTED, k]
            _place_other(k, elapsed, others[k], slower[k], segments, n_segments, theirs, theirs_left)
            for r in range(n_resources):
                common[k] -= weights[r] * means[work, r] * means[others[k], r]
    n_open, now, done = n, 0.0, 0.0
    while now < span:
        step, n_beside, n_left, total = span - now, 0, 0, 0.0
        for x in range(n_open):
            k = open_[x]
            if spans[ENDED, k] <= now:
                continue
            open_[n_left] = k
            n_left += 1
            if now < spans[BEGAN, k]:
                step = min(step, spans[BEGAN, k] - now)
                continue
            there[n_beside] = k
            n_beside += 1
            step = min(step, spans[ENDED, k] - now)
            if not flat:
                j, m = others[k], theirs[k]
                modulated = common[k]
                for r in range(n_resources):
                    modulated += weights[r] * demands[work, at, r] * demands[j, m, r]
                term[k] = max(0.0, modulated)
                if m < n_segments[j] - 1:
                    step = min(step, theirs_left[k])
            total += excess[k] * term[k]
        n_open = n_left
        crowded = min(n_beside, crowd.shape[0] - 1)
        slowdown = max(LEAST_SLOWDOWN, 1.0 + crowd[crowded] * total)
        rate = 1.0 / (pace_of_run * slowdown)
        if at < last:
            step = min(step, left / rate)
        step = max(step, LEAST_STEP)
        part = step * rate
        done += part
        now += step
        factor = part * crowd[crowded] / slowdown
        if learning:
            crowd_shares[crowded] += factor * total
        for x in range(n_beside):
            k = there[x]
            if learning:
                shares[k] += factor * (excess[k] + 1.0 - FLOOR) * term[k]
            if flat:
                continue
            j = others[k]
            if learning and term[k] > 0.0:
                for r in range(n_resources):
                    weight_shares[r] += (
                        factor
                        * excess[k]
                        * (demands[work, at, r] * demands[j, theirs[k], r] - means[work, r] * means[j, r])
                    )
            theirs_left[k] -= step
            if theirs_left[k] <= LEAST_STEP and theirs[k] < n_segments[j] - 1:
                theirs[k] += 1
                theirs_left[k] = segments[j, theirs[k]] * slower[k]
        left -= part
        if left <= LEAST_STEP and at < last:
            at += 1
            left = segments[work, at]
    if learning and done > 0.0:
        shares /= done
        crowd_shares /= done
        weight_shares /= done
    reached[0], reached[1] = at, left
    return done


@njit(cache=True, fastmath=True, inline="always")
def _place_other(
    k: int, elapsed: float, other: int, slower: float, segments: Array, n_segments: Array, theirs: Array,
    theirs_left: Array,
) -> None:  # fmt: skip
    """In which segment the k-th other is `elapsed` ns after its start, and for how long (ns) yet."""
    behind = max(0.0, elapsed)
    m = 0
    while m < n_segments[other] - 1 and behind >= segments[other, m] * slower:
        behind -= segments[other, m] * slower
        m += 1
    theirs[k] = m
    theirs_left[k] = max(LEAST_STEP, segments[other, m] * slower - behind)

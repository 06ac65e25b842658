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
    segments, n_segments = tables[0], tables[3]
    if learning:
        shares[:n], crowd_shares[:], weight_shares[:] = 0.0, 0.0, 0.0
    at, left, last = first, segments[work, first], n_segments[work] - 1
    order = _in_order(n, spans)
    # of those that are there now: which, segment, when that ends, when it or the other ends, the factor of
    # the excess that modulates, and `weight` (of all work done, by how much it counts) at its last change
    there, theirs, turns_at, next_at = np.empty(n, np.uint64), np.empty(n, np.int64), np.empty(n), np.empty(n)
    term, since = np.empty(n), np.empty(n)
    n_there, n_seen, now, done, total, weight = 0, 0, 0.0, 0.0, 0.0, 0.0
    while now < span:
        while n_seen < n and spans[BEGAN, order[n_seen]] <= now:
            k = order[n_seen]
            n_seen += 1
            if spans[ENDED, k] <= now:
                continue
            x = n_there
            n_there += 1
            elapsed = max(0.0, spans[BEGAN, k]) - spans[STARTED, k]
            there[x], since[x] = k, weight
            theirs[x], their_left = _place_other(elapsed, others[k], slower[k], segments, n_segments)
            turns_at[x] = now + their_left
            next_at[x] = min(turns_at[x], spans[ENDED, k])
            term[x] = _term(work, at, others[k], theirs[x], weights, tables)
            total += excess[k] * term[x]
        until = span if n_seen == n else min(span, spans[BEGAN, order[n_seen]])
        for x in range(n_there):
            until = min(until, next_at[x])
        crowded = min(n_there, crowd.shape[0] - 1)
        slowdown = max(LEAST_SLOWDOWN, 1.0 + crowd[crowded] * total)
        rate = 1.0 / (pace_of_run * slowdown)
        step = until - now
        if at < last:
            step = min(step, left / rate)
        step = max(step, LEAST_STEP)
        part_done = step * rate
        done += part_done
        now += step
        left -= part_done
        factor = part_done * crowd[crowded] / slowdown
        weight += factor
        if learning:
            crowd_shares[crowded] += factor * total
        goes_on = left <= LEAST_STEP and at < last
        over = now >= span
        n_left = 0
        for x in range(n_there):
            if goes_on or over or next_at[x] <= now + LEAST_STEP:
                k = there[x]
                if learning:
                    _credit(
                        k, work, at, others[k], theirs[x], weight - since[x], term[x], excess[k], tables,
                        shares, weight_shares,
                    )  # fmt: skip
                since[x] = weight
                total -= excess[k] * term[x]
                if spans[ENDED, k] <= now:
                    continue
                if turns_at[x] - now <= LEAST_STEP:
                    theirs[x] += 1
                    turns_at[x] = now + _length(others[k], theirs[x], slower[k], segments, n_segments)
                    next_at[x] = min(turns_at[x], spans[ENDED, k])
                term[x] = _term(work, at + goes_on, others[k], theirs[x], weights, tables)
                total += excess[k] * term[x]
            if n_left < x:
                there[n_left], theirs[n_left], term[n_left] = there[x], theirs[x], term[x]
                turns_at[n_left], next_at[n_left], since[n_left] = turns_at[x], next_at[x], since[x]
            n_left += 1
        n_there = n_left
        if n_there == 0:
            total = 0.0
        if goes_on:
            at += 1
            left = segments[work, at]
    if learning and done > 0.0:
        shares /= done
        crowd_shares /= done
        weight_shares /= done
    reached[0], reached[1] = at, left
    return done


@njit(cache=True)
def _in_order(n: int, spans: Array) -> Array:
    """Numbers of others in the order in which they came, which is mostly the order they are in already."""
    order = np.empty(n, np.uint64)
    for k in range(n):
        x = k
        while x > 0 and spans[BEGAN, order[x - 1]] > spans[BEGAN, k]:
            order[x] = order[x - 1]
            x -= 1
        order[x] = k
    return order


@njit(cache=True, fastmath=True, inline="always")
def _term(work: int, at: int, other: int, theirs: int, weights: Array, tables: Tables) -> float:
    """By how much the segments that two are in modulate the pair's excess, at least 0."""
    demands, means = tables[1], tables[2]
    modulated = 1.0
    for r in range(weights.shape[0]):
        beyond = demands[work, at, r] * demands[other, theirs, r] - means[work, r] * means[other, r]
        modulated += weights[r] * beyond
    return max(0.0, modulated)


@njit(cache=True, fastmath=True)
def _credit(
    k: int, work: int, at: int, other: int, theirs: int, meanwhile: float, term: float, excess: float,
    tables: Tables, shares: Array, weight_shares: Array,
) -> None:  # fmt: skip
    """Adds what was done beside the k-th other to its share, and to those of the weights."""
    demands, means = tables[1], tables[2]
    shares[k] += meanwhile * (excess + 1.0 - FLOOR) * term
    if term > 0.0:
        for r in range(weight_shares.shape[0]):
            beyond = demands[work, at, r] * demands[other, theirs, r] - means[work, r] * means[other, r]
            weight_shares[r] += meanwhile * excess * beyond


@njit(cache=True, fastmath=True)
def _place_other(
    elapsed: float, other: int, slower: float, segments: Array, n_segments: Array
) -> tuple[int, float]:
    """In which segment an other is `elapsed` ns after its start, and for how long (ns) yet."""
    behind = max(0.0, elapsed)
    m = 0
    while m < n_segments[other] - 1 and behind >= segments[other, m] * slower:
        behind -= segments[other, m] * slower
        m += 1
    return m, max(LEAST_STEP, _length(other, m, slower, segments, n_segments) - behind)


@njit(cache=True, inline="always")
def _length(other: int, m: int, slower: float, segments: Array, n_segments: Array) -> float:
    """How long (ns) an other is in its segment m: for good in the last one."""
    return segments[other, m] * slower if m < n_segments[other] - 1 else OPEN

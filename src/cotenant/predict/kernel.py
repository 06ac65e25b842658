"""The fluid integration compiled: what `replay.py` says, for the slowdown model of `fluid.py`.

How this works. While run e is in segment k, its slowdown is

    pace_e x (1 + crowd[n] x sum over others j of excess[e, j] x max(0, 1 + modulation))
    modulation = sum over resources r of weight_r x (u_e,k,r u_j,l,r - mean u_e,r mean u_j,r)

with n others active, u the demands of the segments they are in, and excess = slowdown - 1 of the pair over
whole runs. Lanes without work may be taken by others: such a joiner is there with a probability that tends
from its value at the instant the lane became free to its likely one with a time constant of its own, and
adds its mean excess; no step is longer than the shortest time constant of those that have not settled. A
pair's term changes only when one of the two passes a boundary, so only those are computed anew.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from cotenant.predict.overlap_kernels import MAX_CROWD
from cotenant.predict.row_kernels import Array

START, AFTER, PACE, FIRST, LEFT, LANE, N_SEGMENTS = range(7)
"""Columns of `runs`: begin (ns from now), index of the run it waits for (-1: none), own slowdown factor,
segment it is in, share (0..1) of that segment that is left, lane (-1: none; others than those of `joiners`
count as none), segments."""
N_COLUMNS = 7
LIKELY, TAU, REFILL, IDLE = range(4)
"""Columns of `joiners` (n_lanes rows): probability that a lane is taken in the long run, time constant (ns),
probability that it is taken again at once when it becomes free, and that it is taken now, being idle."""
DONE = 1e-6
SETTLED = 1e-11
"""A probability so near to its likely value stays there, and no step is shortened for it any more."""
FAR = 1e30
"""Later than anything (ns)."""


@njit(cache=True, fastmath=True, inline="always")
def _decayed(x: float) -> float:
    """exp(x) for x in [-1, 0], within 1e-13: its Taylor polynomial about -1/2. Steps are never longer than
    the shortest time constant, and this is most of what a step costs."""
    y = x + 0.5
    e = 1.0 / 39916800.0
    e = e * y + 1.0 / 3628800.0
    e = e * y + 1.0 / 362880.0
    e = e * y + 1.0 / 40320.0
    e = e * y + 1.0 / 5040.0
    e = e * y + 1.0 / 720.0
    e = e * y + 1.0 / 120.0
    e = e * y + 1.0 / 24.0
    e = e * y + 1.0 / 6.0
    e = e * y + 0.5
    e = e * y + 1.0
    e = e * y + 1.0
    return e * 0.6065306597126334  # exp(-1/2)


@njit(cache=True, fastmath=True, inline="always")
def _pair_up(
    a: int, b: int, run: Array, at: Array, excess: Array, demands: Array, common: Array, weights: Array,
    pair: Array, base: Array,
) -> None:  # fmt: skip
    """Compute the pair's two terms anew, for the segments that both are in now."""
    e, j = run[a], run[b]
    term = common[a, b]
    for r in range(weights.shape[0]):
        term += weights[r] * demands[e, at[a], r] * demands[j, at[b], r]
    term = max(0.0, term)
    base[a] -= pair[a, b]
    base[b] -= pair[b, a]
    pair[a, b], pair[b, a] = excess[e, j] * term, excess[j, e] * term
    base[a] += pair[a, b]
    base[b] += pair[b, a]


@njit(cache=True, fastmath=True, error_model="numpy")
def integrate(
    members: Array,
    runs: Array,
    segments: Array,
    demands: Array,
    means: Array,
    excess: Array,
    weights: Array,
    crowd: Array,
    joiners: Array,
    joiner_excess: Array,
    finish: Array,
) -> None:
    """Finish (ns from now) of the runs `members` (int64), written to `finish` (n_runs; the rest stays).

    runs: n_runs x N_COLUMNS; segments: n_runs x MAX_SEGMENTS solo spans (ns); demands: n_runs x
    MAX_SEGMENTS x n_resources; means: n_runs x n_resources; excess: n_runs x n_runs; joiner_excess: n_runs
    x n_lanes."""
    n, n_lanes, n_resources = members.shape[0], joiner_excess.shape[1], weights.shape[0]
    at, last = np.empty(n, np.int64), np.empty(n, np.int64)
    # unsigned: an index that may be negative costs numba three instructions more wherever it is used
    run, active = members.astype(np.uint64), np.empty(n, np.uint64)
    waits = np.ones(n, np.bool_)
    left, slowdown, base = np.empty(n), np.empty(n), np.zeros(n)
    pair, common = np.zeros((n, n)), np.ones((n, n))
    taken = np.zeros(n_lanes, np.int64)
    # free lanes that have not settled, and what those add that have
    share, likely, rate, joining = (
        np.empty(n_lanes), np.empty(n_lanes), np.empty(n_lanes), np.empty((n, n_lanes)),
    )  # fmt: skip
    joined = np.zeros(n)
    for a in range(n):
        e = run[a]
        at[a], last[a] = np.int64(runs[e, FIRST]), np.int64(runs[e, N_SEGMENTS]) - 1
        left[a] = segments[e, at[a]] * runs[e, LEFT]
        if 0 <= runs[e, LANE] < n_lanes:
            taken[np.int64(runs[e, LANE])] += 1
        for b in range(a):
            for r in range(n_resources):
                common[a, b] -= weights[r] * means[e, r] * means[run[b], r]
            common[b, a] = common[a, b]
    n_free, longest = 0, FAR
    for lane in range(n_lanes):
        if taken[lane] == 0 and (joiners[lane, IDLE] != 0.0 or joiners[lane, LIKELY] != 0.0):
            share[n_free], likely[n_free] = joiners[lane, IDLE], joiners[lane, LIKELY]
            rate[n_free] = -1.0 / joiners[lane, TAU]
            longest = min(longest, joiners[lane, TAU])
            for a in range(n):
                joining[a, n_free] = joiner_excess[run[a], lane]
            n_free += 1
    now, next_start, factor = 0.0, FAR, 1.0
    n_open, n_waiting, n_active = n, n, 0
    while n_open > 0:
        if n_waiting > 0:
            next_start = FAR
            for a in range(n):
                e = run[a]
                if not waits[a] or _is_held(np.int64(runs[e, AFTER]), members, at, last):
                    continue
                if runs[e, START] > now:
                    next_start = min(next_start, runs[e, START])
                    continue
                waits[a] = False
                n_waiting -= 1
                for x in range(n_active):
                    _pair_up(np.uint64(a), active[x], run, at, excess, demands, common, weights, pair, base)
                active[n_active] = a
                n_active += 1
            if n_active == 0:
                if next_start == FAR:
                    return
                for y in range(n_free):
                    share[y] = likely[y] + (share[y] - likely[y]) * math.exp((next_start - now) * rate[y])
                now = next_start
                n_free, longest = _settle(n_free, share, likely, rate, joining, joined)
                continue
            factor = crowd[min(n_active - 1, MAX_CROWD)]
        step, settles = min(longest, next_start - now), False
        for x in range(n_active):
            a = active[x]
            total = base[a] * factor + joined[a]
            for y in range(n_free):
                total += share[y] * joining[a, y]
            slowdown[a] = runs[run[a], PACE] * (1.0 + max(0.0, total))
            step = min(step, left[a] * slowdown[a])
        for y in range(n_free):
            share[y] = likely[y] + (share[y] - likely[y]) * _decayed(step * rate[y])
            settles |= abs(share[y] - likely[y]) < SETTLED
        if settles:
            n_free, longest = _settle(n_free, share, likely, rate, joining, joined)
        now += step
        n_ended = 0
        for x in range(n_active):
            a = active[x]
            left[a] -= step / slowdown[a]
            if left[a] > DONE:
                continue
            e = run[a]
            while left[a] <= DONE and at[a] <= last[a]:
                at[a] += 1
                if at[a] <= last[a]:
                    left[a] += segments[e, at[a]]
            if at[a] <= last[a]:
                for z in range(n_active):
                    b = active[z]
                    if b != a and at[b] <= last[b]:
                        _pair_up(a, b, run, at, excess, demands, common, weights, pair, base)
                continue
            finish[e] = now
            n_ended += 1
            for z in range(n_active):
                b = active[z]
                base[b] -= pair[b, a]
                pair[b, a] = 0.0
            freed = np.int64(runs[e, LANE])
            if 0 <= freed < n_lanes:
                taken[freed] -= 1
                if taken[freed] == 0:
                    share[n_free], likely[n_free] = joiners[freed, REFILL], joiners[freed, LIKELY]
                    rate[n_free] = -1.0 / joiners[freed, TAU]
                    longest = min(longest, joiners[freed, TAU])
                    for b in range(n):
                        joining[b, n_free] = joiner_excess[run[b], freed]
                    n_free += 1
        if n_ended > 0:
            n_open -= n_ended
            n_active = 0
            for a in range(n):
                if not waits[a] and at[a] <= last[a]:
                    active[n_active] = a
                    n_active += 1
            factor = crowd[max(0, min(n_active - 1, MAX_CROWD))]


@njit(cache=True)
def _settle(
    n_free: int, share: Array, likely: Array, rate: Array, joining: Array, joined: Array
) -> tuple[int, float]:
    """Take out the lanes that have settled; returns how many are left, and the shortest of their time
    constants."""
    n_left, longest = 0, FAR
    for y in range(n_free):
        if abs(share[y] - likely[y]) < SETTLED:
            for a in range(joined.shape[0]):
                joined[a] += likely[y] * joining[a, y]
            continue
        share[n_left], likely[n_left], rate[n_left] = share[y], likely[y], rate[y]
        for a in range(joined.shape[0]):
            joining[a, n_left] = joining[a, y]
        longest = min(longest, -1.0 / rate[y])
        n_left += 1
    return n_left, longest


@njit(cache=True)
def _is_held(after: int, members: Array, at: Array, last: Array) -> bool:
    """Whether the run that another waits for is among the members and has not ended."""
    if after >= 0:
        for b in range(members.shape[0]):
            if members[b] == after:
                return bool(at[b] <= last[b])
    return False


@njit(cache=True, fastmath=True)
def integrate_all(
    n_in_flight: int,
    runs: Array,
    segments: Array,
    demands: Array,
    means: Array,
    excess: Array,
    weights: Array,
    crowd: Array,
    joiners: Array,
    joiner_excess: Array,
    finish: Array,
) -> None:
    """What is in flight alone (row 0 of `finish`), and with each candidate in turn (row 1 + c; its own finish
    stands in its column). The first `n_in_flight` runs are in flight, the rest candidates."""
    n = runs.shape[0]
    alone = np.arange(n_in_flight)
    integrate(
        alone, runs, segments, demands, means, excess, weights, crowd, joiners, joiner_excess, finish[0]
    )
    with_one = np.empty(n_in_flight + 1, np.int64)
    with_one[:n_in_flight] = alone
    for c in range(n - n_in_flight):
        with_one[n_in_flight] = n_in_flight + c
        integrate(
            with_one, runs, segments, demands, means, excess, weights, crowd, joiners, joiner_excess,
            finish[1 + c],
        )  # fmt: skip

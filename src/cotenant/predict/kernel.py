"""The fluid integration compiled: what `replay.py` says, for the slowdown model of `fluid.py`.

How this works. While run e is in segment k, its slowdown is

    pace_e x (1 + crowd[n] x sum over others j of excess[e, j] x max(0, 1 + modulation))
    modulation = sum over resources r of weight_r x (u_e,k,r u_j,l,r - mean u_e,r mean u_j,r)

with n others active, u the demands of the segments they are in, and excess = slowdown - 1 of the pair over
whole runs. Lanes without work may be taken by others: such a joiner is there with a probability that tends
from its value at the instant the lane became free to its likely one with the time constant
its own, and adds its mean excess. A pair's term changes only when one of the two passes a boundary,
so only those are computed anew.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from cotenant.predict.estimator_kernels import (
    FLOOR,
    MAX_CROWD,
    MAX_SEGMENTS,
    Tables,
    beside,
    crowd_factors,
    excesses,
    log_beyond,
    modulation,
    pace,
    walk,
)

START, AFTER, PACE, FIRST, LEFT, LANE, N_SEGMENTS = range(7)
"""Columns of `runs`: begin (ns from now), index of the run it waits for (-1: none), own slowdown factor,
segment it is in, share (0..1) of that segment that is left, lane (-1: none; others than those of `joiners`
count as none), segments."""
N_COLUMNS = 7
LIKELY, TAU, REFILL, IDLE = range(4)
"""Columns of `joiners` (n_lanes rows): probability that a lane is taken in the long run, time constant (ns),
probability that it is taken again at once when it becomes free, and that it is taken now, being idle."""
MOST_IN_MIX = 8
"""Workloads that joiners are made of."""
LEAST_LEFT = 0.02
"""Share of its solo span that a run which should have ended is taken to have left."""
DONE = 1e-6

Array = np.ndarray[Any, Any]


@njit(cache=True, fastmath=True, inline="always")
def _modulated(
    e: int, k: int, j: int, m: int, excess: Array, demands: Array, means: Array, weights: Array
) -> float:  # fmt: skip
    term = 1.0
    for r in range(weights.shape[0]):
        term += weights[r] * (demands[e, k, r] * demands[j, m, r] - means[e, r] * means[j, r])
    return float(excess[e, j] * max(0.0, term))


@njit(cache=True, fastmath=True, inline="always")
def _settle(share: Array, taken: Array, joiners: Array, step: float) -> None:
    """Let the probabilities that free lanes are taken tend towards the likely one for `step` ns."""
    for lane in range(share.shape[0]):
        if taken[lane] == 0:
            settled = 1.0 - math.exp(-step / joiners[lane, TAU])
            share[lane] += (joiners[lane, LIKELY] - share[lane]) * settled


@njit(cache=True, fastmath=True)
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
    n, n_lanes = members.shape[0], joiner_excess.shape[1]
    at = np.zeros(n, np.int64)
    left = np.zeros(n)
    state = np.zeros(n, np.int64)  # 0 waits, 1 runs, 2 has ended
    pair = np.zeros((n, n))
    taken = np.zeros(n_lanes, np.int64)
    share = joiners[:, IDLE].copy()
    rate = np.zeros(n)
    for a in range(n):
        e = members[a]
        at[a] = np.int64(runs[e, FIRST])
        left[a] = segments[e, at[a]] * runs[e, LEFT]
        if 0 <= runs[e, LANE] < n_lanes:
            taken[np.int64(runs[e, LANE])] += 1
    for idle in range(n_lanes):
        if taken[idle] > 0:
            share[idle] = 0.0
    now = 0.0
    n_open = n
    while n_open > 0:
        n_active = 0
        next_start = np.inf
        for a in range(n):
            if state[a] == 0:
                e = members[a]
                free = True
                if runs[e, AFTER] >= 0:
                    for b in range(n):
                        if members[b] == np.int64(runs[e, AFTER]) and state[b] != 2:
                            free = False
                if free and runs[e, START] <= now:
                    state[a] = 1
                    for b in range(n):
                        if b != a and state[b] == 1:
                            j = members[b]
                            pair[a, b] = _modulated(e, at[a], j, at[b], excess, demands, means, weights)
                            pair[b, a] = _modulated(j, at[b], e, at[a], excess, demands, means, weights)
                elif free:
                    next_start = min(next_start, runs[e, START])
            if state[a] == 1:
                n_active += 1
        if n_active == 0:
            if next_start == np.inf:
                return
            _settle(share, taken, joiners, next_start - now)
            now = next_start
            continue
        factor = crowd[min(n_active - 1, MAX_CROWD)]
        step = next_start - now
        for a in range(n):
            if state[a] != 1:
                continue
            e = members[a]
            total = 0.0
            for b in range(n):
                total += pair[a, b]
            total *= factor
            for lane in range(n_lanes):
                total += share[lane] * joiner_excess[e, lane]
            rate[a] = 1.0 / (runs[e, PACE] * (1.0 + max(0.0, total)))
            step = min(step, left[a] / rate[a])
        if n_lanes > 0:
            for lane in range(n_lanes):
                if taken[lane] == 0:
                    step = min(step, joiners[lane, TAU])
            _settle(share, taken, joiners, step)
        now += step
        for a in range(n):
            if state[a] != 1:
                continue
            left[a] -= step * rate[a]
            if left[a] > DONE:
                continue
            e = members[a]
            while left[a] <= DONE and at[a] < np.int64(runs[e, N_SEGMENTS]):
                at[a] += 1
                if at[a] < np.int64(runs[e, N_SEGMENTS]):
                    left[a] += segments[e, at[a]]
            if at[a] >= np.int64(runs[e, N_SEGMENTS]):
                state[a] = 2
                n_open -= 1
                finish[e] = now
                freed = np.int64(runs[e, LANE])
                if 0 <= freed < n_lanes:
                    taken[freed] -= 1
                    if taken[freed] == 0:
                        share[freed] = joiners[freed, REFILL]
                for b in range(n):
                    pair[a, b] = 0.0
                    pair[b, a] = 0.0
                continue
            for b in range(n):
                if b != a and state[b] == 1:
                    j = members[b]
                    pair[a, b] = _modulated(e, at[a], j, at[b], excess, demands, means, weights)
                    pair[b, a] = _modulated(j, at[b], e, at[a], excess, demands, means, weights)


@njit(cache=True, fastmath=True)
def forecast(
    n_in_flight: int, work: Array, places: Array, start: Array, whose: Array, who: Array, times: Array,
    pair_rows: Array, mix_rows: Array, lane_relations: Array, mix: Array, joiners: Array, tables: Tables,
    crowd_slots: Array, weight_slots: Array, phi: Array, slots: Array, level: Array, theta: Array,
    bias: float, scale: float, at: float, finish: Array,
) -> None:  # fmt: skip
    """Everything from indices to finish times (ns from `at`), as `integrate_all` gives them.

    `work`: workload of each run; `places`: lane, run that it waits for (-1: none), segment it was in at
    `start` (ns from now: the begin, or the last boundary seen, of what runs). `whose`: which run each row
    of `who` and `times` belongs to, which are as in `work_done`. `pair_rows`: n x n. `mix_rows`: of each
    workload beside the k-th of the mix, by relation; `lane_relations`: which relation each run has to each
    lane."""
    all_segments, all_demands, all_means, n_segments, own = tables
    weights = modulation(level, weight_slots, at)
    n, n_resources = work.shape[0], all_means.shape[1]
    runs, segments = np.zeros((n, N_COLUMNS)), np.empty((n, MAX_SEGMENTS))
    demands, means = np.empty((n, MAX_SEGMENTS, n_resources)), np.empty((n, n_resources))
    excess = np.empty((n, n))
    excesses(pair_rows, phi, slots, level, theta, bias, scale, at, excess)
    crowd = crowd_factors(level, crowd_slots, at)
    n_lanes = lane_relations.shape[1]
    joiner_excess = np.zeros((n, n_lanes))
    by_relation = np.empty(mix_rows.shape[1])
    for i in range(n):
        w = work[i]
        segments[i], demands[i], means[i] = all_segments[w], all_demands[w], all_means[w]
        runs[i, LANE], runs[i, AFTER], runs[i, FIRST] = places[0, i], places[1, i], places[2, i]
        runs[i, N_SEGMENTS], runs[i, LEFT], runs[i, START] = n_segments[w], 1.0, max(0.0, start[i])
        runs[i, PACE] = pace(level, own[w], at)
        if i < n_in_flight and start[i] < 0.0:
            chosen = np.flatnonzero(whose == i)
            _advance(i, w, -start[i], who[chosen], times[chosen], runs, crowd, weights, tables, phi, slots,
                     level, theta, bias, scale, at)  # fmt: skip
        if n_lanes:
            for c in range(mix_rows.shape[1]):
                by_relation[c] = 0.0
                for k in range(mix.shape[0]):
                    if mix[k] > 0.0 and mix_rows[w, c, k] >= 0:
                        beyond = log_beyond(mix_rows[w, c, k], phi, slots, level, theta, bias, scale, at)
                        by_relation[c] += mix[k] * (FLOOR - 1.0 + math.exp(beyond))
            for lane in range(n_lanes):
                joiner_excess[i, lane] = by_relation[lane_relations[i, lane]]
    integrate_all(
        n_in_flight, runs, segments, demands, means, excess, weights, crowd, joiners, joiner_excess, finish
    )


@njit(cache=True, fastmath=True)
def _advance(
    i: int, w: int, span: float, who: Array, times: Array, runs: Array, crowd: Array, weights: Array,
    tables: Tables, phi: Array, slots: Array, level: Array, theta: Array, bias: float, scale: float,
    at: float,
) -> None:  # fmt: skip
    """Where run i is `span` ns after its start: in which segment, and how much of it is left; a run that
    should have ended has `LEAST_LEFT` of its solo span left."""
    segments, demands, means, n_segments, _ = tables
    n = who.shape[0]
    excess, slower, place = np.empty(n), np.empty(n), np.empty(2)
    beside(who[:, 0], who[:, 1], phi, slots, level, theta, bias, scale, at, excess, slower)
    walk(
        span, w, np.int64(runs[i, FIRST]), runs[i, PACE], who[:, 2], times[:, 0], times[:, 1], times[:, 2],
        slower, excess, crowd, weights, segments, demands, means, n_segments, np.empty(n),
        np.empty(crowd.shape[0]),
        np.empty(weights.shape[0]), place,
    )  # fmt: skip
    k, left = np.int64(place[0]), max(0.0, place[1])
    if k == n_segments[w] - 1:
        whole = 0.0
        for m in range(n_segments[w]):
            whole += segments[w, m]
        left = max(left, min(LEAST_LEFT * whole, segments[w, k]))
    runs[i, FIRST], runs[i, LEFT] = k, min(1.0, left / max(1.0, segments[w, k]))


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


@njit(cache=True)
def spread_out(at: int, n_in_flight: int, finish: Array, elapsed: Array, offsets: Array, out: Array) -> None:
    """Quantiles of finish instants (ns), n_rows x n_runs x n_levels, from medians `finish` (ns from `at`)
    and log offsets (n_runs x n_levels). A candidate's apply to its whole span. What is in flight has a
    whole span of what is past and what is left; of a sum of independent parts the rest has the square root
    of its share of the spread."""
    for row in range(finish.shape[0]):
        for i in range(finish.shape[1]):
            span = finish[row, i]
            for q in range(offsets.shape[1]):
                if i < n_in_flight:
                    spread = math.sqrt(max(0.0, span * (span + elapsed[i])))
                    out[row, i, q] = at + np.int64(max(1.0, span + spread * math.expm1(offsets[i, q])))
                else:
                    out[row, i, q] = at + np.int64(span * math.exp(offsets[i, q]))

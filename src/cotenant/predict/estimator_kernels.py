"""Compiled steps of `estimator.py`: slowdowns of pairs, progress under known overlap, one learning step.

Arrays. `phi`: n_rows x D features of pairs; `slots`: n_rows x n_slots_of_pair indices of the scalar terms
that a pair has besides; `level`: n_slots x 6, the terms themselves, columns below. A pair's slowdown beyond
1 is

    excess = FLOOR - 1 + exp(bias + scale theta.phi + sum of its slots)
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

FLOOR = 0.8
"""Slowdown less this is log-linear: below the least slowdown that is seen, so that no logarithm fails."""
MEAN, VARIANCE, PRIOR_MEAN, PRIOR_VARIANCE, LEARNED_AT, HALF_LIFE = range(6)
"""Columns of `level`: what is believed; what was believed before anything was seen and is returned to;
instant (ns) of the last step, half-life (ns) of what was learned when nothing is seen."""
LARGEST_LOG = 4.0
MAX_SEGMENTS = 16
"""Segments of a workload; shorter neighbours are put together beyond it."""
MAX_CROWD = 8
"""Others beyond this many count as so many in `crowd`."""
LEAST_SLOWDOWN = 0.7
LEAST_STEP = 1.0
"""Shortest step of a walk (ns)."""
MOST_SIGMAS = 8.0
"""Bound of each weight, whose prior is a standard normal: beyond it data and form do not fit together, and
what cannot be fitted must not wind up."""
RESIDUAL, INNOVATION, SPREAD, PROGRESS = range(4)
"""What a learning step gives back: log(measured / predicted given the overlap), that clipped, its standard
deviation, and the solo work (ns) that was predicted to be done in the time."""

Array = np.ndarray[Any, Any]
Tables = tuple[Array, Array, Array, Array, Array]
"""Of all workloads: segments (solo spans, ns), demands, their means, numbers of segments, terms of the
pace."""


@njit(cache=True, fastmath=True)
def believed(level: Array, slot: int, at: float) -> float:
    """A term's mean at an instant: what was learned fades to the prior."""
    idle = max(0.0, at - level[slot, LEARNED_AT])
    if idle == 0.0:
        return float(level[slot, MEAN])
    kept = math.exp2(-idle / level[slot, HALF_LIFE])
    return float(level[slot, PRIOR_MEAN] + kept * (level[slot, MEAN] - level[slot, PRIOR_MEAN]))


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
def log_beyond(
    row: int, phi: Array, slots: Array, level: Array, theta: Array, bias: float, scale: float, at: float
) -> float:
    """log(slowdown of a pair - FLOOR)."""
    total = 0.0
    for d in range(theta.shape[0]):
        total += phi[row, d] * theta[d]
    total = bias + scale * total
    for k in range(slots.shape[1]):
        total += believed(level, slots[row, k], at)
    return min(LARGEST_LOG, max(-LARGEST_LOG, total))


@njit(cache=True, fastmath=True)
def excesses(
    rows: Array, phi: Array, slots: Array, level: Array, theta: Array, bias: float, scale: float, at: float,
    out: Array,
) -> None:  # fmt: skip
    """Slowdowns - 1 of pairs `rows` (n x m indices; negative: none, 0), written to `out`."""
    for i in range(rows.shape[0]):
        for j in range(rows.shape[1]):
            out[i, j] = 0.0
            if rows[i, j] >= 0:
                beyond = log_beyond(rows[i, j], phi, slots, level, theta, bias, scale, at)
                out[i, j] = FLOOR - 1.0 + math.exp(beyond)


@njit(cache=True, fastmath=True)
def walk(
    span: float, work: int, first: int, pace_of_run: float, others: Array, begins: Array, ends: Array,
    starts: Array, slower: Array, excess: Array, crowd: Array, weights: Array, segments: Array,
    demands: Array, means: Array, n_segments: Array, shares: Array, crowd_shares: Array,
    weight_shares: Array, place: Array,
) -> float:  # fmt: skip
    """Solo work (ns) that a run of workload `work`, in segment `first` at time 0, gets done in `span` (ns)
    beside others: the k-th, of workload `others[k]`, was there from `begins[k]` to `ends[k]`, had started
    at `starts[k]` and goes through its own segments `slower[k]` times slower than alone.

    While both are in segments of unusual demand a pair's excess is modulated, as in `kernel.integrate`.
    `shares[k]` becomes d log slowdown / d log(excess_k + 1 - FLOOR), averaged over the work done,
    `crowd_shares[n]` the same for the factor of n others and `weight_shares[r]` for the weight of a
    resource; `place` the segment reached and the share of it that is left."""
    n, n_resources = others.shape[0], weights.shape[0]
    shares[:], crowd_shares[:], weight_shares[:] = 0.0, 0.0, 0.0
    flat = n_resources == 0 or n == 0
    at, left = first, segments[work, first]
    theirs, theirs_left, term = np.zeros(n, np.int64), np.zeros(n), np.ones(n)
    active = np.zeros(n, np.bool_)
    for k in range(n):
        if not flat:
            elapsed = max(0.0, begins[k]) - starts[k]
            _place_other(k, elapsed, others[k], slower[k], segments, n_segments, theirs, theirs_left)
    now, done = 0.0, 0.0
    while now < span:
        step, n_beside, total = span - now, 0, 0.0
        for k in range(n):
            active[k] = begins[k] <= now < ends[k]
            if now < begins[k]:
                step = min(step, begins[k] - now)
            if not active[k]:
                continue
            step = min(step, ends[k] - now)
            n_beside += 1
            if not flat:
                m = 1.0
                for r in range(n_resources):
                    j = others[k]
                    m += weights[r] * (
                        demands[work, at, r] * demands[j, theirs[k], r] - means[work, r] * means[j, r]
                    )
                term[k] = max(0.0, m)
                if theirs[k] < n_segments[others[k]] - 1:
                    step = min(step, theirs_left[k])
            total += excess[k] * term[k]
        n_beside = min(n_beside, crowd.shape[0] - 1)
        slowdown = max(LEAST_SLOWDOWN, 1.0 + crowd[n_beside] * total)
        rate = 1.0 / (pace_of_run * slowdown)
        last = at >= n_segments[work] - 1
        if not last:
            step = min(step, left / rate)
        step = max(step, LEAST_STEP)
        part = step * rate
        done += part
        now += step
        crowd_shares[n_beside] += part * crowd[n_beside] * total / slowdown
        for k in range(n):
            if not active[k]:
                continue
            factor = part * crowd[n_beside] / slowdown
            shares[k] += factor * (excess[k] + 1.0 - FLOOR) * term[k]
            if flat:
                continue
            if term[k] > 0.0:
                j = others[k]
                for r in range(n_resources):
                    weight_shares[r] += (
                        factor
                        * excess[k]
                        * (demands[work, at, r] * demands[j, theirs[k], r] - means[work, r] * means[j, r])
                    )
            theirs_left[k] -= step
            if theirs_left[k] <= LEAST_STEP and theirs[k] < n_segments[others[k]] - 1:
                theirs[k] += 1
                theirs_left[k] = segments[others[k], theirs[k]] * slower[k]
        left -= part
        if left <= LEAST_STEP and not last:
            at += 1
            left = segments[work, at]
    if done > 0.0:
        shares /= done
        crowd_shares /= done
        weight_shares /= done
    place[0], place[1] = at, left
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


@njit(cache=True, fastmath=True)
def beside(
    rows: Array, back_rows: Array, phi: Array, slots: Array, level: Array, theta: Array, bias: float,
    scale: float, at: float, excess: Array, slower: Array,
) -> None:  # fmt: skip
    """For each pair the run's excess, and how much slower than alone the other is taken to go."""
    for k in range(rows.shape[0]):
        beyond = log_beyond(rows[k], phi, slots, level, theta, bias, scale, at)
        excess[k] = FLOOR - 1.0 + math.exp(beyond)
        beyond = log_beyond(back_rows[k], phi, slots, level, theta, bias, scale, at)
        slower[k] = max(1.0, FLOOR + math.exp(beyond))


@njit(cache=True, fastmath=True)
def modulation(level: Array, weight_slots: Array, at: float) -> Array:
    """The weights by which unusual demands modulate an excess, by resource."""
    weights = np.empty(weight_slots.shape[0])
    for r in range(weight_slots.shape[0]):
        weights[r] = believed(level, weight_slots[r], at)
    return weights


@njit(cache=True, fastmath=True)
def work_done(
    at: float, span: float, index: int, first: int, who: Array, times: Array, tables: Tables,
    crowd_slots: Array, weight_slots: Array, phi: Array, rest: Array, slots: Array, level: Array,
    theta: Array, bias: float,
    scale: float, gradient: Array,
) -> tuple[float, float]:  # fmt: skip
    """Solo work (ns) expected to be done in `span` ns by workload `index`, from segment `first` on, beside
    others.

    `who`: n x 3, row of each pair, row of the pair the other way round, and the other's workload; `times`:
    n x 3, from when to when it was there and when it had started (ns from the run's start). `gradient` (D)
    becomes d log span / d theta. Also returns the variance that features leave out."""
    segments, demands, means, n_segments, own = tables
    n = who.shape[0]
    excess, slower, shares = np.empty(n), np.empty(n), np.empty(n)
    beside(who[:, 0], who[:, 1], phi, slots, level, theta, bias, scale, at, excess, slower)
    weights = modulation(level, weight_slots, at)
    crowd = crowd_factors(level, crowd_slots, at)
    done = walk(
        span, index, first, pace(level, own[index], at), who[:, 2], times[:, 0], times[:, 1], times[:, 2],
        slower, excess, crowd, weights, segments, demands, means, n_segments, shares,
        np.empty(crowd.shape[0]),
        np.empty(weights.shape[0]), np.empty(2),
    )  # fmt: skip
    return done, _weigh(who, shares, scale, phi, rest, gradient)


@njit(cache=True, fastmath=True, inline="always")
def _weigh(who: Array, shares: Array, scale: float, phi: Array, rest: Array, gradient: Array) -> float:
    """Adds up the features of pairs by their shares; returns the variance that they leave out."""
    unseen = 0.0
    gradient[:] = 0.0
    for k in range(who.shape[0]):
        row = who[k, 0]
        for d in range(gradient.shape[0]):
            gradient[d] += scale * shares[k] * phi[row, d]
        unseen += (scale * shares[k]) ** 2 * rest[row]
    return unseen


@njit(cache=True, fastmath=True)
def learn(
    at: float, work: float, span: float, index: int, first: int, who: Array, times: Array, tables: Tables,
    crowd_slots: Array, weight_slots: Array, phi: Array, rest: Array, slots: Array, level: Array,
    theta: Array, root: Array, bias: float, scale: float, memory: float, noise: float, clip: float,
    out: Array,
) -> None:  # fmt: skip
    """One step: a run of `work` solo ns took `span` ns beside others; `who` and `times` as in `work_done`.

    Extended Kalman step for theta in square-root form (Potter 1963: P = root root^T), with directional
    forgetting (Kulhavy & Karny 1984: only in the direction seen) at the rate `memory`; scalar terms beside
    it each with a variance of its own (decoupled: Puskorius & Feldkamp 1991). `noise`: variance of log
    spans; innovations are clipped at `clip` standard deviations. `out`: see the columns above."""
    segments, demands, means, n_segments, all_own = tables
    own = all_own[index]
    n, n_features = who.shape[0], theta.shape[0]
    excess, slower, shares = np.empty(n), np.empty(n), np.empty(n)
    beside(who[:, 0], who[:, 1], phi, slots, level, theta, bias, scale, at, excess, slower)
    weights = modulation(level, weight_slots, at)
    crowd = crowd_factors(level, crowd_slots, at)
    crowd_shares, weight_shares = np.empty(crowd.shape[0]), np.empty(weights.shape[0])
    done = walk(
        span, index, first, pace(level, own, at), who[:, 2], times[:, 0], times[:, 1], times[:, 2], slower,
        excess, crowd, weights, segments, demands, means, n_segments, shares, crowd_shares, weight_shares,
        np.empty(2),
    )  # fmt: skip
    residual = math.log(done / work)
    h = np.empty(n_features)
    unseen = _weigh(who, shares, scale, phi, rest, h)
    most = own.shape[0] + crowd.shape[0] + weights.shape[0] + n * slots.shape[1]
    terms, parts = np.empty(most, np.int64), np.zeros(most)
    m = 0
    for k in range(own.shape[0]):
        m = _add(terms, parts, m, own[k], 1.0)
    for k in range(crowd.shape[0]):
        if crowd_slots[k] >= 0 and crowd_shares[k] != 0.0:
            m = _add(terms, parts, m, crowd_slots[k], crowd_shares[k])
    for r in range(weights.shape[0]):
        if weight_shares[r] != 0.0:
            m = _add(terms, parts, m, weight_slots[r], weight_shares[r])
    for k in range(n):
        for s in range(slots.shape[1]):
            m = _add(terms, parts, m, slots[who[k, 0], s], shares[k])
    q = np.zeros(n_features)
    for i in range(n_features):
        for j in range(n_features):
            q[j] += root[i, j] * h[i]
    seen = 0.0
    for j in range(n_features):
        seen += q[j] * q[j]
    spread = seen / memory + unseen + noise
    for k in range(m):
        spread += parts[k] ** 2 * _variance(level, terms[k], at)
    limit = clip * math.sqrt(spread)
    innovation = min(limit, max(-limit, residual))
    if seen > 1e-12:
        change = (1.0 / memory - 1.0) / seen - 1.0 / (memory * memory * spread)
        change = (math.sqrt(max(1e-6, 1.0 + change * seen)) - 1.0) / seen
        gain = innovation / (memory * spread)
        for i in range(n_features):
            g = 0.0
            for j in range(n_features):
                g += root[i, j] * q[j]
            theta[i] = min(MOST_SIGMAS, max(-MOST_SIGMAS, theta[i] + gain * g))
            for j in range(n_features):
                root[i, j] += change * g * q[j]
    for k in range(m):
        slot = terms[k]
        variance = _variance(level, slot, at)
        gain = parts[k] * variance / spread
        level[slot, MEAN] = believed(level, slot, at) + gain * innovation
        level[slot, VARIANCE] = max(1e-8, variance * (1.0 - parts[k] * gain))
        level[slot, LEARNED_AT] = max(at, level[slot, LEARNED_AT])
    out[RESIDUAL], out[INNOVATION], out[SPREAD], out[PROGRESS] = residual, innovation, math.sqrt(spread), done


@njit(cache=True, fastmath=True, inline="always")
def _add(terms: Array, parts: Array, m: int, slot: int, part: float) -> int:
    """Take a term in, or add to its part."""
    for k in range(m):
        if terms[k] == slot:
            parts[k] += part
            return m
    terms[m] = slot
    parts[m] = part
    return m + 1


@njit(cache=True, fastmath=True, inline="always")
def _variance(level: Array, slot: int, at: float) -> float:
    """A term's variance at an instant: it grows back to the prior's while nothing is seen."""
    idle = max(0.0, at - level[slot, LEARNED_AT])
    if idle == 0.0:
        return float(level[slot, VARIANCE])
    kept = math.exp2(-2.0 * idle / level[slot, HALF_LIFE])
    prior = level[slot, PRIOR_VARIANCE]
    return float(prior + kept * (level[slot, VARIANCE] - prior))

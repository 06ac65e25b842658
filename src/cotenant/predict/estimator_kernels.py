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
MAX_CROWD = 8
"""Others beyond this many count as so many in `crowd`."""
LEAST_SLOWDOWN = 0.7
MOST_SIGMAS = 8.0
"""Bound of each weight, whose prior is a standard normal: beyond it data and form do not fit together, and
what cannot be fitted must not wind up."""
RESIDUAL, INNOVATION, SPREAD, PROGRESS = range(4)
"""What a learning step gives back: log(measured / predicted given the overlap), that clipped, its standard
deviation, and the solo work (ns) that was predicted to be done in the time."""

Array = np.ndarray[Any, Any]


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
def progress(
    span: float, pace_of_run: float, begins: Array, ends: Array, excess: Array, crowd: Array, shares: Array,
    crowd_shares: Array,
) -> float:  # fmt: skip
    """Solo work (ns) done in `span` (ns) beside others, the k-th of them from `begins[k]` to `ends[k]`.

    `shares[k]` becomes d log slowdown / d log(excess_k + 1 - FLOOR), averaged over the work done, and
    `crowd_shares[n]` the same for the factor of n others."""
    n = begins.shape[0]
    bounds = np.empty(2 * n + 2)
    bounds[0], bounds[1] = 0.0, span
    for k in range(n):
        shares[k] = 0.0
        bounds[2 + 2 * k] = min(span, max(0.0, begins[k]))
        bounds[3 + 2 * k] = min(span, max(0.0, ends[k]))
    crowd_shares[:] = 0.0
    bounds.sort()
    done = 0.0
    for b in range(bounds.shape[0] - 1):
        step = bounds[b + 1] - bounds[b]
        if step <= 0.0:
            continue
        middle = 0.5 * (bounds[b] + bounds[b + 1])
        total, n_beside = 0.0, 0
        for k in range(n):
            if begins[k] <= middle < ends[k]:
                total += excess[k]
                n_beside += 1
        n_beside = min(n_beside, crowd.shape[0] - 1)
        slowdown = max(LEAST_SLOWDOWN, 1.0 + crowd[n_beside] * total)
        work = step / (pace_of_run * slowdown)
        done += work
        crowd_shares[n_beside] += work * crowd[n_beside] * total / slowdown
        for k in range(n):
            if begins[k] <= middle < ends[k]:
                shares[k] += work * crowd[n_beside] * (excess[k] + 1.0 - FLOOR) / slowdown
    if done > 0.0:
        shares /= done
        crowd_shares /= done
    return done


@njit(cache=True, fastmath=True)
def learn(
    at: float, work: float, span: float, own: Array, crowd_slots: Array, rows: Array, begins: Array,
    ends: Array, phi: Array, rest: Array, slots: Array, level: Array, theta: Array, root: Array, bias: float,
    scale: float, memory: float, noise: float, clip: float, out: Array,
) -> None:  # fmt: skip
    """One step: a run of `work` solo ns took `span` ns beside the pairs `rows`, each from its begin to its
    end.

    Extended Kalman step for theta in square-root form (Potter 1963: P = root root^T), with directional
    forgetting (Kulhavy & Karny 1984: only in the direction seen) at the rate `memory`; scalar terms beside
    it each with a variance of its own (decoupled: Puskorius & Feldkamp 1991). `noise`: variance of log
    spans; innovations are clipped at `clip` standard deviations. `out`: see the columns above."""
    n, n_features = rows.shape[0], theta.shape[0]
    excess, shares = np.empty(n), np.empty(n)
    crowd = crowd_factors(level, crowd_slots, at)
    for k in range(n):
        beyond = log_beyond(rows[k], phi, slots, level, theta, bias, scale, at)
        excess[k] = FLOOR - 1.0 + math.exp(beyond)
    crowd_shares = np.empty(crowd.shape[0])
    done = progress(span, pace(level, own, at), begins, ends, excess, crowd, shares, crowd_shares)
    residual = math.log(done / work)
    h = np.zeros(n_features)
    unseen = 0.0
    for k in range(n):
        for d in range(n_features):
            h[d] += scale * shares[k] * phi[rows[k], d]
        unseen += (scale * shares[k]) ** 2 * rest[rows[k]]
    n_terms = own.shape[0] + crowd.shape[0] + n * slots.shape[1]
    terms, weights = np.empty(n_terms, np.int64), np.zeros(n_terms)
    m = 0
    for k in range(own.shape[0]):
        m = _add(terms, weights, m, own[k], 1.0)
    for k in range(crowd.shape[0]):
        if crowd_slots[k] >= 0 and crowd_shares[k] != 0.0:
            m = _add(terms, weights, m, crowd_slots[k], crowd_shares[k])
    for k in range(n):
        for s in range(slots.shape[1]):
            m = _add(terms, weights, m, slots[rows[k], s], shares[k])
    q = np.zeros(n_features)
    for i in range(n_features):
        for j in range(n_features):
            q[j] += root[i, j] * h[i]
    seen = 0.0
    for j in range(n_features):
        seen += q[j] * q[j]
    spread = seen / memory + unseen + noise
    for k in range(m):
        spread += weights[k] ** 2 * _variance(level, terms[k], at)
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
        gain = weights[k] * variance / spread
        level[slot, MEAN] = believed(level, slot, at) + gain * innovation
        level[slot, VARIANCE] = max(1e-8, variance * (1.0 - weights[k] * gain))
        level[slot, LEARNED_AT] = max(at, level[slot, LEARNED_AT])
    out[RESIDUAL], out[INNOVATION], out[SPREAD], out[PROGRESS] = residual, innovation, math.sqrt(spread), done


@njit(cache=True, fastmath=True, inline="always")
def _add(terms: Array, weights: Array, m: int, slot: int, weight: float) -> int:
    """Take a term in, or add to its weight."""
    for k in range(m):
        if terms[k] == slot:
            weights[k] += weight
            return m
    terms[m] = slot
    weights[m] = weight
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

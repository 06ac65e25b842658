"""Compiled steps of `estimator.py`: the work expected of a run that has ended, and one learning step."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from cotenant.predict.overlap_kernels import (
    FORWARD,
    Tables,
    crowd_factors,
    gather,
    modulation,
    pace,
    part,
    walk,
)
from cotenant.predict.row_kernels import (
    COUNTED,
    HALF_LIFE,
    LEARNED_AT,
    MEAN,
    POSITION,
    PRIOR_VARIANCE,
    VARIANCE,
    Array,
    believed,
    evaluate,
    look_up,
)

MOST_SIGMAS = 8.0
"""Bound of each weight, whose prior is a standard normal: beyond it data and form do not fit together, and
what cannot be fitted must not wind up."""
RESIDUAL, INNOVATION, SPREAD, PROGRESS = range(4)
"""What a learning step gives back: log(measured / predicted given the overlap), that clipped, its standard
deviation, and the solo work (ns) that was predicted to be done in the time."""
DONE, UNSEEN, ENTRIES = range(3)
"""What an expectation gives: solo work (ns), the variance that features leave out, entries that counted."""
Places = tuple[Array, Array, Array]
"""Where rows of pairs are: `index` (see `row_kernels.place`), the relation of any two lanes (the last row and
column: unknown lanes), and room for pairs that are missing."""
Beliefs = tuple[Array, Array, Array, Array, Array, Array, Array, Array, Array]
"""What is believed: phi, rest, slots, level, theta, row_notes, slot_notes, crowd_slots, weight_slots."""


@njit(cache=True, fastmath=True)
def work_done(
    at: float, begin: float, until: float, work: int, lane: int, first: int, who: Array, times: Array,
    n_first: int, n: int, tables: Tables, places: Places, beliefs: Beliefs, bias: float, scale: float,
    step: float, gradient: Array, out: Array,
) -> int:  # fmt: skip
    """Solo work (ns) expected to be done from `begin` to `until` by workload `work` on `lane`, from segment
    `first` on, beside others: entries [n_first, n_first + n) of `who` and `times`.

    `gradient` (D) becomes d log span / d theta; `out`: the work, and the variance that features leave out.
    Returns how many pairs are missing; unless 0, nothing was done."""
    crowd_slots, weight_slots = beliefs[7], beliefs[8]
    return _expect(
        at, begin, until, work, lane, first, who, times, n_first, n, tables, places, beliefs, bias, scale,
        step, np.empty(2 * n, np.int64), np.empty(n), np.empty(crowd_slots.shape[0]),
        np.empty(weight_slots.shape[0]), gradient, out,
    )  # fmt: skip


@njit(cache=True, fastmath=True)
def _expect(
    at: float, begin: float, until: float, work: int, lane: int, first: int, who: Array, times: Array,
    n_first: int, n: int, tables: Tables, places: Places, beliefs: Beliefs, bias: float, scale: float,
    step: float, rows: Array, shares: Array, crowd_shares: Array, weight_shares: Array, gradient: Array,
    out: Array,
) -> int:  # fmt: skip
    """As `work_done`, and how much each term says of it: `rows` (2 n) of the pairs, `shares` (n) of theirs,
    and those of the crowd's and the modulation's. `out`: also how many of the entries lie in the time."""
    phi, rest, slots, level, theta, row_notes, slot_notes, crowd_slots, weight_slots = beliefs
    index, relations, missing = places
    others, spans, wanted = np.empty(n, np.int64), np.empty((3, n)), np.empty((2 * n, 3), np.int64)
    both, excess, slower = np.empty(2 * n), np.empty(n), np.empty(n)
    n = gather(work, lane, begin, until, who, times, n_first, n, relations, others, spans, wanted)
    n_missing = look_up(index, wanted[: 2 * n], rows[: 2 * n], missing)
    if n_missing > 0:
        return int(n_missing)
    evaluate(
        rows[: 2 * n], phi, slots, level, theta, row_notes, slot_notes, bias, scale, at, step, both[: 2 * n]
    )
    part(both[: 2 * n], n, excess[:n], slower[:n])
    weights = modulation(level, weight_slots, at)
    crowd = crowd_factors(level, crowd_slots, at)
    out[DONE] = walk(
        until - begin, work, first, pace(level, tables[4][work], at), n, others, spans, slower[:n],
        excess[:n], crowd, weights, tables, True, shares[:n], crowd_shares, weight_shares, np.empty(2),
    )  # fmt: skip
    out[UNSEEN] = _add_up(rows, n, shares, scale, phi, rest, gradient)
    out[ENTRIES] = n
    return 0


@njit(cache=True, fastmath=True)
def _add_up(
    rows: Array, n: int, shares: Array, scale: float, phi: Array, rest: Array, gradient: Array
) -> float:
    """Adds up the features of pairs by their shares; returns the variance that they leave out."""
    unseen = 0.0
    gradient[:] = 0.0
    for k in range(n):
        row = rows[2 * k + FORWARD]
        for d in range(gradient.shape[0]):
            gradient[d] += scale * shares[k] * phi[row, d]
        unseen += (scale * shares[k]) ** 2 * rest[row]
    return unseen


@njit(cache=True, fastmath=True)
def learn(
    at: float, done_work: float, begin: float, until: float, work: int, lane: int, first: int, who: Array,
    times: Array, n_first: int, n: int, tables: Tables, places: Places, beliefs: Beliefs, root: Array,
    bias: float, scale: float, step: float, memory: float, noise: float, clip: float, out: Array,
) -> int:  # fmt: skip
    """One step: a run of `done_work` solo ns took from `begin` to `until`; the rest as in `work_done`.

    Extended Kalman step for theta in square-root form (Potter 1963: P = root root^T), with directional
    forgetting (Kulhavy & Karny 1984: only in the direction seen) at the rate `memory`; scalar terms beside
    it each with a variance of its own (decoupled: Puskorius & Feldkamp 1991). `noise`: variance of log
    spans; innovations are clipped at `clip` standard deviations. `out`: see the columns above. Returns how
    many pairs are missing; unless 0, nothing was done."""
    _, _, slots, level, theta, _, slot_notes, crowd_slots, weight_slots = beliefs
    rows, shares = np.empty(2 * n, np.int64), np.empty(n)
    crowd_shares, weight_shares = np.empty(crowd_slots.shape[0]), np.empty(weight_slots.shape[0])
    h, q, expected = np.empty(theta.shape[0]), np.zeros(theta.shape[0]), np.empty(3)
    n_missing = _expect(
        at, begin, until, work, lane, first, who, times, n_first, n, tables, places, beliefs, bias, scale,
        step, rows, shares, crowd_shares, weight_shares, h, expected,
    )  # fmt: skip
    if n_missing > 0:
        return int(n_missing)
    own, n = tables[4][work], int(expected[ENTRIES])
    done, unseen = expected[DONE], expected[UNSEEN]
    residual = math.log(done / done_work)
    seen = _seen(root, h, q) if n > 0 else 0.0
    most = own.shape[0] + crowd_slots.shape[0] + weight_slots.shape[0] + n * slots.shape[1]
    terms, parts = np.empty(most, np.int64), np.zeros(most)
    n_terms = _collect(
        own, crowd_slots, crowd_shares, weight_slots, weight_shares, rows, slots, shares[:n], slot_notes,
        step, terms, parts,
    )  # fmt: skip
    spread = seen / memory + unseen + noise
    for k in range(n_terms):
        spread += parts[k] ** 2 * _variance(level, terms[k], at)
    limit = clip * math.sqrt(spread)
    innovation = min(limit, max(-limit, residual))
    if seen > 1e-12:
        change = (1.0 / memory - 1.0) / seen - 1.0 / (memory * memory * spread)
        change = (math.sqrt(max(1e-6, 1.0 + change * seen)) - 1.0) / seen
        _turn(theta, root, q, change, innovation / (memory * spread))
    for k in range(n_terms):
        slot = terms[k]
        variance = _variance(level, slot, at)
        gain = parts[k] * variance / spread
        level[slot, MEAN] = believed(level, slot, at) + gain * innovation
        level[slot, VARIANCE] = max(1e-8, variance * (1.0 - parts[k] * gain))
        level[slot, LEARNED_AT] = max(at, level[slot, LEARNED_AT])
    out[RESIDUAL], out[INNOVATION], out[SPREAD], out[PROGRESS] = residual, innovation, math.sqrt(spread), done
    return 0


@njit(cache=True)
def _collect(
    own: Array, crowd_slots: Array, crowd_shares: Array, weight_slots: Array, weight_shares: Array,
    rows: Array, slots: Array, shares: Array, notes: Array, step: float, terms: Array, parts: Array,
) -> int:  # fmt: skip
    """Every term that a run says something of, once, and how much; returns how many."""
    m = 0
    for k in range(own.shape[0]):
        m = _add(terms, parts, m, own[k], 1.0, notes, step)
    for k in range(crowd_slots.shape[0]):
        if crowd_slots[k] >= 0 and crowd_shares[k] != 0.0:
            m = _add(terms, parts, m, crowd_slots[k], crowd_shares[k], notes, step)
    for r in range(weight_slots.shape[0]):
        if weight_shares[r] != 0.0:
            m = _add(terms, parts, m, weight_slots[r], weight_shares[r], notes, step)
    for k in range(shares.shape[0]):
        for s in range(slots.shape[1]):
            m = _add(terms, parts, m, slots[rows[2 * k + FORWARD], s], shares[k], notes, step)
    return m


@njit(cache=True, fastmath=True)
def _seen(root: Array, h: Array, q: Array) -> float:
    """q = root^T h; returns its square."""
    for i in range(root.shape[0]):
        for j in range(root.shape[1]):
            q[j] += root[i, j] * h[i]
    seen = 0.0
    for j in range(q.shape[0]):
        seen += q[j] * q[j]
    return seen


@njit(cache=True, fastmath=True)
def _turn(theta: Array, root: Array, q: Array, change: float, gain: float) -> None:
    """Moves theta along root q, and root by `change` root q q^T."""
    for i in range(root.shape[0]):
        g = 0.0
        for j in range(root.shape[1]):
            g += root[i, j] * q[j]
        theta[i] = min(MOST_SIGMAS, max(-MOST_SIGMAS, theta[i] + gain * g))
        for j in range(root.shape[1]):
            root[i, j] += change * g * q[j]


@njit(cache=True, inline="always")
def _add(terms: Array, parts: Array, m: int, slot: int, part: float, notes: Array, step: float) -> int:
    """Take a term in, or add to its part."""
    if notes[slot, COUNTED] == step:
        parts[np.int64(notes[slot, POSITION])] += part
        return m
    notes[slot, COUNTED], notes[slot, POSITION] = step, m
    terms[m], parts[m] = slot, part
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

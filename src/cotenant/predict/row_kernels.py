"""Compiled: where the row of a pair of workloads is, and what it says of their slowdown.

Arrays. `phi`: n_rows x D features of pairs; `slots`: n_rows x n_slots_of_pair indices of the scalar terms
that a pair has besides; `level`: n_slots x 6, the terms themselves, columns in `estimator_kernels`. A pair's
slowdown beyond 1 is

    excess = FLOOR - 1 + exp(bias + scale theta.phi + sum of its slots)

Within one step (all that is computed for one instant with one theta) rows and terms are asked for again and
again, so each remembers what it said, and in which step: `row_notes`, `slot_notes`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

Array = np.ndarray[Any, Any]

FLOOR = 0.8
"""Slowdown less this is log-linear: below the least slowdown that is seen, so that no logarithm fails."""
LARGEST_LOG = 4.0
MEAN, VARIANCE, PRIOR_MEAN, PRIOR_VARIANCE, LEARNED_AT, HALF_LIFE = range(6)
"""Columns of `level`: what is believed; what was believed before anything was seen and is returned to;
instant (ns) of the last step, half-life (ns) of what was learned when nothing is seen."""
N_COLUMNS = 6
STEP, SAID, COUNTED, POSITION = range(4)
"""Columns of notes: the step in which it was asked, what it said; of terms also the step in which it was
listed, and where."""
N_NOTES_OF_ROW, N_NOTES = 2, 4


@njit(cache=True, inline="always")
def place(index: Array, relation: int, victim: int, aggressor: int) -> int:
    """Where in the hash table a pair is, or would be. Rows: relation + 1 (0: empty), victim, aggressor,
    row."""
    mask = index.shape[0] - 1
    k = ((aggressor * 2654435761 + victim * 2246822519 + relation * 3266489917) >> 16) & mask
    while index[k, 0] != 0 and (
        index[k, 0] != relation + 1 or index[k, 1] != victim or index[k, 2] != aggressor
    ):
        k = (k + 1) & mask
    return k


@njit(cache=True)
def put(index: Array, relation: int, victim: int, aggressor: int, row: int) -> bool:
    """Give a pair a row; false when it has one already."""
    k = place(index, relation, victim, aggressor)
    if index[k, 0] != 0:
        return False
    index[k, 0], index[k, 1], index[k, 2], index[k, 3] = relation + 1, victim, aggressor, row
    return True


@njit(cache=True)
def look_up(index: Array, wanted: Array, rows: Array, missing: Array) -> int:
    """Rows of the pairs `wanted` (n x 3: relation, victim, aggressor; a relation below 0 stands for no pair),
    -1 where there is none. Pairs that have no row are added to `missing`; returns how many."""
    n_missing = 0
    for x in range(wanted.shape[0]):
        relation, victim, aggressor = wanted[x, 0], wanted[x, 1], wanted[x, 2]
        rows[x] = -1
        if relation < 0:
            continue
        k = place(index, relation, victim, aggressor)
        if index[k, 0] != 0:
            rows[x] = index[k, 3]
        elif n_missing < missing.shape[0]:
            missing[n_missing, 0], missing[n_missing, 1] = relation, victim
            missing[n_missing, 2] = aggressor
            n_missing += 1
    return n_missing


@njit(cache=True, fastmath=True, inline="always")
def believed(level: Array, slot: int, at: float) -> float:
    """A term's mean at an instant: what was learned fades to the prior."""
    mean, prior = level[slot, MEAN], level[slot, PRIOR_MEAN]
    idle = at - level[slot, LEARNED_AT]
    if idle > 0.0 and mean != prior:
        mean = prior + math.exp2(-idle / level[slot, HALF_LIFE]) * (mean - prior)
    return mean


@njit(cache=True, fastmath=True)
def evaluate(
    rows: Array, phi: Array, slots: Array, level: Array, theta: Array, row_notes: Array, slot_notes: Array,
    bias: float, scale: float, at: float, step: float, excess: Array,
) -> None:  # fmt: skip
    """Slowdowns - 1 of the pairs in `rows` (negative: none, 0), written to `excess`."""
    for x in range(rows.shape[0]):
        row = rows[x]
        if row < 0:
            excess[x] = 0.0
            continue
        if row_notes[row, STEP] != step:
            total = 0.0
            for d in range(theta.shape[0]):
                total += phi[row, d] * theta[d]
            total = bias + scale * total
            for k in range(slots.shape[1]):
                slot = slots[row, k]
                if slot_notes[slot, STEP] != step:
                    slot_notes[slot, STEP] = step
                    slot_notes[slot, SAID] = believed(level, slot, at)
                total += slot_notes[slot, SAID]
            row_notes[row, STEP] = step
            row_notes[row, SAID] = FLOOR - 1.0 + math.exp(min(LARGEST_LOG, max(-LARGEST_LOG, total)))
        excess[x] = row_notes[row, SAID]


@njit(cache=True, fastmath=True)
def pair_features(
    victim: Array, aggressor: Array, own_v: Array, own_a: Array, whiten: Array, phi: Array
) -> float:
    """Features of a pair (`phi`, D) from what its two sides have in common with the dictionary; returns the
    prior variance that they leave out.

    `victim, aggressor`: n_kinds x n, the one with amplitudes: their product, summed over kinds, is the
    covariance with each pair of the dictionary; `own_v, own_a`: n_kinds, the same for the pair's own prior
    variance; `whiten`: n x n."""
    n = whiten.shape[0]
    phi[:] = 0.0
    for i in range(n):
        k = 0.0
        for kind in range(victim.shape[0]):
            k += victim[kind, i] * aggressor[kind, i]
        for j in range(i, n):  # upper triangular
            phi[j] += k * whiten[i, j]
    own = 0.0
    for kind in range(own_v.shape[0]):
        own += own_v[kind] * own_a[kind]
    for j in range(n):
        own -= phi[j] * phi[j]
    return max(0.0, own)

"""What-if questions compiled: runs that wait in line for their streams, and when everything has ended."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from cotenant.simulate.twin.engine_kernels import (
    FOREVER,
    IDLE,
    LAUNCH_GAP,
    NOW,
    PHASE,
    Array,
    advance,
    begin,
)


@njit(cache=True, error_model="numpy")
def begin_due(
    i: Array, f: Array, totals: Array, runs: Array, at: Array, heads: Array, lasts: Array, after: Array
) -> float:  # fmt: skip
    """Begin what is first in line on idle streams and may begin. Returns when another may (ns).

    runs: n_runs x N_INTS, rows to begin with; at: n_runs, instants before which none begins; heads and lasts:
    n_streams, the stream's line is `runs[heads[s]:lasts[s]]`, the one on it included; after: n_streams, span
    from now to its first kernel (ns)."""
    next_at = math.inf
    for s in range(i.shape[0]):
        head = heads[s]
        if head == lasts[s] or i[s, PHASE] != IDLE:
            continue
        if at[head] > totals[NOW]:
            next_at = min(next_at, at[head])
        else:
            begin(i, f, s, runs[head], after[s])
    return next_at


@njit(cache=True, error_model="numpy")
def play(
    i: Array, f: Array, totals: Array, marks: Array, runs: Array, at: Array, heads: Array, lasts: Array,
    after: Array, table: Array, ends: Array, settings: Array,
) -> Array:  # fmt: skip
    """Let everything in line run to its end, as `begin_due` and `advance` have it; `heads` and `after` go on
    with it. Returns the instants of the ends (n_runs, ns)."""
    ended_at = np.zeros(len(at))
    while True:
        next_at = begin_due(i, f, totals, runs, at, heads, lasts, after)
        s = advance(i, f, totals, marks, table, ends, settings, 0, min(next_at, FOREVER), False)
        if s >= 0:
            ended_at[heads[s]] = totals[NOW]
            heads[s] += 1
            after[s] = settings[LAUNCH_GAP]
        elif math.isinf(next_at):
            return ended_at

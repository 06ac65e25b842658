"""The two steps of the calibrator, compiled: offsets from terms, and terms from a completion.

Equations and their sources stand at the head of `calibrate`. A term is a row of `terms` (n_terms x
N_COLUMNS); `path` holds the rows of a dispatch from the widest set to the narrowest (everyone, all with n
co-runners, the model, the model with n co-runners). `levels` is a model's table (4 x N_LEVELS), `settings`
its numbers. Instants are nanoseconds as floats: exact for 104 days of a monotonic clock, to 2 ns after that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from cotenant.domain import LEVELS

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

N_LEVELS = len(LEVELS) + 1
"""`LEVELS` and the model's own level."""

LOCATION, LOG_SCALE, N, LEARNED_AT, WIDENED, WIDENED_AT, RUN, SHIFTS = range(8)
"""Columns of a term; the shifts of all levels are the last. `RUN` counts innovations clipped in a row,
downward ones negative."""
N_COLUMNS = SHIFTS + N_LEVELS

LEVEL, NORMAL, RATE, ORDER = range(4)
"""Rows of `levels`: the level, its standard normal quantile, the step of its shift, and which column comes
next in ascending order of levels."""

(
    SIGMA,
    HALF_LIFE_NS,
    GRACE_NS,
    MEMORY_LOCATION,
    MEMORY_SCALE,
    HASTE,
    HASTE_MEMORY,
    WIDENING_MEMORY,
) = range(8)
"""Entries of `settings`."""
N_SETTINGS = 8

LIMIT = 4.0
"""Largest residual and offset (log, either sign): a factor of 55."""
CLIP_SCALES = 4.0
MIN_SCALE, MAX_SCALE = 0.003, 2.0
MAX_SHIFT = 8.0
"""Bound of one term's shift, in scales."""
MAX_SURPRISE = 3.0
"""Bound of what one completion says on the log scale."""
MAX_N = 10_000.0
MOVE_RUN = 3.0
"""So many clipped innovations in a row, all of one sign, are a move and no tail."""
MOVE_GAIN = 0.5
"""Share of an innovation, unclipped, by which a move is followed."""
SHARES = (0.4, 0.15, 0.2, 0.25)
"""Of a step of location and scale, in the order of a path."""
SHIFT_SHARES = (0.3, 0.0, 0.3, 0.4)
"""Of a step of the shifts."""


@njit(cache=True)
def trust(learned_at: float, settings: Floats, at: float) -> float:
    """How much of a term is still believed (0..1) after the time without observations of its set."""
    idle_ns = at - learned_at - settings[GRACE_NS]
    if idle_ns <= 0.0:
        return 1.0
    return 0.5 ** (idle_ns / settings[HALF_LIFE_NS])


@njit(cache=True)
def offsets_at(
    terms: Floats, path: Rows, levels: Floats, settings: Floats, at: float
) -> tuple[float, float, float, float, float]:
    """Log offsets of all levels at an instant, never descending in the level."""
    location = log_scale = 0.0
    shifts = np.zeros(N_LEVELS)
    for row in path:
        believed = trust(terms[row, LEARNED_AT], settings, at)
        location += believed * terms[row, LOCATION]
        log_scale += believed * terms[row, LOG_SCALE]
        if terms[row, WIDENED] > 0.0:
            since_ns = max(0.0, at - terms[row, WIDENED_AT])
            log_scale += terms[row, WIDENED] * 0.5 ** (since_ns / settings[HALF_LIFE_NS])
        for i in range(N_LEVELS):
            shifts[i] += believed * terms[row, SHIFTS + i]
    scale = min(MAX_SCALE, max(MIN_SCALE, settings[SIGMA] * math.exp(log_scale)))
    highest = -LIMIT
    for k in range(N_LEVELS):
        i = int(levels[ORDER, k])
        highest = min(LIMIT, max(highest, location + scale * (levels[NORMAL, i] + shifts[i])))
        shifts[i] = highest
    return shifts[0], shifts[1], shifts[2], shifts[3], shifts[4]


@njit(cache=True)
def learn_one(
    terms: Floats,
    path: Rows,
    levels: Floats,
    settings: Floats,
    residual: float,
    issued: Sequence[float],
    at: float,
) -> bool:
    """Move the terms of a path by one completion. Says whether its innovation was clipped."""
    residual = min(LIMIT, max(-LIMIT, residual))
    location = log_scale = 0.0
    for row in path:
        fade(terms[row], settings, at)
        location += terms[row, LOCATION]
        log_scale += terms[row, LOG_SCALE]
    scale = min(MAX_SCALE, max(MIN_SCALE, settings[SIGMA] * math.exp(log_scale)))
    innovation = min(CLIP_SCALES * scale, max(-CLIP_SCALES * scale, residual - location))
    clipped = abs(residual - location) > CLIP_SCALES * scale
    moving = abs(count_run(terms[path[3]], clipped, innovation)) >= MOVE_RUN
    move_by = MOVE_GAIN * (residual - location)
    surprise = min(MAX_SURPRISE, 1.25 * abs(innovation) / scale - 1.0)
    if (scale <= MIN_SCALE and surprise < 0.0) or (scale >= MAX_SCALE and surprise > 0.0):
        surprise = 0.0  # the sum of the terms must not run away behind its bound
    for k in range(len(path)):
        term = terms[path[k]]
        if moving:
            term[LOCATION] += SHARES[k] * move_by
            continue
        n = term[N]
        term[LOCATION] += SHARES[k] * innovation / (1.0 + min(n, settings[MEMORY_LOCATION]))
        term[LOG_SCALE] += SHARES[k] * surprise / (1.0 + min(n, settings[MEMORY_SCALE]))
        gain = SHIFT_SHARES[k] * (1.0 + settings[HASTE] / (1.0 + n / settings[HASTE_MEMORY]))
        for i in range(N_LEVELS):
            missed = 1.0 if residual > issued[i] else 0.0
            moved = term[SHIFTS + i] + gain * levels[RATE, i] * (missed - (1.0 - levels[LEVEL, i]))
            term[SHIFTS + i] = min(MAX_SHIFT, max(-MAX_SHIFT, moved))
        term[N] = min(MAX_N, n + 1.0)
    return bool(clipped)


@njit(cache=True)
def learn_of(
    tables: tuple[Floats, Rows, Floats, Floats],
    model: int,
    n_corunners: int,
    residual: float,
    issued: Sequence[float],
    at: float,
) -> bool:
    """The same for a group, by its numbers in the calibrator's tables."""
    terms, paths, levels, settings = tables
    path = paths[model, n_corunners]
    return learn_one(terms, path, levels[model], settings[model], residual, issued, at)


@njit(cache=True)
def count_run(term: Any, clipped: bool, innovation: float) -> float:
    """Count innovations clipped in a row, negative ones downwards."""
    if not clipped:
        term[RUN] = 0.0
    elif innovation > 0.0:
        term[RUN] = max(0.0, term[RUN]) + 1.0
    else:
        term[RUN] = min(0.0, term[RUN]) - 1.0
    return term[RUN]


@njit(cache=True)
def fade(term: Any, settings: Floats, at: float) -> None:
    """Bring one term to the instant `at`: what silence made it forget is gone for good."""
    believed = trust(term[LEARNED_AT], settings, at)
    if believed < 1.0:
        term[LOCATION] *= believed
        term[LOG_SCALE] *= believed
        term[N] *= believed
        term[SHIFTS:] *= believed
    term[LEARNED_AT] = max(term[LEARNED_AT], at)
    if term[WIDENED] > 0.0:
        term[WIDENED] *= 1.0 - 1.0 / settings[WIDENING_MEMORY]
        if term[WIDENED] < 0.01:
            term[WIDENED] = 0.0

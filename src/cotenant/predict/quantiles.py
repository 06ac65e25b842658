"""Quantiles of weighted samples, of normal distributions, and between known levels."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, pairwise

from cotenant.domain import LEVELS


def weighted_quantiles(pairs: list[tuple[float, float]], levels: Sequence[float]) -> list[float]:
    """Quantiles of (value, weight) pairs, which need no order: for each level (0..1) the smallest value by
    which that share of all weight is reached."""
    pairs.sort()
    reached = list(accumulate(weight for _, weight in pairs))
    last = len(pairs) - 1
    return [pairs[min(last, bisect_left(reached, level * reached[-1]))][0] for level in levels]


def between(values: Sequence[float], level: float) -> float:
    """The quantile at `level` from those at `LEVELS`, by linear interpolation; the outermost beyond them."""
    for (low, at_low), (high, at_high) in pairwise(zip(LEVELS, values, strict=True)):
        if level <= high:
            return at_low + (at_high - at_low) * max(0.0, level - low) / (high - low)
    return values[-1]


@lru_cache(maxsize=256)
def standard_normal(level: float) -> float:
    """The standard normal quantile at `level` (0..1, exclusive), by bisection of the error function."""
    low, high = -8.0, 8.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        if 0.5 * (1.0 + math.erf(middle / math.sqrt(2.0))) < level:
            low = middle
        else:
            high = middle
    return low

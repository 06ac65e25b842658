"""The scales of a curve: the same for every policy, from where all attain nearly everything to where none
attains 70 %, at least 12, denser where policies pass 75 %. Pure: attainments are asked for.

How this works. Evenly spaced scales between two guesses are run for every policy; the ends are moved out
until they are far enough, and in as long as the next one would do. Then intervals in which some policy passes
75 % are halved, the one where the reference policy does twice.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from itertools import pairwise

from cotenant.experiment.goodput import Limits, crosses_at, position, scale_at

TOP, BOTTOM, DENSE_AT = 0.99, 0.70, 0.75
MARGIN = 0.005
"""Added at both ends, because they are found on one seed."""
FEWEST = 12
COARSE = 24
"""Steps of the ladder between the first scales (27 %), more where the range is very wide."""
FIRST = (6, 9)
"""Fewest and most first scales."""
NEAREST = 2
"""Fewest steps between two scales."""

Attainments = Mapping[str, float]
"""By policy, at one scale."""
Table = dict[float, Attainments]
"""By scale."""


def evenly(low: float, high: float) -> list[float]:
    """First scales between two, both included."""
    first, last = round(position(low)), round(position(high))
    last = max(last, first + FIRST[0] * NEAREST)
    n = min(max(math.ceil((last - first) / COARSE) + 1, FIRST[0]), FIRST[1])
    steps = dict.fromkeys(round(first + (last - first) * k / (n - 1)) for k in range(n))
    return [scale_at(index) for index in steps]


def choose(
    low: float, high: float, limits: Limits, reference: str | None
) -> Generator[list[float], list[Attainments], list[float]]:
    """Yields scales to run for every policy, is sent attainments, returns the scales of the curve.

    `low`, `high`: guesses of its ends. `reference`: the policy whose 75 % matters most."""
    scales = evenly(low, high)
    table: Table = dict(zip(scales, (yield scales), strict=True))
    while (beyond := outside(table, limits)) is not None:
        [table[beyond]] = yield [beyond]
    return densified(trimmed(table), reference)


def outside(table: Table, limits: Limits, margin: float = MARGIN) -> float | None:
    """A scale below or above all of the table, where an end is not far enough; None when both are."""
    lowest, highest = min(table), max(table)
    if min(table[lowest].values()) < TOP + margin and position(lowest) > limits.lowest + 0.01:
        return scale_at(limits.within(math.floor(position(lowest) - COARSE)))
    best = max(table[highest].values())
    if best >= BOTTOM - margin and position(highest) < limits.highest - 0.01:
        further = min(max(position(best / BOTTOM), 0.0) + 6, 2 * COARSE)
        return scale_at(limits.within(math.ceil(position(highest) + further)))
    return None


def trimmed(table: Table) -> Table:
    """Without scales that say nothing: below the highest where all attain 99 %, above the lowest where none
    attains 70 %."""
    calm = [scale for scale, row in table.items() if min(row.values()) >= TOP + MARGIN]
    lost = [scale for scale, row in table.items() if max(row.values()) < BOTTOM - MARGIN]
    low = max((scale for scale in calm if all(s in calm for s in table if s < scale)), default=min(table))
    high = min((scale for scale in lost if all(s in lost for s in table if s > scale)), default=max(table))
    return {scale: table[scale] for scale in sorted(table) if low <= scale <= high}


def densified(table: Table, reference: str | None) -> list[float]:
    """The table's scales and more where policies pass 75 %."""
    scales = sorted(table)
    passing = {
        name: at
        for name in next(iter(table.values()))
        if (at := crosses_at([(scale, table[scale][name]) for scale in scales], DENSE_AT)) is not None
    }
    for at in sorted(passing.values()):
        scales = _halved(scales, at, only=sorted(table))
    if reference in passing:
        scales = _halved(scales, passing[reference])
        scales = _halved(scales, passing[reference])
    middle = math.exp(math.fsum(map(math.log, passing.values())) / len(passing)) if passing else scales[0]
    while len(scales) < FEWEST:
        widest = max(_gaps(scales), key=lambda gap: _worth(gap, middle), default=(scales[0],))[0]
        more = _halved(scales, widest)
        scales = more if len(more) > len(scales) else _wider(scales)
    return scales


def _wider(scales: Sequence[float]) -> list[float]:
    """With a scale beyond each end."""
    first, last = round(position(scales[0])), round(position(scales[-1]))
    return [scale_at(first - 2 * NEAREST), *scales, scale_at(last + 2 * NEAREST)]


def _gaps(scales: Sequence[float]) -> list[tuple[float, float]]:
    return list(pairwise(scales))


def _worth(gap: tuple[float, float], middle: float) -> float:
    """Wide gaps first, those near `middle` before others."""
    width = position(gap[1]) - position(gap[0])
    if width < 2 * NEAREST - 0.01:
        return 0.0
    away = abs(position(gap[0]) + width / 2 - position(middle))
    return width / (COARSE + away)


def _halved(scales: list[float], at: float, only: Sequence[float] | None = None) -> list[float]:
    """With a scale in the middle of the gap that holds `at`, unless that is narrow or, given `only`, none of
    its gaps."""
    for low, high in _gaps(scales):
        if low <= at < high:
            width = position(high) - position(low)
            if width < 2 * NEAREST - 0.01 or (only is not None and (low, high) not in _gaps(only)):
                return scales
            middle = scale_at(round(position(low) + width / 2))
            return sorted({*scales, middle})
    return scales

"""The scales of a curve: the same for every policy, from where all attain nearly everything to where none
attains 70 %, at least 12, denser where policies pass 75 %. Pure: attainments are told.

How this works. Scouting runs, short and far apart, told where each policy passes 75 % and where the ends are.
Scales are laid so that equal shares of a density lie between neighbours: it is even over the range and higher
about each passing, most about the reference policy's. Where the curve, once run, does not go far enough, its
ends are moved out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from cotenant.experiment.goodput import Limits, Points, bracket, hinted_at, position, scale_at

TOP, BOTTOM, DENSE_AT = 0.99, 0.70, 0.75
FEWEST, MOST = 12, 14
"""Scales of a curve as first laid."""
COARSE = 32
"""Steps of the ladder between scouting runs (37 %)."""
WIDE = 40
"""Steps between the scales of a curve where nothing happens (49 %)."""
CALM = 8
"""Steps below where a policy seems to pass 99 % at which the curve begins."""
LOST = 5
"""Steps above where the last policy seems to pass 70 % at which it ends: going a little further at once
costs less than another scale."""
NEAREST = 3
"""Fewest steps between two scales."""
NEAR = 12
"""Steps on each side of a passing where scales are denser."""
DENSER = 0.6
"""Share of the even density that is added about passings; half of it is the reference policy's."""

Attainments = Mapping[str, float]
"""By policy, at one scale."""
Table = dict[float, Attainments]
"""By scale."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """What scouting runs say of one policy. `low`, `high`: scales within which it goes from above 99 % to
    below 70 %; `passing`: where it passes 75 %, None when no load seen does."""

    low: float
    high: float
    passing: float | None


def outline(seen: Mapping[float, float]) -> Outline:
    """From attainment by scale, at least one."""
    top, bottom, dense = (bracket(seen, level) for level in (TOP, BOTTOM, DENSE_AT))
    points: Points = sorted(seen.items())
    passed = dense.held is not None and dense.broken is not None
    return Outline(
        low=min(seen) if top.held is None else max(top.held, hinted_at(points, TOP) / scale_at(CALM)),
        high=max(seen) if bottom.broken is None else hinted_at(points, BOTTOM),
        passing=hinted_at(points, DENSE_AT) if passed else None,
    )


def laid(outlines: Mapping[str, Outline], reference: str | None, limits: Limits) -> list[float]:
    """The scales of the curve, ascending. `reference`: the policy whose 75 % matters most."""
    first = limits.within(math.floor(position(min(o.low for o in outlines.values()))))
    last = limits.within(math.ceil(position(max(o.high for o in outlines.values()))) + LOST)
    last = max(last, first + (FEWEST - 1) * NEAREST)
    n = min(max(math.ceil((last - first) / WIDE) + 1, FEWEST), MOST)
    passing = {name: position(o.passing) for name, o in outlines.items() if o.passing is not None}
    density = [1.0] * (last - first)
    total = DENSER * len(density)
    for name, at in passing.items():
        others = len(passing) - (reference in passing)
        if reference not in passing:
            mass = total / others
        else:
            mass = total if not others else total / 2 if name == reference else total / 2 / others
        _heap(density, at - first, mass)
    return [scale_at(first + index) for index in _apart(_quantiles(density, n), len(density))]


def _heap(density: list[float], at: float, mass: float) -> None:
    """Add a triangle of a mass about a place, cut at the ends."""
    weights = [max(0.0, 1 - abs(k + 0.5 - at) / NEAR) for k in range(len(density))]
    whole = math.fsum(weights)
    if whole > 0:
        for k, weight in enumerate(weights):
            density[k] += mass * weight / whole


def _quantiles(density: list[float], n: int) -> list[int]:
    """`n` places, both ends included, with equal shares of the density between them."""
    share, passed, places = math.fsum(density) / (n - 1), 0.0, [0]
    for k, mass in enumerate(density):
        passed += mass
        while len(places) < n - 1 and passed >= share * len(places) - 1e-9:
            places.append(k + 1)
    return [*places, len(density)]


def _apart(places: list[int], last: int) -> list[int]:
    """The same places, moved as little as makes them NEAREST apart; the ends stay."""
    n = len(places)
    for k in range(1, n):
        places[k] = max(places[k], places[k - 1] + NEAREST)
    places[-1] = last
    for k in range(n - 2, 0, -1):
        places[k] = min(places[k], places[k + 1] - NEAREST)
    return places


def outside(table: Table, limits: Limits) -> float | None:
    """A scale below or above all of the table, where an end is not far enough; None when both are."""
    lowest, highest = min(table), max(table)
    if min(table[lowest].values()) < TOP and position(lowest) > limits.lowest + 0.01:
        return scale_at(limits.within(math.floor(position(lowest) - COARSE)))
    best = max(table[highest].values())
    if best >= BOTTOM and position(highest) < limits.highest - 0.01:
        further = min(max(position(best / BOTTOM), 0.0) + 8, 2 * COARSE)
        return scale_at(limits.within(math.ceil(position(highest) + further)))
    return None

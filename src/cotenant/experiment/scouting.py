"""Where attainment falls, told by short runs far apart: a look before the runs that results are made of."""

from __future__ import annotations

from collections.abc import Callable

from cotenant.experiment import grid
from cotenant.experiment.chains import Chain, attained
from cotenant.experiment.goodput import Limits, Points, search
from cotenant.experiment.workers import Run

Make = Callable[[float], Run]
"""The run of a policy and seed at a scale."""


def scout(make: Make, start: float, limits: Limits, *, top: bool) -> Chain[grid.Outline]:
    """Search 70 % and, with `top`, 99 % on runs COARSE steps apart."""
    seen: dict[float, float] = {}
    for level in (grid.BOTTOM, grid.TOP) if top else (grid.BOTTOM,):
        seen = yield from searched(make, seen, level, start, limits, step=grid.COARSE)
    return grid.outline(seen)


def searched(
    make: Make,
    seen: dict[float, float],
    level: float,
    start: float,
    limits: Limits,
    *,
    step: int = 1,
    hint: Points = (),
) -> Chain[dict[float, float]]:
    """Search a level (see `goodput.search`); returns attainment by scale with what was added."""
    seen = dict(seen)
    asking = search(seen, level, start=start, limits=limits, step=step, hint=hint)
    try:
        scale = next(asking)
        while True:
            [report] = yield [make(scale)]
            seen[scale] = attained(report)
            scale = asking.send(seen[scale])
    except StopIteration:
        return seen

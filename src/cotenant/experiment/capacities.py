"""The runs of a policy's curve, and of the search for what it holds 95 % and 99 % at.

How this works. Runs of the curve may be shortened, the same for every policy, so a point compares the same
traffic; those of the search are whole. The mean curve tells the first seed where its answers lie, and their
answers the other seeds: each then takes a few runs. A chain is of one policy and seed and asks for all that
its choices hang on, so it goes on as soon as that is there and tells the same whoever else runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cotenant.experiment.chains import Chain, attained
from cotenant.experiment.goodput import Limits, Points, bracket, hinted_at
from cotenant.experiment.scouting import searched
from cotenant.experiment.workers import Choice, Run

LEVELS = (0.95, 0.99)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What every policy runs. `parts`: (scale, share of the scenario's time) of the curve, ascending."""

    seeds: tuple[int, ...]
    parts: tuple[tuple[float, float], ...]
    limits: Limits
    step: int = 1
    """Steps of the ladder that an answer is known to."""

    @property
    def scales(self) -> tuple[float, ...]:
        """Of the curve."""
        return tuple(scale for scale, _ in self.parts)

    def curve(self, choice: Choice, seed: int) -> list[Run]:
        """The runs of the curve, one per scale."""
        return [Run(choice, seed, scale, part) for scale, part in self.parts]


def measured(choice: Choice, seed: int, plan: Plan) -> Chain[None]:
    """Make the runs of the curve of every seed, then search the levels on whole runs of this seed."""
    seeds = list(dict.fromkeys((*plan.seeds, seed)))
    reports = yield [run for each in seeds for run in plan.curve(choice, each)]
    n = len(plan.parts)
    values = [attained(report) for report in reports]
    curves = {each: values[i * n : (i + 1) * n] for i, each in enumerate(seeds)}
    hint = [
        (scale, math.fsum(curves[each][k] for each in plan.seeds) / len(plan.seeds))
        for k, scale in enumerate(plan.scales)
    ]
    known = {
        each: {scale: value for (scale, part), value in zip(plan.parts, curve, strict=True) if part == 1.0}
        for each, curve in curves.items()
    }
    starts = [hinted_at(hint, level) for level in LEVELS]
    first = plan.seeds[0]
    if seed != first:
        starts = yield from _levels(choice, first, plan, known[first], starts, hint)
    yield from _levels(choice, seed, plan, known[seed], starts, hint)


def _levels(
    choice: Choice,
    seed: int,
    plan: Plan,
    seen: dict[float, float],
    starts: Sequence[float],
    hint: Points,
) -> Chain[list[float]]:
    """Search every level on whole runs; returns the scales found, the start where no load holds it."""
    found = []
    for level, start in zip(LEVELS, starts, strict=True):
        seen = yield from searched(
            lambda scale: Run(choice, seed, scale), seen, level, start, plan.limits, step=plan.step, hint=hint
        )
        found.append(bracket(seen, level).held or start)
    return found

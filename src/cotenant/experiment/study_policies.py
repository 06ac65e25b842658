"""`cotenant study policies`: every policy on one scenario, over loads and seeds.

How this works. Each policy is first tried for a moment, so that what cannot work says so at once. `fcfs` and
`k_edf` are tuned on seeds of their own (`tuning`). The simple policies, on shortened runs of the first seed,
tell about where attainment falls; there the scales of the curve are chosen (`grid`). Then every policy and
seed runs the curve and searches its capacity from what the curve told (`goodput`). A run is never made twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from cotenant.catalogue import Places
from cotenant.clock import Clock
from cotenant.config import Scenario
from cotenant.domain import NS_PER_S
from cotenant.experiment import grid
from cotenant.experiment.averages import half_width, mean_report
from cotenant.experiment.chains import Chain, Runs, Told, ask, attained
from cotenant.experiment.goodput import bracket, search
from cotenant.experiment.policies_setup import Setting, StudyConfig, prepared
from cotenant.experiment.policies_summary import SIMPLE, STATIC, summarise
from cotenant.experiment.report import versions
from cotenant.experiment.tuning import CANDIDATES, TunedOn, tune, tuned_on
from cotenant.experiment.workers import Choice, InlineWorkers, ProcessWorkers, Run, Workers, World

LEVELS = (0.95, 0.99)
SPREAD = ("attainment", "goodput_per_s", "tail_variability")
"""Figures of the curve that get an interval over seeds."""


def study(scenario: Scenario, where: Places, config: StudyConfig, clock: Clock, told: Told) -> dict[str, Any]:
    """The whole study (DESIGN.md, section 6), with `summary` and what it was made of.

    Blocks for minutes. Raises StudyError or ConfigError."""
    began = clock.now()
    told("first tries", 0, 1)
    made = prepared(scenario, where, config)
    with _workers(made.world, config.processes) as workers:
        runs = Runs(workers, told)
        chosen, on = _tuned(made, runs)
        scales = config.scales or _chosen_scales(made, runs, chosen, on)
        _curves(made, runs, chosen, scales)
        if not config.scales:
            scales = _far_enough(made, runs, chosen, scales)
    result = {
        "scenario": scenario.path.name,
        "seeds": list(made.seeds),
        "policies": [_policy_rows(made, runs, choice, scales) for choice in chosen],
        "scales": list(scales),
        "capacity_per_s": made.capacity_per_s,
        "offered_per_s": made.offered_per_scale / made.duration_s,
        "tuned": {choice.name: dict(choice.settings) for choice in chosen if choice.settings},
        "tuned_on": {"seeds": list(on.seeds), "part": on.part},
        "versions": versions(),
        "n_runs": len(runs.known),
        "processes": config.processes,
        "elapsed_s": (clock.now() - began) / NS_PER_S,
    }
    return {**result, "summary": summarise(result)}


def _workers(world: World, n: int) -> Workers:
    return ProcessWorkers(world, n) if n > 1 else InlineWorkers(world)


def _tuned(made: Setting, runs: Runs) -> tuple[list[Choice], TunedOn]:
    """The policies with the settings they run with."""
    offered = made.start * made.offered_per_scale
    on = tuned_on(made.seeds[0], offered, made.start, made.limits)
    names = [name for name in made.config.policies if name in CANDIDATES]
    found = dict(zip(names, runs.drive("tuning", [tune(name, on) for name in names]), strict=True))
    return [found.get(name, Choice(name)) for name in made.config.policies], on


def _chosen_scales(made: Setting, runs: Runs, chosen: Sequence[Choice], on: TunedOn) -> tuple[float, ...]:
    """The scales of the curve, from the first seed."""
    seed = made.seeds[0]
    scouts = [choice for choice in chosen if choice.name in SIMPLE] or list(chosen[:1])

    def between(choice: Choice) -> Chain[tuple[float, float]]:
        make = _maker(choice, seed, on.part)
        seen = yield from _search(make, {}, grid.TOP, made, step=grid.COARSE)
        seen = yield from _search(make, seen, grid.BOTTOM, made, step=grid.COARSE)
        low, high = bracket(seen, grid.TOP).held, bracket(seen, grid.BOTTOM).broken
        return low or min(seen), high or max(seen)

    ends = runs.drive("looking where attainment falls", [between(choice) for choice in scouts])

    def choosing() -> Chain[tuple[float, ...]]:
        names = {choice.name for choice in chosen}
        reference = STATIC if STATIC in names else None
        asking = grid.choose(min(e[0] for e in ends), max(e[1] for e in ends), made.limits, reference)
        wanted = next(asking)
        while True:
            asked = [Run(choice, seed, scale) for scale in wanted for choice in chosen]
            values = iter(map(attained, (yield asked)))
            rows: list[grid.Attainments] = [{choice.name: next(values) for choice in chosen} for _ in wanted]
            try:
                wanted = asking.send(rows)
            except StopIteration as stop:
                return tuple(stop.value)

    return runs.drive("choosing the loads", [choosing()])[0]


def _curves(made: Setting, runs: Runs, chosen: Sequence[Choice], scales: Sequence[float]) -> None:
    """Make every run of the curve, and those that the capacity searches want besides."""

    def whole(choice: Choice, seed: int) -> Chain[None]:
        make = _maker(choice, seed)
        reports = yield [make(scale) for scale in scales]
        seen = dict(zip(scales, map(attained, reports), strict=True))
        for level in LEVELS:
            seen = yield from _search(make, seen, level, made)

    chains = [whole(choice, seed) for seed in made.seeds for choice in chosen]
    runs.drive("curves and capacities", chains)


def _far_enough(
    made: Setting, runs: Runs, chosen: Sequence[Choice], scales: Sequence[float]
) -> tuple[float, ...]:
    """The curve with its ends moved out until the means over seeds are far enough too."""
    while True:
        table: grid.Table = {
            scale: {choice.name: _mean_attained(made, runs, choice, scale) for choice in chosen}
            for scale in (min(scales), max(scales))
        }
        beyond = grid.outside(table, made.limits, margin=0.0)
        if beyond is None:
            return tuple(scales)
        more = [ask(Run(choice, seed, beyond)) for seed in made.seeds for choice in chosen]
        runs.drive("moving the ends of the curve", more)
        scales = sorted([*scales, beyond])


def _mean_attained(made: Setting, runs: Runs, choice: Choice, scale: float) -> float:
    values = [attained(runs.known[Run(choice, seed, scale)]) for seed in made.seeds]
    return math.fsum(values) / len(values)


Make = Callable[[float], Run]


def _maker(choice: Choice, seed: int, part: float = 1.0) -> Make:
    return lambda scale: Run(choice, seed, scale, part)


def _search(
    make: Make, seen: dict[float, float], level: float, made: Setting, step: int = 1
) -> Chain[dict[float, float]]:
    """Search a level; returns attainment by scale with what was added."""
    seen = dict(seen)
    asking = search(seen, level, start=made.start, limits=made.limits, step=step)
    try:
        scale = next(asking)
        while True:
            [report] = yield [make(scale)]
            seen[scale] = attained(report)
            scale = asking.send(seen[scale])
    except StopIteration:
        return seen


def _policy_rows(made: Setting, runs: Runs, choice: Choice, scales: Sequence[float]) -> dict[str, Any]:
    """One entry of `policies`."""
    return {
        "policy": choice.name,
        "goodput_per_s": {f"{level:g}": _capacity(made, runs, choice, level) for level in LEVELS},
        "curve": [_point(made, runs, choice, scale) for scale in sorted(scales)],
    }


def _capacity(made: Setting, runs: Runs, choice: Choice, level: float) -> dict[str, Any]:
    """Goodput at a level: mean and half the 95 % interval over seeds; 0 where no load holds it."""
    found = []
    for seed in made.seeds:
        mine = {run.scale: run for run in runs.known if run == Run(choice, seed, run.scale)}
        held = bracket({scale: attained(runs.known[run]) for scale, run in mine.items()}, level).held
        goodput = 0.0 if held is None else float(runs.known[mine[held]]["goodput_per_s"])
        found.append({"seed": seed, "scale": held, "goodput_per_s": goodput})
    values = [float(entry["goodput_per_s"] or 0.0) for entry in found]
    return {"mean": math.fsum(values) / len(values), "ci95": half_width(values), "per_seed": found}


def _point(made: Setting, runs: Runs, choice: Choice, scale: float) -> dict[str, Any]:
    """One point of a curve: means over seeds, with the intervals of some."""
    reports = [runs.known[Run(choice, seed, scale)] for seed in made.seeds]
    spread = {key: half_width([r[key] for r in reports if r[key] is not None]) for key in SPREAD}
    return {"scale": scale, "load": made.load(scale), **mean_report(reports), "ci95": spread}

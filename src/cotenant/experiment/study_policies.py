"""`cotenant study policies`: every policy on one scenario, over loads and seeds.

How this works. Each policy is first tried for a moment, so that what cannot work says so at once. `fcfs` and
`k_edf` are tuned on seeds of their own (`tuning`). Short runs of the first seed tell about where each
policy's attainment falls (`scouting`); there the scales of the curve are laid (`grid`). Then every policy and
seed runs the curve and searches its capacity from what the curve told (`capacities`). A run is never made
twice.

A run of the curve is shortened to about CURVE_REQUESTS, all phases kept: what it costs then hangs little on
how high a load the policies bear. At one scale it is the same for all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cotenant.catalogue import Places
from cotenant.clock import Clock
from cotenant.config import Scenario
from cotenant.domain import NS_PER_S
from cotenant.experiment import grid
from cotenant.experiment.averages import half_width, mean_report
from cotenant.experiment.capacities import LEVELS, Plan, measured
from cotenant.experiment.chains import Runs, Told, attained, every
from cotenant.experiment.goodput import bracket
from cotenant.experiment.policies_setup import Setting, StudyConfig, prepared
from cotenant.experiment.policies_summary import ORACLE, SIMPLE, STATIC, summarise
from cotenant.experiment.report import versions
from cotenant.experiment.scouting import Make, scout
from cotenant.experiment.tuning import CANDIDATES, TunedOn, tune, tuned_on
from cotenant.experiment.workers import Choice, InlineWorkers, ProcessWorkers, Run, Workers, World

CURVE_REQUESTS, LEAST_CURVE = 3600, 0.05
"""Requests that a run of the curve is shortened to, but not below this share of the scenario's time. Where
scales are named, runs are whole."""
SCOUT_REQUESTS, LEAST_SCOUT = 1500, 0.04
"""The same of runs that look where attainment falls."""
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
        scales = config.scales or _chosen_scales(made, runs, chosen)
        plan = _plan(made, scales)
        _measure(plan, runs, chosen)
        if not config.scales:
            plan = _far_enough(made, plan, runs, chosen)
    result = {
        "scenario": scenario.path.name,
        "seeds": list(made.seeds),
        "policies": [_policy_rows(made, plan, runs, choice) for choice in chosen],
        "scales": list(plan.scales),
        "capacity_per_s": made.capacity_per_s,
        "offered_per_s": made.offered_per_scale / made.duration_s,
        "tuned": {choice.name: dict(choice.settings) for choice in chosen if choice.settings},
        "tuned_on": {"seeds": list(on.seeds), "requests": on.requests},
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
    on = tuned_on(made)
    names = [name for name in made.config.policies if name in CANDIDATES]
    found = dict(zip(names, runs.drive("tuning", [tune(name, on) for name in names]), strict=True))
    return [found.get(name, Choice(name)) for name in made.config.policies], on


def _chosen_scales(made: Setting, runs: Runs, chosen: Sequence[Choice]) -> tuple[float, ...]:
    """The scales of the curve, from the first seed. Where attainment first falls is asked of simple
    policies, which run fast and fall first. The oracle, slowest by far, is not asked: it falls about where
    `ours` does."""
    names = {choice.name for choice in chosen}
    simple = names & set(SIMPLE)
    scouts = [choice for choice in chosen if choice.name != ORACLE or "ours" not in names]

    def maker(choice: Choice) -> Make:
        seed = made.seeds[0]
        return lambda scale: Run(choice, seed, scale, made.part(scale, SCOUT_REQUESTS, LEAST_SCOUT))

    chains = [
        scout(maker(choice), made.start, made.limits, top=not simple or choice.name in simple)
        for choice in scouts
    ]
    found = runs.drive("looking where attainment falls", chains)
    outlines = {choice.name: outline for choice, outline in zip(scouts, found, strict=True)}
    return tuple(grid.laid(outlines, STATIC if STATIC in outlines else None, made.limits))


def _plan(made: Setting, scales: Sequence[float]) -> Plan:
    whole = bool(made.config.scales)
    parts = {s: 1.0 if whole else made.part(s, CURVE_REQUESTS, LEAST_CURVE) for s in sorted(scales)}
    return Plan(seeds=made.seeds, parts=tuple(parts.items()), limits=made.limits)


def _measure(plan: Plan, runs: Runs, chosen: Sequence[Choice]) -> None:
    """Make every run of the curve, and those that the capacity searches want besides."""
    chains = [measured(choice, seed, plan) for seed in plan.seeds for choice in chosen]
    runs.drive("curves and capacities", chains)


def _far_enough(made: Setting, plan: Plan, runs: Runs, chosen: Sequence[Choice]) -> Plan:
    """The curve with its ends moved out until the means over seeds are far enough too."""
    while True:
        table: grid.Table = {
            at[0]: {choice.name: _mean_attained(plan, runs, choice, at) for choice in chosen}
            for at in (plan.parts[0], plan.parts[-1])
        }
        beyond = grid.outside(table, made.limits)
        if beyond is None:
            return plan
        more = _plan(made, [beyond])
        chains = [every(more.curve(choice, seed)) for seed in made.seeds for choice in chosen]
        runs.drive("moving the ends of the curve", chains)
        plan = replace(plan, parts=tuple(sorted((*plan.parts, *more.parts))))


def _mean_attained(plan: Plan, runs: Runs, choice: Choice, at: tuple[float, float]) -> float:
    values = [attained(runs.known[Run(choice, seed, *at)]) for seed in plan.seeds]
    return math.fsum(values) / len(values)


def _policy_rows(made: Setting, plan: Plan, runs: Runs, choice: Choice) -> dict[str, Any]:
    """One entry of `policies`."""
    return {
        "policy": choice.name,
        "goodput_per_s": {f"{level:g}": _capacity(made, runs, choice, level) for level in LEVELS},
        "curve": [_point(made, runs, choice, *at) for at in plan.parts],
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


def _point(made: Setting, runs: Runs, choice: Choice, scale: float, part: float) -> dict[str, Any]:
    """One point of a curve: means over seeds, with the intervals of some."""
    reports = [runs.known[Run(choice, seed, scale, part)] for seed in made.seeds]
    spread = {key: half_width([r[key] for r in reports if r[key] is not None]) for key in SPREAD}
    load = made.load(scale)
    return {"scale": scale, "load": load, "part": part, **mean_report(reports), "ci95": spread}

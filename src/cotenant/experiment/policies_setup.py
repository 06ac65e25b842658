"""What a study of policies needs to know before its first run, and what can fail until then."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cotenant.catalogue import Places
from cotenant.config import Scenario
from cotenant.domain import JobClass
from cotenant.experiment.capacity import simulated_capacity
from cotenant.experiment.goodput import Limits, position, scale_at
from cotenant.experiment.load import arrivals
from cotenant.experiment.policies_summary import ORACLE, SIMPLE, STATIC
from cotenant.experiment.simulated import device_of
from cotenant.experiment.workers import Choice, Run, StudyError, World, perform
from cotenant.schedule.policies import POLICIES, make_policy

USUAL = (*SIMPLE, STATIC, "ours", ORACLE)
"""Studied unless told otherwise, those that the device can run."""
LOAD = 0.8
"""Where searches start: this share of the saturated capacity."""
FEWEST_REQUESTS = 300
"""A load that offers fewer in the whole run is not sensible: three misses would be 1 %."""
FURTHEST = 420
"""Steps of the ladder above the start that are tried at most (a factor of 65)."""
MANY_REQUESTS = 100_000
"""Enough to count how many a scale offers."""
TRIAL_REQUESTS = 60
MOST_SEEDS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyConfig:
    """What to study. `policies` empty: the usual ones; `scales` empty: chosen. Raises ValueError that names
    the flag."""

    policies: tuple[str, ...]
    n_seeds: int = 3
    scales: tuple[float, ...] = ()
    processes: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.n_seeds <= MOST_SEEDS:
            raise ValueError(f"--seeds must be from 1 to {MOST_SEEDS}, not {self.n_seeds}")
        for scale in self.scales:
            if not (math.isfinite(scale) and scale > 0):
                raise ValueError(f"--scales: {scale:g} is not greater than 0")
        if self.processes < 1:
            raise ValueError(f"--processes must be 1 or more, not {self.processes}")


def known_policies(names: Sequence[str]) -> tuple[str, ...]:
    """The policies named, each once. Raises ValueError that names the unknown one and the nearest known
    one."""
    known = ["default", *POLICIES]
    for name in names:
        try:
            make_policy(name)
        except ValueError:
            near = difflib.get_close_matches(name, known, 1, 0.4)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(
                f"--policies: unknown policy {name!r}; {hint}known: {', '.join(known)}"
            ) from None
    return tuple(dict.fromkeys(names))


def usual_policies(scenario: Scenario) -> tuple[str, ...]:
    """Those studied unless told otherwise: only a twin can be asked for the truth."""
    return tuple(name for name in USUAL if name != ORACLE or scenario.device.kind == "twin")


@dataclass(slots=True, kw_only=True)
class Setting:
    """What is known of a scenario and its device before the first run."""

    world: World
    config: StudyConfig
    capacity_per_s: float
    offered_per_scale: float
    """Requests with a deadline that a whole run offers at scale 1."""
    duration_s: float

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of the results."""
        first = self.world.scenario.load.seed
        return tuple(range(first, first + self.config.n_seeds))

    @property
    def start(self) -> float:
        """Where searches begin."""
        wanted = LOAD * self.capacity_per_s * self.duration_s / self.offered_per_scale
        return scale_at(round(position(wanted)))

    @property
    def limits(self) -> Limits:
        """Sensible loads."""
        start = round(position(self.start))
        fewest = math.ceil(position(FEWEST_REQUESTS / self.offered_per_scale))
        return Limits(lowest=min(fewest, start), highest=start + FURTHEST)

    def part(self, scale: float, requests: int, least: float) -> float:
        """The share of the scenario's time in which a scale offers about so many requests, not below
        `least`."""
        return min(1.0, max(least, round(requests / (scale * self.offered_per_scale), 3)))

    def load(self, scale: float) -> float:
        """Requests offered per second as a share of the saturated capacity."""
        return scale * self.offered_per_scale / self.duration_s / self.capacity_per_s


def prepared(scenario: Scenario, where: Places, config: StudyConfig) -> Setting:
    """Everything that can fail before hours of work: the device, the capacity, a moment of every policy."""
    config = replace(config, policies=config.policies or usual_policies(scenario))
    device = device_of(scenario, where)
    if all(model.job_class is JobClass.BEST_EFFORT for model in scenario.models):
        raise StudyError(
            f"{scenario.path}: all models are best effort, so there is no deadline to attain; give "
            "one of them slo_ms or slo_scale"
        )
    capacity = simulated_capacity(scenario, device)
    world = World(
        scenario=scenario,
        where=where,
        capacity_per_s=capacity if scenario.load.scale_of == "capacity" else None,
    )
    made = Setting(
        world=world,
        config=config,
        capacity_per_s=capacity,
        offered_per_scale=_offered_per_scale(world),
        duration_s=scenario.load.duration_s,
    )
    scale = scenario.load.scale
    part = min(1.0, TRIAL_REQUESTS / (scale * made.offered_per_scale))
    for name in config.policies:
        perform(world, device, Run(Choice(name), scenario.load.seed, scale, part))
    return made


def _offered_per_scale(world: World) -> float:
    """Requests with a deadline that a whole run offers per unit of scale, counted where there are many.

    Raises StudyError when there are none or the scale changes nothing."""
    scenario, scale = world.scenario, world.scenario.load.scale

    def counted(at: float) -> int:
        _, which = arrivals(scenario, scale=at, capacity_per_s=world.capacity_per_s)
        per_model = np.bincount(which, minlength=len(scenario.models)).tolist()
        return sum(
            n
            for n, model in zip(per_model, scenario.models, strict=True)
            if model.job_class is not JobClass.BEST_EFFORT
        )

    few = counted(scale)
    if not few:
        raise StudyError(
            f"{scenario.path}: at [load] scale {scale:g} no protected or standard request is offered; give "
            "the models rate_per_s"
        )
    more = min(max(2.0, MANY_REQUESTS / few), 1000.0)
    many = counted(scale * more)
    if many < 1.2 * few and few > 100:
        raise StudyError(
            f"{scenario.path}: a higher scale offers no more requests; give the models whose arrivals are a "
            "trace rate_per_s"
        )
    return many / (scale * more)

"""Settings of the simple policies that have any, chosen per scenario on seeds that results never use.

How this works. The goal is goodput at 95 % attainment. Short runs of the first candidate tell about where
that lies; there all candidates run, short too. The best few go on, on longer runs, to loads some steps higher
or lower, until none holds 95 %; the one that would hold it longest, by interpolation, wins. All phases are
kept, attainment is the mean over two seeds, and candidates are always compared on the same traffic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cotenant.experiment.chains import Chain, attained
from cotenant.experiment.goodput import Limits, crossing, position, scale_at, search
from cotenant.experiment.policies_setup import Setting
from cotenant.experiment.workers import Choice, Run

LEVEL = 0.95
SEEDS_FROM = 1_000_000
"""Added to the scenario's seed: no study has so many."""
N_SEEDS = 2
COARSE = 8
"""Steps of the ladder between loads (8 %)."""
GO_ON = 4
"""Most candidates that go on from where all ran."""
SCREEN_REQUESTS, RUN_REQUESTS = 2000, 4000
"""Runs are shortened to about so many requests: of all candidates, and of those that go on ..."""
LEAST_PART = 0.1
"""... but not below this share of the scenario's time."""

CANDIDATES: Mapping[str, tuple[Choice, ...]] = {
    "fcfs": tuple(Choice("fcfs", (("k", k),)) for k in (2, 1, 4)),
    "k_edf": tuple(
        Choice("k_edf", (("k", k), ("margin", margin)))
        for margin in (1.3, 1.0, 1.6, 2.0)
        for k in (2, 1, 3, 4, 8)
    ),
}
"""What is tried, the usual setting first: of equals the first is taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TunedOn:
    """The runs that settings are chosen by."""

    seeds: tuple[int, ...]
    requests: int
    """About so many in each of those that decide."""
    start: float
    limits: Limits
    part: Callable[[float, int, float], float]
    """See `Setting.part`."""


def tuned_on(made: Setting) -> TunedOn:
    """For a study."""
    seeds = tuple(made.seeds[0] + SEEDS_FROM + i for i in range(N_SEEDS))
    return TunedOn(seeds=seeds, requests=RUN_REQUESTS, start=made.start, limits=made.limits, part=made.part)


def tune(name: str, on: TunedOn) -> Chain[Choice]:
    """The best setting of a policy that has candidates."""
    asking = screen(CANDIDATES[name], on.start, on.limits)
    answer: list[float] | None = None
    while True:
        try:
            wanted = next(asking) if answer is None else asking.send(answer)
        except StopIteration as stop:
            found: Choice = stop.value
            return found
        runs = [
            Run(each.choice, seed, each.scale, on.part(each.scale, each.requests, LEAST_PART))
            for each in wanted
            for seed in on.seeds
        ]
        reports = yield runs
        values = [attained(report) for report in reports]
        n = len(on.seeds)
        answer = [math.fsum(values[i : i + n]) / n for i in range(0, len(values), n)]


class Trial(NamedTuple):
    """A candidate to run, and about how many requests."""

    choice: Choice
    scale: float
    requests: int


def screen(
    candidates: Sequence[Choice], start: float, limits: Limits
) -> Generator[list[Trial], list[float], Choice]:
    """Yields what to run, is sent attainment, returns the candidate that holds 95 % up to the highest
    load."""
    index = yield from _about(candidates[0], start, limits)
    scale = scale_at(index)
    values = yield [Trial(choice, scale, SCREEN_REQUESTS) for choice in candidates]
    left = _best(candidates, dict(zip(candidates, values, strict=True)))
    held, before = dict[Choice, float](), scale
    while True:
        scale = scale_at(index)
        values = yield [Trial(choice, scale, RUN_REQUESTS) for choice in left]
        now = dict(zip(left, values, strict=True))
        passing = [choice for choice in left if now[choice] >= LEVEL]
        if held and not passing:
            return max(left, key=lambda choice: crossing(before, held[choice], scale, now[choice], LEVEL))
        if (not passing and index <= limits.lowest) or index >= limits.highest:
            return max(left, key=lambda choice: now[choice])
        left = passing or left
        held, before = ({choice: now[choice] for choice in left} if passing else {}), scale
        index = limits.within(index + (COARSE if passing else -COARSE))


def _about(first: Choice, start: float, limits: Limits) -> Generator[list[Trial], list[float], int]:
    """The step of the ladder about which a candidate attains 95 %."""
    asking = search({}, LEVEL, start=start, limits=limits, step=COARSE)
    answer: float | None = None
    while True:
        try:
            scale = next(asking) if answer is None else asking.send(answer)
        except StopIteration as stop:
            return limits.lowest if stop.value is None else round(position(stop.value))
        [answer] = yield [Trial(first, scale, SCREEN_REQUESTS)]


def _best(candidates: Sequence[Choice], now: Mapping[Choice, float]) -> list[Choice]:
    """Those that go on, the usual setting before its equals."""
    ranked = sorted(candidates, key=lambda choice: -now[choice])[:GO_ON]
    return [choice for choice in candidates if choice in ranked]

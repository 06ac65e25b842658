"""Settings of the simple policies that have any, chosen per scenario on seeds that results never use.

How this works. The goal is goodput at 95 % attainment. A run of the first candidate's search finds about
where that lies; there all candidates run. The best of those that hold 95 % go on to loads some steps higher,
until none holds it; the one that would hold it longest, by interpolation, wins. Runs are shortened, all
phases kept, and attainment is the mean over two seeds.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass

from cotenant.experiment.chains import Chain, attained
from cotenant.experiment.goodput import Limits, crossing, position, scale_at, search
from cotenant.experiment.workers import Choice, Run

LEVEL = 0.95
SEEDS_FROM = 1_000_000
"""Added to the scenario's seed: no study has so many."""
N_SEEDS = 2
COARSE = 8
"""Steps of the ladder between loads (8 %)."""
GO_ON = 6
"""Most candidates that go on to the next load."""
RUN_REQUESTS = 6000
"""Runs are shortened to about so many requests ..."""
LEAST_PART = 0.5
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
    part: float
    start: float
    limits: Limits


def tuned_on(seed: int, offered: float, start: float, limits: Limits) -> TunedOn:
    """`offered`: requests of a whole run at scale `start`."""
    part = min(1.0, max(LEAST_PART, RUN_REQUESTS / max(1.0, offered)))
    seeds = tuple(seed + SEEDS_FROM + i for i in range(N_SEEDS))
    return TunedOn(seeds=seeds, part=round(part, 2), start=start, limits=limits)


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
        runs = [Run(choice, seed, scale, on.part) for choice, scale in wanted for seed in on.seeds]
        reports = yield runs
        values = [attained(report) for report in reports]
        n = len(on.seeds)
        answer = [math.fsum(values[i : i + n]) / n for i in range(0, len(values), n)]


Asked = list[tuple[Choice, float]]


def screen(
    candidates: Sequence[Choice], start: float, limits: Limits
) -> Generator[Asked, list[float], Choice]:
    """Yields (candidate, scale) pairs to run, is sent attainment, returns the candidate that holds 95 % up
    to the highest load."""
    first, seen = candidates[0], dict[float, float]()
    asking = search(seen, LEVEL, start=start, limits=limits, step=COARSE)
    answer: float | None = None
    while True:
        try:
            scale = next(asking) if answer is None else asking.send(answer)
        except StopIteration as stop:
            index = limits.lowest if stop.value is None else round(position(stop.value))
            break
        [answer] = yield [(first, scale)]
    left, held, before = list(candidates), dict[Choice, float](), scale_at(index)
    while True:
        scale = scale_at(index)
        values = yield [(choice, scale) for choice in left]
        now = dict(zip(left, values, strict=True))
        passing = [choice for choice in left if now[choice] >= LEVEL]
        if held and not passing:
            return max(left, key=lambda choice: crossing(before, held[choice], scale, now[choice], LEVEL))
        if (not passing and index <= limits.lowest) or index >= limits.highest:
            return max(left, key=lambda choice: now[choice])
        ranked = sorted(passing or left, key=lambda choice: -now[choice])[:GO_ON]
        left = [choice for choice in candidates if choice in ranked]
        held, before = ({choice: now[choice] for choice in left} if passing else {}), scale
        index = limits.within(index + (COARSE if passing else -COARSE))

"""Co-runs under random arrivals, in episodes; the same episode again and again, for the noise.

An episode begins and ends with an idle device: it is one `run` of the data set. Its lanes, mix, batches,
shares and pauses all follow from its number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
from driver import Driver, Ended
from subjects import INPUTS, SEED, Subject

from cotenant.domain import NS_PER_S, Variant

LENGTH = 96
"""Dispatches of an episode."""
NOISE_LENGTH = 24
CONFINED_EACH = 4
"""One episode of so many confines its dispatches to partitions, where there are any."""
Solo = dict[tuple[Variant, float], float]
"""Median span (ns) of a variant alone on a share."""


@dataclass(frozen=True)
class Draw:
    """One dispatch of an episode: what, on which share, and how long its lane pauses before it (ns)."""

    lane: int
    model: str
    variant: Variant
    which: int
    share: float
    pause_ns: int


@dataclass
class Stage:
    """Where episodes are played."""

    driver: Driver
    subjects: dict[str, Subject]
    solo_ns: Solo
    shares: tuple[float, ...] = (1.0,)
    _names: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self._names = sorted(self.subjects)

    def episode(self, seed: int, n: int, n_lanes: int, *, confined: bool = False) -> list[Draw]:
        """Pauses are exponential; their mean, 0 to 1 times the mean solo time of the mix, is the episode's
        own, and so are the mix of models and that of batches."""
        rng = np.random.default_rng((SEED, seed))
        mix = rng.dirichlet(np.full(len(self._names), 0.5))
        names = [self._names[k] for k in rng.choice(len(mix), n, p=mix)]
        n_sizes = len(self.subjects[self._names[0]].variants)
        sizes = rng.choice(n_sizes, n, p=rng.dirichlet(np.ones(n_sizes)))
        lane_shares = rng.choice(self.shares, n_lanes) if confined else np.ones(n_lanes)
        variants = [self.subjects[name].variants[size] for name, size in zip(names, sizes, strict=True)]
        mean = float(np.mean([self.solo_ns[v, 1.0] for v in variants])) * float(rng.uniform(0, 1))
        return [
            Draw(
                lane=i % n_lanes,
                model=name,
                variant=variant,
                which=int(rng.integers(INPUTS)),
                share=float(lane_shares[i % n_lanes]),
                pause_ns=int(rng.exponential(mean)) if mean else 0,
            )
            for i, (name, variant) in enumerate(zip(names, variants, strict=True))
        ]

    def play(self, draws: list[Draw]) -> list[Ended]:
        """Each lane does its draws in order, pausing before each."""
        driver, clock = self.driver, self.driver.clock
        waiting: dict[int, list[Draw]] = {}
        for draw in draws:
            waiting.setdefault(draw.lane, []).append(draw)
        now = clock.now()
        due = {lane: now + line[0].pause_ns for lane, line in waiting.items()}
        ended: list[Ended] = []
        while len(ended) < len(draws):
            now = clock.now()
            for lane, at in list(due.items()):
                if at <= now:
                    draw = waiting[lane].pop(0)
                    del due[lane]
                    driver.start(lane, *self.subjects[draw.model].work(draw.variant, draw.which), draw.share)
            wait_ns = min(due.values(), default=now + NS_PER_S) - clock.now()
            found = driver.wait(max(0, wait_ns) / NS_PER_S) if due else driver.next()
            if found is not None:
                driver.executor.take_results(found.dispatch_id)
                ended.append(found)
                if waiting[found.lane]:
                    due[found.lane] = found.seen_at + waiting[found.lane][0].pause_ns
        return ended

    def coruns(self) -> Iterator[tuple[int, list[Ended]]]:
        """Episodes without end, the number of lanes changing."""
        n_lanes = len(self.driver.executor.lanes)
        for number in count():
            confined = len(self.shares) > 1 and number % CONFINED_EACH == CONFINED_EACH - 1
            lanes = 1 + (number // CONFINED_EACH if confined else number) % n_lanes
            yield number, self.play(self.episode(number, LENGTH, lanes, confined=confined))

    def noise(self, seconds: float) -> dict[str, Any]:
        """Spread of each dispatch's span over plays of the same episode, as a share of its median."""
        until = self.driver.clock.now() + int(seconds * NS_PER_S)
        n_lanes = len(self.driver.executor.lanes)
        plays: dict[int, list[list[float]]] = {}
        n = 0
        while self.driver.clock.now() < until or n < 2 * n_lanes:
            lanes = 1 + n % n_lanes
            ended = {e.order: e.span_ns for e in self.play(self.episode(10_000 + lanes, NOISE_LENGTH, lanes))}
            plays.setdefault(lanes, []).append([ended[k] for k in sorted(ended)])
            n += 1
        spreads = {}
        for lanes, found in plays.items():
            table = np.array(found)
            middle = np.median(table, axis=0)
            spreads[str(lanes)] = float(np.median(np.abs(table - middle) / middle))
        return {
            "median_relative_deviation_by_lanes": spreads,
            "plays": {str(lanes): len(found) for lanes, found in plays.items()},
        }

"""Co-runs under random arrivals, in episodes that begin and end with an idle device.

How this works. Everything an episode does follows from the seed and its name: which lanes take part, and
what each of them runs in which order, pausing how long before each run. Lanes go on independently, so who
meets whom is up to the device, as in service. No scheduler is involved: it is the device that is recorded,
not a policy. Every other episode is a noise episode, short, and one of a few that come again and again:
`noise-<k>-<repeat>`, the others `mix-<n>`. What differs between repeats is what nobody can predict.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np

from cotenant.domain import NS_PER_MS, NS_PER_S, Variant
from cotenant.experiment.datasets import CoRun
from cotenant.ports import LaneInfo, Tensors
from cotenant.profile.drive_lanes import HANG_S, LaneDriver, MeasureError
from cotenant.profile.features import FeatureTable
from cotenant.profile.measure import Subject
from cotenant.workload.arrivals import generator

LENGTH = 64
"""Most runs of an episode ..."""
SOLO_NS = 2 * NS_PER_S
"""... and most solo time in it (ns), all lanes together: neither many tiny runs nor a few huge ones."""
MOST_PAUSE = 0.6
"""Largest mean of an episode's pauses, as a multiple of its mean solo time."""
N_NOISE = 8
"""Different noise episodes."""
NOISE_PER_LANE = 3
"""Runs of each lane in a noise episode: what the lanes do drifts apart, so repeats must be short."""
N_INPUTS = 4
"""Sets of inputs per variant, in turn at random."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """One run of an episode: what, with which inputs, and how long its lane pauses before it (ns)."""

    lane: int
    subject: Subject
    variant: Variant
    which: int
    pause_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A run that ended. Instants in ns; `queue_n`: how many others were in flight when it was started."""

    draw: Draw
    dispatched_at: int
    started_at: int
    ended_at: int
    segment_ended_at: tuple[int, ...]
    queue_n: int


def names() -> Iterator[str]:
    """Names of episodes, without end."""
    for n in count():
        yield f"mix-{n}"
        yield f"noise-{n % N_NOISE}-{n // N_NOISE}"


class Episodes:
    """Draws episodes of a device's models. `features` says how long each variant takes alone."""

    def __init__(
        self, subjects: Sequence[Subject], lanes: Sequence[LaneInfo], features: FeatureTable, seed: int
    ) -> None:
        self._subjects = sorted(subjects, key=lambda subject: subject.spec.name)
        self._lanes = sorted(lane.index for lane in lanes)
        self._features = features
        self._seed = seed

    def draw(self, name: str) -> list[Draw]:
        """The episode called `name`. Its lanes, mix of models, mix of variants and load are its own: pauses
        are exponential with a mean of 0 to `MOST_PAUSE` times the mean solo time. The chance of a number of
        lanes grows with its square, since many have more to teach."""
        kind, number = name.split("-")[:2]
        rng = generator(self._seed, f"{kind}-{number}")
        n_max = len(self._lanes)
        if kind == "noise":
            n_lanes = 1 + int(number) % n_max
            length, solo_ns = NOISE_PER_LANE * n_lanes, n_lanes * SOLO_NS
        else:
            chances = np.arange(1, n_max + 1) ** 2
            n_lanes = int(rng.choice(n_max, p=chances / chances.sum())) + 1
            length, solo_ns = LENGTH, SOLO_NS
        lanes = sorted(rng.choice(self._lanes, n_lanes, replace=False).tolist())
        chosen = self._variants(rng, length, n_lanes, solo_ns)
        mean_ns = float(np.mean([self._solo_ns(variant) for _, variant in chosen])) * float(
            rng.uniform(0, MOST_PAUSE)
        )
        return [
            Draw(
                lane=lanes[i % n_lanes],
                subject=subject,
                variant=variant,
                which=int(rng.integers(N_INPUTS)),
                pause_ns=int(rng.exponential(mean_ns)),
            )
            for i, (subject, variant) in enumerate(chosen)
        ]

    def _variants(
        self, rng: np.random.Generator, length: int, n_least: int, solo_ns: float
    ) -> list[tuple[Subject, Variant]]:
        mix = rng.dirichlet(np.full(len(self._subjects), 0.5))
        sizes = [rng.dirichlet(np.ones(len(subject.spec.variants()))) for subject in self._subjects]
        chosen: list[tuple[Subject, Variant]] = []
        for k in rng.choice(len(mix), length, p=mix).tolist():
            subject = self._subjects[k]
            variant = subject.spec.variants()[int(rng.choice(len(sizes[k]), p=sizes[k]))]
            solo_ns -= self._solo_ns(variant)
            if solo_ns < 0 and len(chosen) >= n_least:
                break
            chosen.append((subject, variant))
        return chosen

    def _solo_ns(self, variant: Variant) -> float:
        return self._features.of(variant).solo_ns


class Player:
    """Plays episodes on a device. Inputs are made once and kept."""

    def __init__(self, driver: LaneDriver) -> None:
        self._driver = driver
        self._inputs: dict[Variant, list[Tensors]] = {}

    def play(self, draws: Sequence[Draw]) -> list[Ended]:
        """Each lane does its draws in order, pausing before each; returns the runs in the order in which
        they ended. Blocks. Raises MeasureError when one fails."""
        driver, clock = self._driver, self._driver.clock
        inputs = [self._inputs_of(draw) for draw in draws]
        waiting: dict[int, list[int]] = {}
        for i, draw in enumerate(draws):
            waiting.setdefault(draw.lane, []).append(i)
        now = clock.now()
        due_at = {lane: now + draws[line[0]].pause_ns for lane, line in waiting.items()}
        under_way: dict[int, tuple[Draw, int, int]] = {}
        ended: list[Ended] = []
        while len(ended) < len(draws):
            for lane in [lane for lane, at in due_at.items() if at <= clock.now()]:
                del due_at[lane]
                i = waiting[lane].pop(0)
                n_others = driver.n_running
                dispatch = driver.start(lane, draws[i].subject.spec, draws[i].variant, inputs[i])
                under_way[dispatch.id] = (draws[i], dispatch.decided_at, n_others)
            done = driver.poll(min(due_at.values(), default=clock.now() + int(HANG_S * NS_PER_S)))
            if done is None:
                if not due_at:
                    raise MeasureError(f"recording co-runs failed: no end after {HANG_S:.0f} s")
                continue
            draw, dispatched_at, n_others = under_way.pop(done.dispatch_id)
            ended.append(
                Ended(
                    draw=draw, dispatched_at=dispatched_at, started_at=done.started_at,
                    ended_at=done.ended_at, segment_ended_at=done.segment_ended_at, queue_n=n_others,
                )
            )  # fmt: skip
            if waiting[draw.lane]:
                due_at[draw.lane] = clock.now() + draws[waiting[draw.lane][0]].pause_ns
        return ended

    def _inputs_of(self, draw: Draw) -> Tensors:
        if draw.variant not in self._inputs:
            self._inputs[draw.variant] = [draw.subject.inputs(draw.variant) for _ in range(N_INPUTS)]
        return self._inputs[draw.variant][draw.which]


def rows_of(name: str, ended: Sequence[Ended], lanes: Sequence[LaneInfo], origin_at: int) -> list[CoRun]:
    """An episode as rows of a data set, in the order of their starts; `origin_at`: when the recording began
    (ns)."""
    began_at = min(run.dispatched_at for run in ended)
    units = {lane.index: lane.units for lane in lanes}

    def ms(at: int) -> float:
        return (at - began_at) / NS_PER_MS

    return [
        CoRun(
            run=name,
            variant=run.draw.variant,
            share=1.0,
            start_ms=ms(run.started_at),
            end_ms=ms(run.ended_at),
            began_s=(began_at - origin_at) / NS_PER_S,
            dispatched_ms=ms(run.dispatched_at),
            lane=run.draw.lane,
            units=units[run.draw.lane],
            queue_n=run.queue_n,
            segment_ends_ms=tuple(map(ms, run.segment_ended_at)),
        )
        for run in sorted(ended, key=lambda run: run.started_at)
    ]

"""Which part of a data set is learned from and which predicted: random, unseen pair, unseen workload.

In steady sets the unit is a run. In sets with intervals it is a row, except for `random`: a row whose
co-runners make a held-out pair with it (or which is, or ran beside, a held-out workload) is tested; a row
that touches nothing held out is learned from; the rest is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from cotenant.domain import Observation
from cotenant.experiment.corun_events import Ended, Replay, steady_observations
from cotenant.experiment.datasets import CoRun, Dataset

Workload = tuple[str, float]
SPLITS = ("random", "pair", "workload", "time")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A row with what was beside it. `run`: its run; `touched`: workloads (label, share) of the pairs it is
    in."""

    run: str
    row: CoRun
    observation: Observation

    @property
    def pairs(self) -> frozenset[frozenset[Workload]]:
        """Unordered pairs of this workload with each that was beside it."""
        own = (self.observation.variant.label, self.observation.share)
        return frozenset(frozenset((own, (o.variant.label, o.share))) for o in self.observation.overlaps)

    @property
    def models(self) -> frozenset[str]:
        """Models involved."""
        return frozenset((self.row.variant.model, *(o.variant.model for o in self.observation.overlaps)))


def samples(dataset: Dataset) -> list[Sample]:
    """Every row with its overlaps, in the order of the file (steady) or of completion."""
    if dataset.steady:
        found, number = [], 0
        for run, rows in dataset.runs.items():
            for row, observation in zip(rows, steady_observations(rows, number), strict=True):
                found.append(Sample(run=run, row=row, observation=observation))
            number += len(rows)
        return found
    runs = {id(row): run for run, rows in dataset.runs.items() for row in rows}
    return [
        Sample(run=runs[id(event.row)], row=event.row, observation=event.observation)
        for event in Replay(dataset)
        if isinstance(event, Ended)
    ]


@dataclass(frozen=True, slots=True)
class Split:
    """What is learned from, and what is predicted."""

    train: list[Sample]
    test: list[Sample]


def split(found: list[Sample], kind: str, *, test_share: float, seeds: int) -> Iterator[Split]:
    """`seeds` random splits; for `workload` one for each workload left out. Raises ValueError when nothing
    would be left to learn from."""
    if kind == "workload":
        names = sorted({sample.row.variant.model for sample in found})
        if len(names) < 2:
            raise ValueError("to leave a workload out there must be two of them")
        for name in names:
            test = [s for s in found if name in s.models]
            yield Split([s for s in found if name not in s.models], test)
        return
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        if kind == "random":
            runs = sorted({sample.run for sample in found})
            held = set(rng.permutation(runs)[: _part(len(runs), test_share)].tolist())
            yield Split([s for s in found if s.run not in held], [s for s in found if s.run in held])
        else:
            pairs = sorted({pair for s in found for pair in s.pairs}, key=lambda pair: sorted(pair))
            chosen = rng.permutation(len(pairs))[: _part(len(pairs), test_share)]
            out = {pairs[n] for n in chosen}
            yield Split([s for s in found if not s.pairs & out], [s for s in found if s.pairs & out])


def _part(n: int, share: float) -> int:
    if n < 2:
        raise ValueError("to hold something out there must be two of it")
    return min(n - 1, max(1, round(share * n)))

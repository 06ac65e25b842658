"""No interference: every run takes its solo span (`none`), or a fitted factor more (`constant`).

Choose `none` as the floor of any comparison, or where lanes do not share anything that matters. It fails as
soon as they do: its error is the interference itself. `constant` is what servers with a fixed head room do
(gpulet ships `latency_ratio` 1.1 on top of its model: casys-kaist/glet, `scheduler_base.cpp`); it is right on
average and wrong for nearly every single run, pairs that do not hurt one another included.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from cotenant.predict.zoo.seam import Other, Row, bounded, decoded, presence, slowdowns_of
from cotenant.profile.features import WorkloadFeatures

UNFITTED = 1.1
"""The factor before anything was seen."""


class NoInterference:
    """Implements `SlowdownModel`."""

    refit_every = 0
    window = 1

    def slowdown(self, victim: WorkloadFeatures, others: Sequence[Other]) -> float:
        return 1.0

    def fit(self, rows: Sequence[Row]) -> None:
        pass

    def learn(self, row: Row) -> bool:
        return False

    def state(self) -> bytes:
        return b""

    def restore(self, state: bytes) -> None:
        if state:
            raise ValueError("there is nothing to restore, but the state is not empty")


class ConstantInflation:
    """Implements `SlowdownModel`. The factor is the one with the least mean relative error on the rows that
    had anybody beside them; with a part of a co-runner, so much of it."""

    refit_every = 0
    window = 2000

    def __init__(self) -> None:
        self.factor = UNFITTED

    def slowdown(self, victim: WorkloadFeatures, others: Sequence[Other]) -> float:
        return bounded(1.0 + (self.factor - 1.0) * min(1.0, presence(others)))

    def fit(self, rows: Sequence[Row]) -> None:
        beside = [row for row in rows if presence(row.others) > 0]
        if not beside:
            return
        weights = np.array([min(1.0, presence(row.others)) for row in beside])
        measured = slowdowns_of(beside)
        factors = np.linspace(1.0, 4.0, 301)
        errors = np.abs((1.0 + (factors[:, None] - 1.0) * weights) / measured - 1.0).mean(1)
        self.factor = float(factors[int(np.argmin(errors))])

    def learn(self, row: Row) -> bool:
        return False

    def state(self) -> bytes:
        return msgspec.msgpack.encode(self.factor)

    def restore(self, state: bytes) -> None:
        self.factor = bounded(decoded(state, float))

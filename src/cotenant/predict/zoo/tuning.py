"""Hyper-parameters of baselines: the setting that predicts the last fifth of the training part best."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

from cotenant.predict.zoo.seam import Row, SlowdownModel

HELD_OUT = 0.2
FEWEST = 20
"""Rows below which the first setting is taken unseen."""

S = TypeVar("S")


def best(make: Callable[[S], SlowdownModel], settings: Sequence[S], rows: Sequence[Row]) -> S:
    """The setting whose model, fitted on the first part of rows (in time order) and learning through the
    last, has the least mean relative error there."""
    if len(rows) < FEWEST or len(settings) == 1:
        return settings[0]
    cut = round(len(rows) * (1.0 - HELD_OUT))

    def error(setting: S) -> float:
        model = make(setting)
        model.fit(rows[:cut])
        total = 0.0
        for row in rows[cut:]:
            total += abs(model.slowdown(row.victim, row.others) / row.slowdown - 1.0)
            model.learn(row)
        return total if math.isfinite(total) else math.inf

    return min(settings, key=error)

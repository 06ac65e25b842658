"""Gradient boosting on log slowdown (scikit-learn's histogram trees).

Inputs: features of the victim, the sum of its co-runners', how many there are. On public pairs the best
off-the-shelf form once there are some hundred runs (KACE, SoCC 2024, compares a random forest of the kind).
Size of leaves and depth are swept on the last fifth of the training part.

Choose it with many runs of workloads that all have been seen. It fails on workloads unlike any seen (trees do
not extrapolate), on small sets (13 % there is 25 % here), and between refits. Refitted on the latest `window`
rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from cotenant.predict.zoo.encoding import Encoder
from cotenant.predict.zoo.seam import (
    Array,
    Other,
    Row,
    Stored,
    array_of,
    bounded,
    decoded,
    presence,
    slowdowns_of,
    stored,
)
from cotenant.predict.zoo.tuning import best
from cotenant.profile.features import FeatureTable, WorkloadFeatures

try:
    from sklearn.ensemble import HistGradientBoostingRegressor
except ImportError as error:
    raise ImportError(
        "the gradient boosting baseline needs scikit-learn: install cotenant[predict]"
    ) from error

GUESS = 1.2
FEWEST = 8
Setting = tuple[int, int]
"""(least rows of a leaf, greatest depth)."""
SETTINGS: tuple[Setting, ...] = ((5, 6), (2, 6), (20, 6), (5, 3))


class _State(msgspec.Struct):
    x: Stored
    y: Stored
    setting: Setting


class Boosting:
    """Implements `SlowdownModel`."""

    refit_every = 500
    window = 2000

    def __init__(self, table: FeatureTable, *, setting: Setting | None = None, seed: int = 0) -> None:
        self._table, self._given, self._seed = table, setting, seed
        self._encode = Encoder(table)
        self._setting = setting or SETTINGS[0]
        self._x, self._y = np.zeros((0, 2 * self._encode.n + 1)), np.zeros(0)
        self._trees: Any = None

    def slowdown(self, victim: WorkloadFeatures, others: Sequence[Other]) -> float:
        if presence(others) <= 0:
            return 1.0
        if self._trees is None:
            return GUESS
        log = float(self._trees.predict(self._encode.pair(victim, others)[None])[0])
        return bounded(math.exp(log))

    def fit(self, rows: Sequence[Row]) -> None:
        if len(rows) < FEWEST:
            return
        if self._given is None and self._trees is None:
            self._setting = best(
                lambda one: Boosting(self._table, setting=one, seed=self._seed), SETTINGS, rows
            )
        self._grow(self._encode.pairs(rows), np.log(slowdowns_of(rows)))

    def _grow(self, x: Array, y: Array) -> None:
        self._x, self._y = x, y
        least, depth = self._setting
        self._trees = HistGradientBoostingRegressor(
            learning_rate=0.05, max_iter=200, max_depth=depth, min_samples_leaf=least, l2_regularization=0.1,
            early_stopping=False, random_state=self._seed,
        ).fit(filled(x), y)  # fmt: skip

    def learn(self, row: Row) -> bool:
        return False

    def state(self) -> bytes:
        return msgspec.msgpack.encode(_State(stored(self._x), stored(self._y), self._setting))

    def restore(self, state: bytes) -> None:
        """Trees are grown again from the stored rows."""
        found = decoded(state, _State)
        y = array_of(found.y)
        x = array_of(found.x, (len(y), 2 * self._encode.n + 1))
        self._setting, self._trees = found.setting, None
        if len(y):
            self._grow(x, y)


def filled(x: Array) -> Array:
    """Inputs for the trees, which take NaN but no column of nothing else."""
    empty = ~np.isfinite(x).any(0)
    return np.asarray(np.where(empty, 0.0, x)) if empty.any() else x

"""gpulet's linear regression that follows the data, by stochastic gradient (`linear-sgd`) or recursive least
squares (`linear-rls`).

Source: Zhao & Georgantas, ML Inference Scheduling with Predictable Latency, MAIoT 2025 (arXiv 2512.18725).
Rates and forgetting are not published and swept: the best on the last fifth of the training part. Gradient
steps are normalised (NLMS, 0 < mu < 2); P's trace is bounded, since forgetting without excitation makes it
grow without end. Errors, as published, or relative ones are followed, whichever is better.

Choose them where the load changes and slowdowns are mild. They fail as `linear` does (no product, no overlap)
and besides chase noise: one set of weights follows whatever ran last.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from cotenant.predict.zoo.linear import Linear, least_squares
from cotenant.predict.zoo.recursive import Recursive
from cotenant.predict.zoo.seam import (
    LARGEST,
    LEAST,
    Array,
    Row,
    Stored,
    array_of,
    decoded,
    presence,
    slowdowns_of,
    stored,
)
from cotenant.predict.zoo.tuning import best
from cotenant.profile.features import FeatureTable

Setting = tuple[float, bool]
"""(rate or forgetting, whether relative errors count)."""
RATES: tuple[Setting, ...] = tuple((mu, r) for r in (False, True) for mu in (0.02, 0.05, 0.005, 0.1, 0.3))
KEEPS: tuple[Setting, ...] = tuple((k, r) for r in (False, True) for k in (0.999, 0.9997, 0.995, 0.99, 0.97))


def _sample(inputs: Array, row: Row, relative: bool) -> tuple[Array, float]:
    slowdown = min(LARGEST, max(LEAST, row.slowdown))
    return (inputs / slowdown, 1.0) if relative else (inputs, slowdown)


class LinearSgd(Linear):
    """Implements `SlowdownModel`. `setting`: the normalised step mu."""

    def __init__(self, table: FeatureTable, setting: Setting | None = None) -> None:
        super().__init__(table, relative=False)
        self._given = setting
        self.setting = setting or RATES[0]

    def fit(self, rows: Sequence[Row]) -> None:
        if self._given is None:
            self.setting = best(lambda one: LinearSgd(self._table, one), RATES, rows)
        beside = [row for row in rows if presence(row.others) > 0]
        if beside:
            x = np.array([self.inputs(row.victim, row.others) for row in beside])
            self.weights = least_squares(x, slowdowns_of(beside), relative=self.setting[1])
        for row in rows:
            self.learn(row)

    def learn(self, row: Row) -> bool:
        if presence(row.others) <= 0:
            return False
        mu, relative = self.setting
        x, y = _sample(self.inputs(row.victim, row.others), row, relative)
        self.weights = self.weights + mu / (1e-3 + float(x @ x)) * (y - float(self.weights @ x)) * x
        return True

    def state(self) -> bytes:
        return msgspec.msgpack.encode((self.setting, stored(self.weights)))

    def restore(self, state: bytes) -> None:
        setting, weights = decoded(state, tuple[Setting, Stored])
        self.weights = array_of(weights, (self.inputs.n,))
        self.setting = setting


class LinearRls(Linear):
    """Implements `SlowdownModel`. `setting`: the weight that evidence keeps at each step."""

    def __init__(self, table: FeatureTable, setting: Setting | None = None) -> None:
        super().__init__(table, relative=False)
        self._given = setting
        self._begin(setting or KEEPS[0])

    def _begin(self, setting: Setting) -> None:
        self.setting = setting
        self.weights = np.zeros(self.inputs.n)
        self.weights[-1] = 1.0
        self._rls = Recursive(self.weights, setting[0])

    def fit(self, rows: Sequence[Row]) -> None:
        self._begin(self._given or best(lambda one: LinearRls(self._table, one), KEEPS, rows))
        for row in rows:
            self.learn(row)

    def learn(self, row: Row) -> bool:
        if presence(row.others) <= 0:
            return False
        self._rls.learn(*_sample(self.inputs(row.victim, row.others), row, self.setting[1]))
        self.weights = self._rls.weights
        return True

    def state(self) -> bytes:
        return msgspec.msgpack.encode((self.setting, self._rls.state()))

    def restore(self, state: bytes) -> None:
        setting, rls = decoded(state, tuple[Setting, bytes])
        self._rls.restore(rls)
        self.setting, self.weights = setting, self._rls.weights

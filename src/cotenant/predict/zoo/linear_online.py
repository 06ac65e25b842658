"""gpulet's linear regression that follows the data, by stochastic gradient (`linear-sgd`) or recursive least
squares (`linear-rls`).

Source: Zhao & Georgantas, ML Inference Scheduling with Predictable Latency, MAIoT 2025 (arXiv 2512.18725).
Rates and forgetting are not published and swept: the best on the last fifth of the training part. Gradient
steps are normalised (NLMS, 0 < mu < 2); P's trace is bounded, since forgetting without excitation makes it
grow without end.

Choose them where the load changes and slowdowns are mild. They fail as `linear` does (no product, no overlap)
and besides chase noise: one set of weights follows whatever ran last.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from cotenant.predict.features import FeatureTable, WorkloadFeatures
from cotenant.predict.zoo.linear import Linear
from cotenant.predict.zoo.recursive import Recursive
from cotenant.predict.zoo.seam import LARGEST, LEAST, Other, Row, Stored, array_of, decoded, presence, stored
from cotenant.predict.zoo.tuning import best

RATES = (0.02, 0.05, 0.005, 0.1, 0.3)
FORGETTINGS = (0.999, 0.9997, 0.995, 0.99, 0.97)


class LinearSgd(Linear):
    """Implements `SlowdownModel`. `mu`: normalised step."""

    def __init__(self, table: FeatureTable, mu: float | None = None) -> None:
        super().__init__(table)
        self._table, self._given = table, mu
        self.mu = RATES[0] if mu is None else mu

    def fit(self, rows: Sequence[Row]) -> None:
        if self._given is None:
            self.mu = best(lambda mu: LinearSgd(self._table, mu), RATES, rows)
        super().fit(rows)
        for row in rows:
            self.learn(row)

    def learn(self, row: Row) -> bool:
        if presence(row.others) <= 0:
            return False
        x = self.inputs(row.victim, row.others)
        error = min(LARGEST, max(LEAST, row.slowdown)) - float(self.weights @ x)
        self.weights = self.weights + self.mu / (1e-3 + float(x @ x)) * error * x
        return True

    def state(self) -> bytes:
        return msgspec.msgpack.encode((self.mu, stored(self.weights)))

    def restore(self, state: bytes) -> None:
        mu, weights = decoded(state, tuple[float, Stored])
        self.weights = array_of(weights, (self.inputs.n,))
        self.mu = mu


class LinearRls(Linear):
    """Implements `SlowdownModel`. `forgetting`: weight that evidence keeps at each step."""

    def __init__(self, table: FeatureTable, forgetting: float | None = None) -> None:
        super().__init__(table)
        self._table, self._given = table, forgetting
        self._rls = Recursive(self.weights, forgetting or FORGETTINGS[0])

    def slowdown(self, victim: WorkloadFeatures, others: Sequence[Other]) -> float:
        self.weights = self._rls.weights
        return super().slowdown(victim, others)

    def fit(self, rows: Sequence[Row]) -> None:
        chosen = self._given or best(lambda keep: LinearRls(self._table, keep), FORGETTINGS, rows)
        self.weights = np.zeros(self.inputs.n)
        self.weights[-1] = 1.0
        self._rls = Recursive(self.weights, chosen)
        for row in rows:
            self.learn(row)

    def learn(self, row: Row) -> bool:
        if presence(row.others) <= 0:
            return False
        self._rls.learn(self.inputs(row.victim, row.others), min(LARGEST, max(LEAST, row.slowdown)))
        return True

    def state(self) -> bytes:
        return self._rls.state()

    def restore(self, state: bytes) -> None:
        self._rls.restore(state)

"""gpulet's linear regression: slowdown = c . (own utilisation, others' utilisation) + constant, at least 1.

Source: Choi et al., Serving Heterogeneous Machine Learning Models on Multi-GPU Servers with Spatio-Temporal
Sharing, ATC 2022; casys-kaist/glet, `interference_model.cpp`: L2 and DRAM utilisation of both. Refitted
here (its released constants predict at most 1.19). Of several co-runners the released code takes the worst
pair; utilisations are summed here, as fits on more than pairs need.

`linear`: fitted once, on errors as published or on relative ones, whichever is better. `linear-ewma`:
besides, the co-runners' inputs are smoothed over the runs of the same model, as in Zhao & Georgantas, ML
Inference Scheduling with Predictable Latency, MAIoT 2025. Which signal they smooth and how fast is not
published; the factor is swept.

Choose it as the reference that everyone knows. It fails where slowdowns are large: it has no product of own
sensitivity and other's pressure, misses tails, sees no overlap (`linear`) or yesterday's (`linear-ewma`), and
ages with the load.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from cotenant.predict.zoo.encoding import contended, in_order
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

RIDGE = 1e-3
SMOOTHINGS = (1.0, 0.8, 0.6, 0.4, 0.2, 0.1)


class Utilisation:
    """The regressors: own utilisation, the co-runners' summed, 1 (2 n + 1 numbers). `everything`: of all
    resources, not only those that the published model looks at."""

    def __init__(self, table: FeatureTable, *, everything: bool = False) -> None:
        self._columns = list(range(len(table.resources))) if everything else contended(table)
        self.n_own = len(self._columns)
        self.n = 2 * self.n_own + 1

    def own(self, workload: WorkloadFeatures) -> Array:
        """Utilisation (0..1) of the resources that count; 0 where not measured."""
        return np.nan_to_num(np.array([workload.demand[k] for k in self._columns], np.float64))

    def beside(self, others: Sequence[Other]) -> Array:
        """Summed over co-runners, each as far as it was there."""
        total = np.zeros(self.n_own)
        for other, weight in in_order(others):
            total = total + weight * self.own(other)
        return total

    def __call__(self, victim: WorkloadFeatures, others: Sequence[Other]) -> Array:
        return np.concatenate([self.own(victim), self.beside(others), [1.0]])


def least_squares(x: Array, y: Array, *, relative: bool) -> Array:
    """Weights by least squares, of errors or relative errors; `RIDGE` in units of the regressors' mean square
    keeps it solvable."""
    if relative:
        x, y = x / y[:, None], np.ones(len(y))
    gram = x.T @ x
    scale = RIDGE * max(1e-12, float(np.trace(gram)) / len(gram))
    return np.asarray(np.linalg.solve(gram + scale * np.eye(len(gram)), x.T @ y))


class Linear:
    """Implements `SlowdownModel`. `relative`: fitted on relative errors; None: whichever is better.
    `everything`: see `Utilisation`."""

    refit_every = 0
    window = 2000

    def __init__(
        self, table: FeatureTable, relative: bool | None = None, *, everything: bool = False
    ) -> None:
        self._table, self._relative, self._everything = table, relative, everything
        self.inputs = Utilisation(table, everything=everything)
        self.weights = np.zeros(self.inputs.n)
        self.weights[-1] = 1.0

    def slowdown(self, victim: WorkloadFeatures, others: Sequence[Other]) -> float:
        if presence(others) <= 0:
            return 1.0
        return bounded(max(1.0, float(self.weights @ self.inputs(victim, others))))

    def fit(self, rows: Sequence[Row]) -> None:
        beside = [row for row in rows if presence(row.others) > 0]
        if not beside:
            return
        relative = self._relative
        if relative is None:
            relative = best(
                lambda one: Linear(self._table, one, everything=self._everything), (False, True), rows
            )
        x = np.array([self.inputs(row.victim, row.others) for row in beside])
        self.weights = least_squares(x, slowdowns_of(beside), relative=relative)

    def learn(self, row: Row) -> bool:
        return False

    def state(self) -> bytes:
        return msgspec.msgpack.encode(stored(self.weights))

    def restore(self, state: bytes) -> None:
        self.weights = array_of(decoded(state, Stored), (self.inputs.n,))


class _Smoothed(msgspec.Struct):
    alpha: float
    weights: Stored
    seen: dict[str, Stored]


class LinearEwma:
    """Implements `SlowdownModel`. `setting`: the weight `alpha` of the momentary inputs against what the
    model's runs had beside them of late, and whether relative errors are fitted."""

    refit_every = 0
    window = 2000

    def __init__(self, table: FeatureTable, setting: tuple[float, bool] | None = None) -> None:
        self._table, self._given = table, setting
        self.alpha = 0.5 if setting is None else setting[0]
        self._linear = Linear(table)
        self._seen: dict[str, Array] = {}

    def slowdown(self, victim: WorkloadFeatures, others: Sequence[Other]) -> float:
        if presence(others) <= 0:
            return 1.0
        return bounded(max(1.0, float(self._linear.weights @ self._smoothed(victim, others))))

    def fit(self, rows: Sequence[Row]) -> None:
        settings = [(alpha, relative) for alpha in SMOOTHINGS for relative in (False, True)]
        self.alpha, relative = self._given or best(
            lambda setting: LinearEwma(self._table, setting), settings, rows
        )
        self._seen.clear()
        inputs = []
        for row in rows:
            inputs.append(self._smoothed(row.victim, row.others))
            self.learn(row)
        chosen = [k for k, row in enumerate(rows) if presence(row.others) > 0]
        if chosen:
            x, y = np.array([inputs[k] for k in chosen]), slowdowns_of([rows[k] for k in chosen])
            self._linear.weights = least_squares(x, y, relative=relative)

    def learn(self, row: Row) -> bool:
        self._seen[row.victim.variant.model] = self._mixed(row.victim, row.others)
        return True

    def _mixed(self, victim: WorkloadFeatures, others: Sequence[Other]) -> Array:
        now = self._linear.inputs.beside(others)
        before = self._seen.get(victim.variant.model)
        return now if before is None else self.alpha * now + (1.0 - self.alpha) * before

    def _smoothed(self, victim: WorkloadFeatures, others: Sequence[Other]) -> Array:
        return np.concatenate([self._linear.inputs.own(victim), self._mixed(victim, others), [1.0]])

    def state(self) -> bytes:
        seen = {model: stored(mean) for model, mean in self._seen.items()}
        return msgspec.msgpack.encode(_Smoothed(self.alpha, stored(self._linear.weights), seen))

    def restore(self, state: bytes) -> None:
        found = decoded(state, _Smoothed)
        n = self._linear.inputs.n_own
        seen = {model: array_of(mean, (n,)) for model, mean in found.seen.items()}
        self._linear.weights = array_of(found.weights, (self._linear.inputs.n,))
        self.alpha, self._seen = found.alpha, seen

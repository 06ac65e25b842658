"""iGniter's sum form: T (1 + alpha_i sum_j u_j) + constants for scheduling, u the co-runners' cache use.

Source: Xu et al., iGniter, TPDS 34(3), 2023; icloud-ecnu/igniter, `igniter-algorithm.py`: a workload slows
down with the summed L2 utilisation of its neighbours, by a sensitivity of its own, and every kernel by a
little for each neighbour. Here alpha_i = alpha + a deviation of workload i (ridge, so that unseen workloads
have the common one, which released constants say is nearly all there is), the constants are one per
neighbour relative to T and one absolute, and u is that resource which explains the training part best.
Shares, power and frequency are left out: solo spans are measured.

Choose it for many neighbours of moderate pressure, and with next to no data. It fails where one neighbour is
enough to fill a resource (no saturation, no product with own use beyond alpha_i), and it is fitted once.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from cotenant.predict.zoo.encoding import contended, identity, in_order
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

RIDGES = (1.0, 0.1, 10.0, 100.0)


class _State(msgspec.Struct):
    resource: int
    common: Stored
    own: dict[str, float]


class Igniter:
    """Implements `SlowdownModel`. `ridge`: what a deviation of one workload's alpha costs, in rows."""

    refit_every = 0
    window = 2000

    def __init__(self, table: FeatureTable, ridge: float | None = None) -> None:
        self._table, self._given = table, ridge
        self._resources = contended(table)
        self._resource = self._resources[0] if self._resources else -1
        spans = sorted(w.solo_ns for w in table)
        self._typical_ns = spans[len(spans) // 2] if spans else 1.0
        self._common = np.array([0.2, 0.05, 0.0])
        self._own: dict[str, float] = {}

    def slowdown(self, victim: WorkloadFeatures, others: Sequence[Other]) -> float:
        if presence(others) <= 0:
            return 1.0
        x = self._inputs(victim, others, self._resource)
        return bounded(1.0 + float(self._common @ x) + self._own.get(identity(victim), 0.0) * float(x[0]))

    def _inputs(self, victim: WorkloadFeatures, others: Sequence[Other], resource: int) -> Array:
        used, n = 0.0, 0.0
        for other, weight in in_order(others):
            use = other.demand[resource] if resource >= 0 else 1.0
            used += weight * (use if use == use else 0.0)
            n += weight
        return np.array([used, n, n * self._typical_ns / max(1.0, victim.solo_ns)])

    def fit(self, rows: Sequence[Row]) -> None:
        beside = [row for row in rows if presence(row.others) > 0]
        if not beside:
            return
        ridge = self._given or best(lambda ridge: Igniter(self._table, ridge), RIDGES, rows)
        found = [self._solve(beside, resource, ridge) for resource in self._resources or [-1]]
        _, self._resource, self._common, self._own = min(found, key=lambda entry: entry[0])

    def _solve(
        self, rows: Sequence[Row], resource: int, ridge: float
    ) -> tuple[float, int, Array, dict[str, float]]:
        """(mean relative error, resource, common coefficients, deviations)."""
        x = np.array([self._inputs(row.victim, row.others, resource) for row in rows])
        y = slowdowns_of(rows)
        names = sorted({identity(row.victim) for row in rows})
        column = np.array([names.index(identity(row.victim)) for row in rows])
        full = np.zeros((len(rows), 3 + len(names)))
        full[:, :3] = x
        full[np.arange(len(rows)), 3 + column] = x[:, 0]
        weighted = full / y[:, None]  # least relative squares
        scale = max(1e-9, float(np.square(x[:, 0]).mean()))
        penalty = np.diag([1e-3 * len(rows) * max(1e-9, m) for m in np.square(x).mean(0)])
        gram = weighted.T @ weighted + ridge * scale * np.eye(full.shape[1])
        gram[:3, :3] += penalty - ridge * scale * np.eye(3)
        w = np.linalg.solve(gram, weighted.T @ ((y - 1.0) / y))
        error = float(np.abs((1.0 + full @ w) / y - 1.0).mean())
        return error, resource, w[:3], dict(zip(names, w[3:].tolist(), strict=True))

    def learn(self, row: Row) -> bool:
        return False

    def state(self) -> bytes:
        return msgspec.msgpack.encode(_State(self._resource, stored(self._common), self._own))

    def restore(self, state: bytes) -> None:
        found = decoded(state, _State)
        if found.resource not in (self._resources or [-1]):
            raise ValueError(f"the learned state looks at resource {found.resource}, which is not measured")
        self._common = array_of(found.common, (3,))
        self._resource, self._own = found.resource, found.own

"""Log-additive sensitivity and pressure: log slowdown = sum over co-runners of (m + a_i + g_j).

Bubble-Up (Mars et al., MICRO 2011) on an accelerator: what a workload suffers (a_i) and what it causes (g_j),
O(N) numbers for N workloads. a and g are linear in measured features plus a deviation by model and by
workload (ridge), so what was never seen has what its features say. `log-additive`: ridge, fitted once;
`log-additive-rls`: followed by recursive least squares with forgetting. Penalty and forgetting are swept.

Choose it where workloads are many and pairs seen are few: on public pairs it was the best of the simple
forms. It fails on unseen workloads (features enter linearly), where a pair collides in a way that neither
does with others, and where effects of several co-runners saturate (logs add up: 1.5 x 1.5 for two).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from cotenant.predict.zoo.encoding import Encoder, identity, in_order
from cotenant.predict.zoo.recursive import Recursive
from cotenant.predict.zoo.seam import Array, Other, Row, bounded, presence, slowdowns_of
from cotenant.predict.zoo.tuning import best
from cotenant.profile.features import FeatureTable, WorkloadFeatures

GUESS = math.log(1.2)
NOISE = 0.05**2
SPREADS = (0.3, 0.1, 1.0)
"""Standard deviations of a deviation by identity (log)."""
FEATURES = 0.1
"""Standard deviation of a feature's weight (log per standard deviation of it)."""
FORGETTINGS = (0.9995, 0.999, 0.995, 1.0)


class Pressures:
    """The regressors: constant, victim's and co-runners' features, and who they are."""

    def __init__(self, table: FeatureTable) -> None:
        self._encode = Encoder(table)
        self._models = {m: k for k, m in enumerate(sorted({w.variant.model for w in table}))}
        self._names = {n: k for k, n in enumerate(sorted(identity(w) for w in table))}
        self._n_one = self._encode.n + len(self._models) + len(self._names)
        self.n = 1 + 2 * self._n_one

    def _one(self, workload: WorkloadFeatures) -> Array:
        x = np.zeros(self._n_one)
        x[: self._encode.n] = np.nan_to_num(self._encode(workload))
        for offset, index, key in (
            (self._encode.n, self._models, workload.variant.model),
            (self._encode.n + len(self._models), self._names, identity(workload)),
        ):
            if key in index:
                x[offset + index[key]] = 1.0
        return x

    def __call__(self, victim: WorkloadFeatures, others: Sequence[Other]) -> Array:
        x = np.zeros(self.n)
        for other, weight in in_order(others):
            x[0] += weight
            x[1 + self._n_one :] += weight * self._one(other)
        x[1 : 1 + self._n_one] = x[0] * self._one(victim)
        return x

    def prior(self, identities: float) -> Array:
        """Standard deviation of each weight."""
        one = np.full(self._n_one, identities)
        one[: self._encode.n] = FEATURES
        return np.concatenate([[0.5], one, one])


class LogAdditive:
    """Implements `SlowdownModel`. `spread`: standard deviation of deviations by identity; `keep`: forgetting,
    None: fitted once."""

    refit_every = 0
    window = 2000

    def __init__(
        self, table: FeatureTable, *, online: bool = False, setting: tuple[float, float] | None = None
    ) -> None:
        self._table, self._online, self._given = table, online, setting
        self.inputs = Pressures(table)
        self._begin(setting or (SPREADS[0], FORGETTINGS[0] if online else 1.0))

    def _begin(self, setting: tuple[float, float]) -> None:
        spread, keep = setting
        weights = np.zeros(self.inputs.n)
        weights[0] = GUESS
        self._rls = Recursive(weights, keep, self.inputs.prior(spread))

    def slowdown(self, victim: WorkloadFeatures, others: Sequence[Other]) -> float:
        if presence(others) <= 0:
            return 1.0
        log = float(self._rls.weights @ self.inputs(victim, others))
        return bounded(math.exp(min(4.0, max(-1.0, log))))

    def fit(self, rows: Sequence[Row]) -> None:
        settings = [
            (spread, keep) for keep in (FORGETTINGS if self._online else (1.0,)) for spread in SPREADS
        ]
        setting = self._given or best(
            lambda one: LogAdditive(self._table, online=self._online, setting=one), settings, rows
        )
        self._begin(setting)
        beside = [row for row in rows if presence(row.others) > 0]
        if not beside:
            return
        x = np.array([self.inputs(row.victim, row.others) for row in beside])
        age = np.arange(len(beside))[::-1]
        weight = self._rls.keep**age / NOISE
        precision = np.linalg.inv(self._rls.covariance) + (x * weight[:, None]).T @ x
        self._rls.covariance = np.linalg.inv(precision)
        left = np.log(slowdowns_of(beside)) - x @ self._rls.weights
        self._rls.weights = self._rls.weights + self._rls.covariance @ (x.T @ (weight * left))

    def learn(self, row: Row) -> bool:
        if not self._online or presence(row.others) <= 0:
            return False
        x, y = self.inputs(row.victim, row.others), float(np.log(slowdowns_of([row]))[0])
        self._rls.learn(x, y, NOISE)
        return True

    def state(self) -> bytes:
        return self._rls.state()

    def restore(self, state: bytes) -> None:
        self._rls.restore(state)

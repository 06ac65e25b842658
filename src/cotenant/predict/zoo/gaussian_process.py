"""A plain Gaussian process on log slowdown: constant x RBF + white noise (scikit-learn).

Inputs: standardised features of the victim, the sum of its co-runners', and how many there are. One length
scale for all or one each, by marginal likelihood less what that many scales cost (BIC: by the likelihood
alone one each always wins, and does half as badly again on 100 public pairs). At most `MOST_ROWS` rows, a
random subset of more. Rasmussen & Williams, Gaussian Processes for Machine Learning, 2006, chapters 2 and 5.

Choose it offline, on a few hundred clean runs: off the shelf it is the hardest to beat on public pairs. It
fails online: a fit takes seconds and n^3, it has no identities (a workload whose features mislead stays
wrong), and between refits it is as old as its rows. Refitted on the latest `window` rows, from the scales
that it had.
"""

from __future__ import annotations

import math
import warnings
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
from cotenant.profile.features import FeatureTable, WorkloadFeatures

try:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
except ImportError as error:
    raise ImportError(
        "the Gaussian process baseline needs scikit-learn: install cotenant[predict]"
    ) from error

MOST_ROWS = 400
RESTARTS = 2
GUESS = 1.2
BOUNDS = (1e-2, 1e3)


class _State(msgspec.Struct):
    x: Stored
    y: Stored
    theta: Stored
    anisotropic: bool


class GaussianProcess:
    """Implements `SlowdownModel`."""

    refit_every = 500
    window = MOST_ROWS

    def __init__(self, table: FeatureTable, *, restarts: int = RESTARTS, seed: int = 0) -> None:
        self._encode = Encoder(table)
        self._restarts, self._seed = restarts, seed
        self._x, self._y = np.zeros((0, 2 * self._encode.n + 1)), np.zeros(0)
        self._middle, self._width = np.zeros(self._x.shape[1]), np.ones(self._x.shape[1])
        self._kept = np.zeros(0, np.int64)
        self._regressor: Any = None
        self._anisotropic = False

    def slowdown(self, victim: WorkloadFeatures, others: Sequence[Other]) -> float:
        if presence(others) <= 0:
            return 1.0
        if self._regressor is None:
            return GUESS
        x = np.nan_to_num(self._encode.pair(victim, others))[None]
        return bounded(math.exp(min(4.0, float(self._regressor.predict(self._scaled(x))[0]))))

    def fit(self, rows: Sequence[Row]) -> None:
        if len(rows) < 4:
            return
        rng = np.random.default_rng(self._seed)
        some = sorted(rng.permutation(len(rows))[:MOST_ROWS].tolist())
        chosen = [rows[k] for k in some]
        n_before = len(self._kept)
        self._take(np.nan_to_num(self._encode.pairs(chosen)), np.log(slowdowns_of(chosen)))
        if self._regressor is not None and len(self._kept) == n_before:
            self._regressor = self._fitted(self._regressor.kernel_, 0)
            return
        n = len(self._kept)
        kinds = (False, True) if n > 1 else (False,)
        fits = [(self._fitted(_kernel(n, n if kind else 1), self._restarts), kind) for kind in kinds]
        cost = 0.5 * math.log(len(chosen))
        self._regressor, self._anisotropic = max(
            fits, key=lambda one: one[0].log_marginal_likelihood_value_ - cost * len(one[0].kernel_.theta)
        )

    def _fitted(self, kernel: Any, n_restarts: int) -> Any:
        found = GaussianProcessRegressor(
            kernel, normalize_y=True, n_restarts_optimizer=n_restarts, random_state=self._seed
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return found.fit(self._scaled(self._x), self._y)

    def learn(self, row: Row) -> bool:
        return False

    def _take(self, x: Array, y: Array) -> None:
        self._x, self._y = x, y
        self._middle, self._width = x.mean(0), x.std(0)
        self._kept = np.flatnonzero(self._width > 1e-9)
        if not len(self._kept):
            self._kept, self._width = np.zeros(1, np.int64), np.ones(x.shape[1])

    def _scaled(self, x: Array) -> Array:
        return np.asarray(((x - self._middle) / np.maximum(1e-9, self._width))[:, self._kept])

    def state(self) -> bytes:
        theta = np.zeros(0) if self._regressor is None else self._regressor.kernel_.theta
        return msgspec.msgpack.encode(
            _State(stored(self._x), stored(self._y), stored(theta), self._anisotropic)
        )

    def restore(self, state: bytes) -> None:
        """The kernel's scales are stored; weights follow from them and the rows."""
        found = decoded(state, _State)
        y, theta = array_of(found.y), array_of(found.theta)
        x = array_of(found.x, (len(y), 2 * self._encode.n + 1))
        if not len(y):
            self._regressor = None
            return
        self._take(x, y)
        n = len(self._kept) if found.anisotropic else 1
        if theta.shape != (n + 2,):
            raise ValueError(f"the learned state has {len(theta)} scales, expected {n + 2}")
        kernel = _kernel(len(self._kept), n)
        regressor = GaussianProcessRegressor(kernel.clone_with_theta(theta), optimizer=None, normalize_y=True)
        self._regressor, self._anisotropic = regressor.fit(self._scaled(x), y), found.anisotropic


def _kernel(n_columns: int, n_scales: int) -> Any:
    lengths = np.full(n_scales, math.sqrt(n_columns))
    return ConstantKernel(1.0, (1e-3, 1e3)) * RBF(lengths, BOUNDS) + WhiteKernel(0.1, (1e-6, 10.0))

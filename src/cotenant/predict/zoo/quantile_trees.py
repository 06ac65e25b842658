"""The trees of `boosting_online`: one forest per quantile level, and one for what a known overlap does."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from cotenant.domain import LEVELS
from cotenant.predict.zoo.seam import Array

try:
    from sklearn.ensemble import HistGradientBoostingRegressor
except ImportError as error:
    raise ImportError(
        "the gradient boosting baseline needs scikit-learn: install cotenant[predict]"
    ) from error

GUESS = math.log(1.2)
"""Log slowdown before the first trees."""
NEUTRAL = 1.0
LEAST_SPREAD, LARGEST_SPREAD = 0.3, 3.0
LEAST_LOG, LARGEST_LOG = -1.0, 4.0


class QuantileTrees:
    """Grown from samples: `n_inputs` numbers seen at dispatch, `n_pair` of the shares that others were there,
    log(span from dispatch / solo), log(span from start / solo)."""

    def __init__(self, n_inputs: int, n_pair: int, seed: int) -> None:
        self._n_inputs, self._n_pair, self._seed = n_inputs, n_pair, seed
        self.n_sample = n_inputs + n_pair + 2
        self.samples = np.zeros((0, self.n_sample))
        self._quantiles: list[Any] = []
        self._present: Any = None
        self._usual = NEUTRAL

    @property
    def grown(self) -> bool:
        """Whether there are trees."""
        return bool(self._quantiles)

    def grow(self, samples: Array) -> None:
        """Anew from samples (n x n_sample), which are kept; without any there are no trees."""
        n = self._n_inputs
        self.samples, self._quantiles, self._present = samples, [], None
        if not len(samples):
            return
        x, beside = samples[:, :n], samples[:, n : n + self._n_pair]
        self._quantiles = [
            self._trees(loss="quantile", quantile=level).fit(x, samples[:, -2]) for level in LEVELS
        ]
        self._present = self._trees(loss="squared_error").fit(beside, samples[:, -1])
        logs = self.logs(x)
        self._usual = max(0.02, float(np.mean(logs[:, 2] - logs[:, 0])))

    def _trees(self, **loss: Any) -> Any:
        return HistGradientBoostingRegressor(
            max_iter=200, max_depth=6, learning_rate=0.05, max_features=0.8, min_samples_leaf=5,
            l2_regularization=0.1, early_stopping=False, random_state=self._seed, **loss,
        )  # fmt: skip

    def logs(self, x: Array) -> Array:
        """Quantiles of log(span from dispatch / solo span) at `LEVELS` (n x 4), ascending."""
        if not self._quantiles or not len(x):
            return np.full((len(x), len(LEVELS)), GUESS if len(x) else 0.0)
        found = np.array([trees.predict(x) for trees in self._quantiles]).T
        return np.asarray(np.clip(np.maximum.accumulate(found, axis=1), LEAST_LOG, LARGEST_LOG))

    def relative_spread(self, logs: Array) -> float:
        """Of one run's quantiles, in units of the usual one."""
        if not self._quantiles:
            return NEUTRAL
        return min(LARGEST_SPREAD, max(LEAST_SPREAD, float(logs[2] - logs[0]) / self._usual))

    def given_presence(self, beside: Array) -> float:
        """Log slowdown for the shares of the span that others were there (n_pair)."""
        if self._present is None:
            return GUESS
        return min(LARGEST_LOG, max(LEAST_LOG, float(self._present.predict(beside[None])[0])))

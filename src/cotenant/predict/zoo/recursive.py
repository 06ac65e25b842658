"""Recursive least squares with exponential forgetting and a bounded trace, for the online baselines.

k = P x / (keep + x' P x);  w += k (y - w' x);  P = (P - k x' P) / keep, symmetrised. When P's trace is at its
bound, nothing more is forgotten at that step.
"""

from __future__ import annotations

import msgspec
import numpy as np

from cotenant.predict.zoo.seam import Array, Stored, array_of, decoded, stored

TRACE_OF_PRIOR = 2.0
"""P's trace may grow to so many times that of its prior."""


class _State(msgspec.Struct):
    keep: float
    weights: Stored
    covariance: Stored


class Recursive:
    """`prior`: standard deviation of each weight about its start (n, or one number)."""

    def __init__(self, weights: Array, keep: float, prior: Array | float = 3.0) -> None:
        self.keep = keep
        self.weights = weights.copy()
        self.covariance = np.diag(np.broadcast_to(np.square(prior), weights.shape).astype(np.float64))
        self._most = TRACE_OF_PRIOR * float(np.trace(self.covariance))

    def learn(self, x: Array, y: float, noise: float = 1.0) -> None:
        """One sample; `noise`: its variance in units of the prior's weights squared."""
        px = self.covariance @ x
        gain = px / (self.keep * noise + float(x @ px))
        self.weights = self.weights + gain * (y - float(self.weights @ x))
        covariance = self.covariance - np.outer(gain, px)
        if float(np.trace(covariance)) < self._most * self.keep:
            covariance /= self.keep
        self.covariance = 0.5 * (covariance + covariance.T)

    def state(self) -> bytes:
        """All that was learned."""
        return msgspec.msgpack.encode(_State(self.keep, stored(self.weights), stored(self.covariance)))

    def restore(self, state: bytes) -> None:
        """Take over a stored state. Raises ValueError when it does not fit."""
        found = decoded(state, _State)
        n = len(self.weights)
        weights, covariance = array_of(found.weights, (n,)), array_of(found.covariance, (n, n))
        if not (np.isfinite(weights).all() and np.isfinite(covariance).all()):
            raise ValueError(f"the learned state is damaged: expected {n} finite weights")
        self.keep, self.weights, self.covariance = found.keep, weights, covariance

"""The learned state of the fluid predictor as bytes, and back.

Everything that predictions depend on is in it but the measured features: terms by name, theta and the root
of its covariance, the pair map they belong to (by a digest), calibration, drift and hand-over.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from cotenant.predict.calibrate import CalibratorState
from cotenant.predict.drift import DriftState
from cotenant.predict.handover import Handover

if TYPE_CHECKING:
    from cotenant.predict.fluid import FluidPredictor

FORMAT = 1


class State(msgspec.Struct):
    """All that is learned, as it is stored. `pair_map`: digest of the features that theta weighs."""

    format: int
    version: int
    pair_map: str
    theta: bytes
    root: bytes
    noise: float
    n_clipped: int
    n_refused: int
    terms: list[tuple[list[Any], tuple[float, ...]]]
    handover: Handover
    calibrator: CalibratorState
    drift: DriftState
    screen: bytes | None = None


def encode(predictor: FluidPredictor) -> bytes:
    """See the module's head."""
    estimator = predictor.estimator
    return msgspec.msgpack.encode(
        State(
            format=FORMAT,
            version=estimator.version,
            pair_map=digest(predictor),
            theta=estimator.theta.tobytes(),
            root=estimator.root.tobytes(),
            noise=estimator.noise,
            n_clipped=estimator.n_clipped,
            n_refused=predictor.n_refused,
            terms=[(list(key), values) for key, values in estimator.terms()],
            handover=predictor.handover,
            calibrator=predictor.calibrator.state(),
            drift=predictor.drift.state(),
            screen=None if predictor.screen is None else predictor.screen.state(),
        )
    )


def decode(predictor: FluidPredictor, state: bytes) -> None:
    """Take over a stored state. Raises ValueError, having changed nothing, when it cannot be used."""
    try:
        found = msgspec.msgpack.decode(state, type=State)
    except msgspec.MsgspecError as error:
        raise ValueError(f"the learned state cannot be read: {error}") from error
    if found.format != FORMAT:
        raise ValueError(f"the learned state has format {found.format}, this version reads {FORMAT}")
    if found.pair_map != digest(predictor):
        raise ValueError(
            "the learned state belongs to other measured features (a model or its profile has changed); "
            "learning begins anew"
        )
    estimator = predictor.estimator
    n = len(estimator.theta)
    theta, root = np.frombuffer(found.theta), np.frombuffer(found.root)
    if (
        theta.shape != (n,)
        or root.shape != (n * n,)
        or not np.isfinite(theta).all()
        or not np.isfinite(root).all()
    ):
        raise ValueError(f"the learned state is damaged: expected {n} finite weights")
    if predictor.screen is not None and found.screen is not None:
        predictor.screen.restore(found.screen)
    predictor.calibrator.restore(found.calibrator)
    predictor.drift.restore(found.drift)
    estimator.theta, estimator.root = theta.copy(), root.reshape(n, n).copy()
    estimator.noise, estimator.n_clipped = found.noise, found.n_clipped
    estimator.version = found.version
    estimator.take_terms([(tuple(key), values) for key, values in found.terms])
    predictor.handover = found.handover
    predictor.n_refused = found.n_refused


def digest(predictor: FluidPredictor) -> str:
    """Of the features of every measured pair, as the pair map gives them."""
    entries = sorted(predictor.features, key=lambda entry: (entry.variant.label, entry.share))
    found = hashlib.sha256(f"{predictor.estimator.pair_map.n_features}".encode())
    for entry in entries:
        found.update(entry.variant.label.encode())
        numbers = (entry.share, entry.solo_ns, *entry.demand, *entry.statics, *entry.segment_ns)
        found.update(np.array(numbers, np.float64).tobytes())
    return found.hexdigest()[:16]

"""The learned state of the fluid predictor as bytes, and back.

Everything that predictions depend on is in it but the measured features: terms by name, theta and the root
of its covariance, the pair map they belong to (by a digest), calibration, drift, hand-over, and what screens.
Instants are those of the clock by which it was learned.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from copy import copy
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from cotenant.predict import solo
from cotenant.predict.calibrate import Calibrator, CalibratorState
from cotenant.predict.drift import DriftDetector, DriftState
from cotenant.predict.handover import Handover
from cotenant.predict.row_kernels import LEARNED_AT, N_COLUMNS, Array
from cotenant.profile.features import FeatureTable

if TYPE_CHECKING:
    from cotenant.predict.fluid import FluidPredictor

FORMAT = 2


class State(msgspec.Struct):
    """All that is learned, as it is stored. `pair_map`: digest of the features that theta weighs. `level`:
    a row of `Terms.level` per name of `terms`; terms of which nothing was learned are left out."""

    format: int
    version: int
    pair_map: str
    theta: bytes
    root: bytes
    noise: float
    n_clipped: int
    n_refused: int
    terms: list[tuple[Any, ...]]
    level: bytes
    handover: Handover
    calibrator: CalibratorState
    drift: DriftState
    screen: solo.State | None = None


def copied(predictor: FluidPredictor) -> Callable[[], bytes]:
    """A copy of all that is learned, for tens of microseconds; what is returned encodes it, on any thread."""
    estimator = predictor.estimator
    terms = estimator.terms.copied()
    theta, root = estimator.theta.copy(), estimator.root.copy()
    version, noise, n_clipped = estimator.version, estimator.noise, estimator.n_clipped
    pair_map, n_refused, handover = predictor.pair_map, predictor.n_refused, copy(predictor.handover)
    calibrator, drift = predictor.calibrator.copied(), predictor.drift.state()
    screen = None if predictor.screen is None else predictor.screen.copied()

    def encoded() -> bytes:
        names, level = terms()
        state = State(
            format=FORMAT,
            version=version,
            pair_map=pair_map,
            theta=theta.tobytes(),
            root=root.tobytes(),
            noise=noise,
            n_clipped=n_clipped,
            n_refused=n_refused,
            terms=list(names),
            level=level.tobytes(),
            handover=handover,
            calibrator=calibrator(),
            drift=drift,
            screen=screen,
        )
        return msgspec.msgpack.encode(state)

    return encoded


def decode(predictor: FluidPredictor, state: bytes, moved_ns: int) -> None:
    """Take over a stored state, with every instant moved. Raises ValueError, having changed nothing, when it
    cannot be used."""
    try:
        found = msgspec.msgpack.decode(state, type=State)
    except msgspec.MsgspecError as error:
        raise ValueError(f"the learned state cannot be read: {error}") from error
    if found.format != FORMAT:
        raise ValueError(f"the learned state has format {found.format}, this version reads {FORMAT}")
    if found.pair_map != predictor.pair_map:
        raise ValueError(
            "the learned state belongs to other measured features (a model or its profile has changed)"
        )
    estimator, n = predictor.estimator, len(predictor.estimator.theta)
    theta = _numbers(found.theta, (n,))
    root = _numbers(found.root, (n, n))
    level = _numbers(found.level, (len(found.terms), N_COLUMNS))
    if not math.isfinite(found.noise + found.handover.median_ns):
        raise ValueError("the learned state is damaged: it holds what is no number")
    Calibrator().restore(found.calibrator)  # raises what there is to raise before anything is changed
    DriftDetector().restore(found.drift)
    if predictor.screen is not None and found.screen is not None:
        predictor.screen.take(found.screen.moved(moved_ns))
    predictor.calibrator.restore(found.calibrator.moved(moved_ns))
    predictor.drift.restore(found.drift)
    level[:, LEARNED_AT] += moved_ns
    estimator.theta, estimator.root = theta, root
    estimator.noise, estimator.n_clipped = found.noise, found.n_clipped
    estimator.version = found.version
    estimator.terms.take(found.terms, level)
    found.handover.learned_at += moved_ns
    predictor.handover = found.handover
    predictor.n_refused = found.n_refused


def _numbers(stored: bytes, shape: tuple[int, ...]) -> Array:
    numbers = np.frombuffer(stored[: len(stored) // 8 * 8])
    if len(stored) != 8 * math.prod(shape) or not np.isfinite(numbers).all():
        raise ValueError(f"the learned state is damaged: expected {math.prod(shape)} finite numbers")
    return numbers.reshape(shape).copy()


def digest(features: FeatureTable, n_features: int) -> str:
    """Of the measured features that a pair map with `n_features` features is made of."""
    entries = sorted(features, key=lambda entry: (entry.variant.label, entry.share))
    found = hashlib.sha256(f"{n_features}".encode())
    for entry in entries:
        found.update(entry.variant.label.encode())
        numbers = (entry.share, entry.solo_ns, *entry.demand, *entry.statics, *entry.segment_ns)
        found.update(np.array(numbers, np.float64).tobytes())
    return found.hexdigest()[:16]

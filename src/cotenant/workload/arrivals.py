"""Arrivals: seeded, one stream of randomness per model, merged in order of time.

A model's instants depend on the seed and its own settings alone, so that adding a model or changing another
one leaves them as they were.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cotenant.workload.processes import Seconds, diurnal, flash, mmpp, renewal
from cotenant.workload.traces import Playback
from cotenant.workload.traffic import Traffic

Instants = NDArray[np.int64]


def generator(seed: int, name: str) -> np.random.Generator:
    """A generator for one purpose: the same on every machine and independent of every other name's."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


def instants(phases: Sequence[Traffic], duration_s: float, seed: int, name: str) -> Instants:
    """Arrival instants (ns from 0, ascending, below the duration) of one model.

    A new phase restarts the model's process at its `from_s`, but a trace that is the same goes on. Raises
    ValueError for traces that cannot be read."""
    source = _Source(seed, name)
    parts: list[Instants] = []
    for i, phase in enumerate(phases):
        until_s = phases[i + 1].from_s if i + 1 < len(phases) else duration_s
        until_s = min(until_s, duration_s)
        if until_s > phase.from_s:
            part = source.stretch(phase, until_s - phase.from_s)
            parts.append((part * 1e9).astype(np.int64) + round(phase.from_s * 1e9))
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def merged(per_model: Sequence[Instants]) -> tuple[Instants, Instants]:
    """All arrivals in order of time: (instants, index of the model); ties in order of the models."""
    at = np.concatenate([*per_model, np.empty(0, np.int64)])
    which = np.concatenate([*(np.full(len(a), i) for i, a in enumerate(per_model)), np.empty(0, np.int64)])
    order = np.argsort(at, kind="stable")
    return at[order], which[order].astype(np.int64)


class _Source:
    """One model's randomness and its traces, over the stretches of a run."""

    def __init__(self, seed: int, name: str) -> None:
        self._rng = generator(seed, f"arrivals/{name}")
        self._states = generator(seed, f"bursts/{name}")
        self._playback = Playback()

    def stretch(self, traffic: Traffic, span_s: float) -> Seconds:
        """Seconds from the start of the stretch."""
        if traffic.process == "trace":
            return self._playback.next(traffic, span_s)
        if traffic.rate_per_s <= 0:
            return np.empty(0)
        match traffic.process:
            case "poisson" | "gamma":
                return renewal(traffic, span_s, self._rng)
            case "mmpp":
                return mmpp(traffic, span_s, self._rng, self._states)
            case "diurnal":
                return diurnal(traffic, span_s, self._rng)
            case "flash":
                return flash(traffic, span_s, self._rng)
            case other:
                raise ValueError(f"there is no arrival process {other!r}")

"""The seam of the baselines: what a run takes over its solo span, for co-runners that were there in part.

A `SlowdownModel` knows nothing of time, lanes or quantiles. Two wrappers make it a predictor:
`at_dispatch.AtDispatch` (the set in flight at dispatch counts as present throughout) and
`in_fluid.InFluid` (its slowdown of the momentary set, integrated).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import msgspec
import numpy as np

from cotenant.profile.features import WorkloadFeatures

Array = np.ndarray[Any, Any]
Other = tuple[WorkloadFeatures, float]
"""A co-runner, and the share (0..1) of the victim's span in which it was present."""
LEAST, LARGEST = 0.5, 50.0
"""Slowdowns are kept between these."""


@dataclass(frozen=True, slots=True)
class Row:
    """One finished run. `slowdown`: its span over the solo span of the same work."""

    victim: WorkloadFeatures
    others: tuple[Other, ...]
    slowdown: float


class SlowdownModel(Protocol):
    """Deterministic in (what it was taught, arguments); the order of co-runners does not matter."""

    refit_every: int
    """Rows after which the wrapper fits it anew on the latest `window` of them; 0: never again."""
    window: int
    """Most rows that are kept for it."""

    def slowdown(self, victim: WorkloadFeatures, others: Sequence[Other]) -> float:
        """Above 0; 1 with nobody beside. Before anything was learned, a fixed guess."""
        ...

    def fit(self, rows: Sequence[Row]) -> None:
        """From rows in time order (at least one); what was learned before is dropped."""
        ...

    def learn(self, row: Row) -> bool:
        """One more row; says whether anything changed."""
        ...

    def state(self) -> bytes:
        """All that was learned."""
        ...

    def restore(self, state: bytes) -> None:
        """Take over a stored state. Raises ValueError when it cannot be used."""
        ...


def bounded(slowdown: float) -> float:
    """Within what is believed at all; what is not a number is 1."""
    return min(LARGEST, max(LEAST, slowdown)) if slowdown == slowdown else 1.0


def presence(others: Sequence[Other]) -> float:
    """Co-runners that were there on average."""
    return sum(weight for _, weight in others)


def slowdowns_of(rows: Sequence[Row]) -> Array:
    """Of rows (n), within `LEAST` and `LARGEST`."""
    return np.clip(np.array([row.slowdown for row in rows], np.float64), LEAST, LARGEST)


# --- states ---------------------------------------------------------------------------------------------


class Stored(msgspec.Struct):
    """An array as it is stored (float64)."""

    shape: tuple[int, ...]
    data: bytes


def stored(array: Array) -> Stored:
    """An array for a state."""
    return Stored(array.shape, np.ascontiguousarray(array, np.float64).tobytes())


def array_of(found: Stored, shape: tuple[int, ...] | None = None) -> Array:
    """The array of a state. Raises ValueError when it has another shape than expected."""
    array = np.frombuffer(found.data, np.float64)
    if shape is not None and found.shape != shape:
        raise ValueError(f"the learned state holds an array of shape {found.shape}, expected {shape}")
    return array.reshape(found.shape).copy()


T = TypeVar("T")


def decoded(state: bytes, kind: type[T]) -> T:
    """A state of the given kind. Raises ValueError when it cannot be read."""
    try:
        return msgspec.msgpack.decode(state, type=kind)
    except msgspec.MsgspecError as error:
        raise ValueError(f"the learned state cannot be read: {error}") from error

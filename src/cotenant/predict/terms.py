"""Scalar terms of the estimator by name: what is believed of each, and which models they speak of."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence

import numpy as np

from cotenant.domain import NS_PER_S
from cotenant.predict.row_kernels import (
    LEARNED_AT,
    MEAN,
    N_COLUMNS,
    N_NOTES,
    PRIOR_MEAN,
    PRIOR_VARIANCE,
    VARIANCE,
    Array,
)

FOREVER_NS = 1e30
"""Half-life of what is never forgotten."""
OF_NO_MODEL = ("crowd", "modulation", "relation")
"""Kinds of terms whose names speak of no model."""


class Terms:
    """`level`: a row per term, columns of `estimator_kernels`; `notes`: what a compiled step remembers of
    each while it runs. Both may be replaced by larger ones when a term is added."""

    def __init__(self) -> None:
        self.level: Array = np.zeros((64, N_COLUMNS))
        self.notes: Array = np.zeros((64, N_NOTES))
        self._names: list[tuple[Hashable, ...]] = []
        self._slots: dict[tuple[Hashable, ...], int] = {}
        self._of_model: dict[str, list[int]] = {}
        self._of_label: dict[str, list[int]] = {}

    def slot(
        self, name: tuple[Hashable, ...], sigma: float, half_life_s: float = math.inf, mean: float = 0.0
    ) -> int:
        """The row of a term; a new one begins with this prior, to which it returns by half in
        `half_life_s`."""
        slot = self._slots.get(name)
        return self._new(name, sigma, half_life_s, mean) if slot is None else slot

    def _new(self, name: tuple[Hashable, ...], sigma: float, half_life_s: float, mean: float) -> int:
        slot = self._slots[name] = len(self._names)
        self._names.append(name)
        if slot >= len(self.level):
            self.level, self.notes = doubled(self.level), doubled(self.notes)
        half_life = half_life_s * NS_PER_S if half_life_s < math.inf else FOREVER_NS
        self.level[slot] = (mean, sigma**2, mean, sigma**2, 0.0, half_life)
        if name[0] not in OF_NO_MODEL:
            for part in name[1:]:
                if isinstance(part, str):
                    model, bracket, _ = part.partition("[")
                    (self._of_label if bracket else self._of_model).setdefault(model, []).append(slot)
        return slot

    def forget(self, model: str) -> None:
        """Whatever speaks of a model or one of its workloads is its prior again."""
        slots = self._of_model.get(model, []) + self._of_label.get(model, [])
        self.level[slots, MEAN] = self.level[slots, PRIOR_MEAN]
        self.level[slots, VARIANCE] = self.level[slots, PRIOR_VARIANCE]

    def loosen(self, model: str) -> None:
        """What was learned of a model, not of single workloads, counts as little as at first."""
        slots = self._of_model.get(model, [])
        self.level[slots, VARIANCE] = self.level[slots, PRIOR_VARIANCE]

    def copied(self) -> Callable[[], tuple[list[tuple[Hashable, ...]], Array]]:
        """A copy that costs microseconds; what is returned picks out the terms of which something was
        learned, on any thread: names, and their rows of `level`."""
        names, level = self._names, self.level[: len(self._names)].copy()  # names are only ever added behind

        def learned() -> tuple[list[tuple[Hashable, ...]], Array]:
            which = np.flatnonzero(level[:, LEARNED_AT] > 0.0)
            return [names[slot] for slot in which.tolist()], level[which]

        return learned

    def take(self, names: Sequence[tuple[Hashable, ...]], level: Array) -> None:
        """Take over terms that were stored; every other one is its prior again."""
        self.level[:, MEAN] = self.level[:, PRIOR_MEAN]
        self.level[:, VARIANCE] = self.level[:, PRIOR_VARIANCE]
        for name, values in zip(names, level, strict=True):
            slot = self.slot(name, 1.0)
            self.level[slot] = values


def doubled(array: Array) -> Array:
    """A copy with twice the rows, the new ones 0."""
    grown = np.zeros((2 * len(array), *array.shape[1:]), array.dtype)
    grown[: len(array)] = array
    return grown

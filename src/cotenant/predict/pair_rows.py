"""Features and terms of pairs of workloads, made when a pair is first asked for and kept within bounds.

How this works. A pair is (relation of the two lanes, victim, aggressor). Compiled steps look its row up in a
hash table with open addressing; when rows are missing they say which and change nothing, the rows are made,
and they are asked again. So an answer never depends on which rows there were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from cotenant.predict.row_kernels import N_NOTES_OF_ROW, put

MOST_ROWS = 1 << 14
"""Pairs that are kept; beyond it all are made anew. Memory is only touched by as many as there are."""
MOST_MISSING = 1024
"""Missing pairs that a compiled step can name at once."""
TERMS_OF_PAIR = 5

Fill = Callable[[int, int, int, int], None]
"""Fills the row of a pair: (row, relation, victim, aggressor)."""


class PairRows:
    """`phi`: n_rows x n_features; `rest`: the variances that these leave out; `slots`: rows of terms;
    `notes`: what a compiled step remembers of each row while it runs; `index`: the hash table. `epoch` grows
    when all rows are made anew."""

    def __init__(self, n_features: int, fill: Fill, capacity: int = MOST_ROWS) -> None:
        self._n_features, self._fill = n_features, fill
        self.missing = np.zeros((MOST_MISSING, 3), np.int64)
        self.epoch = 0
        self._make(capacity)

    def _make(self, capacity: int) -> None:
        self.n, self.capacity = 0, capacity
        self.phi = np.empty((capacity, self._n_features))
        self.rest = np.empty(capacity)
        self.slots = np.empty((capacity, TERMS_OF_PAIR), np.int64)
        self.notes = np.zeros((capacity, N_NOTES_OF_ROW))
        self.index = np.zeros((2 * capacity, 4), np.int64)

    def clear(self) -> None:
        """Forget every pair."""
        self.n = 0
        self.index[:] = 0
        self.epoch += 1

    def fill(self, n_missing: int, n_before: int) -> None:
        """Make the rows that a compiled step found missing, which has found some missing `n_before` times
        already. Where there is no room, all others go; where that has not helped there is twice the room."""
        if self.n + n_missing > self.capacity:
            while n_missing > self.capacity or n_before:
                self._make(2 * self.capacity)
                n_before = 0
            self.clear()
        self.make(self.missing[:n_missing].tolist())

    def make(self, pairs: Iterable[Sequence[int]]) -> None:
        """Make the rows of pairs (relation, victim, aggressor), for which there is room, unless they are
        there."""
        for relation, victim, aggressor in pairs:
            if put(self.index, relation, victim, aggressor, self.n):
                self._fill(self.n, relation, victim, aggressor)
                self.n += 1

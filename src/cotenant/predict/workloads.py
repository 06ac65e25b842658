"""Workloads (a variant and its share of the device) as the estimator keeps them, and tables of them all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cotenant.predict.overlap_kernels import MAX_SEGMENTS, Tables
from cotenant.predict.row_kernels import Array
from cotenant.predict.terms import doubled
from cotenant.profile.features import WorkloadFeatures

TERMS_OF_RUN = 2


@dataclass(slots=True)
class Known:
    """A workload. `index`: its row in the tables; `own`: the terms of its pace; `declared`: the calibrator
    knows its model."""

    index: int
    features: WorkloadFeatures
    label: str
    n_segments: int
    segment_ns: Array
    own: Array
    declared: bool = False


class WorkloadTables:
    """Of all workloads, by index: segments (n x MAX_SEGMENTS solo spans, ns), demands (n x MAX_SEGMENTS x
    n_resources, NaN as 0) and their means, numbers of segments, terms of the pace, and the set that their
    model is to the calibrator (-1: not said yet)."""

    def __init__(self, n_resources: int) -> None:
        self.segments = np.zeros((16, MAX_SEGMENTS))
        self.demands = np.zeros((16, MAX_SEGMENTS, n_resources))
        self.means = np.zeros((16, n_resources))
        self.n_segments = np.zeros(16, np.int64)
        self.own = np.zeros((16, TERMS_OF_RUN), np.int64)
        self.of_model = np.full(16, -1, np.int64)
        self.all: Tables
        """As compiled steps take them; replaced when there are more workloads."""
        self._gather()

    def put(self, known: Known, demand: Array) -> None:
        """Fill the row of a workload."""
        i, n = known.index, known.n_segments
        if i >= len(self.segments):
            for name in ("segments", "demands", "means", "n_segments", "own", "of_model"):
                setattr(self, name, doubled(getattr(self, name)))
            self._gather()
        self.segments[i, :n], self.demands[i, :n] = known.segment_ns, demand
        self.means[i] = known.segment_ns / known.segment_ns.sum() @ demand
        self.n_segments[i], self.own[i], self.of_model[i] = n, known.own, -1

    def _gather(self) -> None:
        self.all = (self.segments, self.demands, self.means, self.n_segments, self.own, self.of_model)


def merged(
    segments: Sequence[tuple[float, tuple[float, ...]]], most: int
) -> list[tuple[float, tuple[float, ...]]]:
    """At most `most` segments: the shortest neighbours are put together, demands weighted by span."""
    parts = list(segments)
    while len(parts) > most:
        k = min(range(len(parts) - 1), key=lambda i: parts[i][0] + parts[i + 1][0])
        (a, u), (b, v) = parts[k], parts[k + 1]
        parts[k : k + 2] = [(a + b, tuple((a * x + b * y) / (a + b) for x, y in zip(u, v, strict=True)))]
    return parts

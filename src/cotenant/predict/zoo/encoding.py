"""Workloads as numbers for regressors: standardised over the table of features, sums over co-runners."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from cotenant.predict.zoo.seam import Array, Other, Row
from cotenant.profile.features import FeatureTable, WorkloadFeatures

BANDWIDTH = ("dram", "cache", "l2", "bandwidth", "memory", "llc")
"""Parts of names of the resources that gpulet's and iGniter's models look at."""
SHARED_UNITS = "shared_units"
"""The resource that a co-runner takes from a victim by running on its compute units; see `wrapped`."""

FARTHEST = 6.0
"""Standardised features are cut to this."""


def identity(workload: WorkloadFeatures) -> str:
    """What tells a workload from others."""
    return f"{workload.variant.label}@{workload.share:g}"


def contended(table: FeatureTable) -> list[int]:
    """Columns of demands that linear baselines look at: memory and cache, and shared compute units; all
    where there are none of these."""
    wanted = [
        k for k, name in enumerate(table.resources) if any(part in name.lower() for part in BANDWIDTH)
    ] or list(range(len(table.resources)))
    if SHARED_UNITS in table.resources:
        wanted = sorted({*wanted, table.resources.index(SHARED_UNITS)})
    return wanted


class Encoder:
    """Vectors of workloads: log of solo span, rows and share, demands, static features (log where all are
    positive), each less its mean over the table and in its standard deviations; NaN where not measured."""

    def __init__(self, table: FeatureTable) -> None:
        raw = np.array([_raw(w) for w in table], np.float64)
        self._log = np.array([_positive(column) for column in raw.T]) if len(raw) else np.zeros(0, bool)
        self._log[: len(self._log) - len(table.statics)] = False
        raw = self._logged(raw)
        known = np.isfinite(raw)
        n = np.maximum(1, known.sum(0))
        filled = np.where(known, raw, 0.0)
        self._mean = filled.sum(0) / n
        spread = np.sqrt((np.where(known, raw - self._mean, 0.0) ** 2).sum(0) / n)
        self._width = np.where(spread > 1e-9, spread, np.inf)
        if SHARED_UNITS in table.resources:
            k = 3 + table.resources.index(SHARED_UNITS)
            self._mean[k], self._width[k] = 0.0, 1.0
        self._cache: dict[tuple[str, float], Array] = {}
        self.n = len(self._mean)

    def __call__(self, workload: WorkloadFeatures) -> Array:
        """n numbers."""
        key = _order(workload)
        found = self._cache.get(key)
        if found is None:
            raw = self._logged(np.array([_raw(workload)], np.float64))[0]
            found = self._cache[key] = np.clip((raw - self._mean) / self._width, -FARTHEST, FARTHEST)
        return found

    def pair(self, victim: WorkloadFeatures, others: Sequence[Other]) -> Array:
        """The victim, the weighted sum of its co-runners, and how many there are: 2 n + 1 numbers."""
        beside = np.zeros(self.n)
        total = 0.0
        for other, weight in in_order(others):
            beside = beside + weight * self(other)
            total += weight
        return np.concatenate([self(victim), beside, [total]])

    def pairs(self, rows: Sequence[Row]) -> Array:
        """`pair` of rows."""
        return np.array([self.pair(row.victim, row.others) for row in rows])

    def _logged(self, raw: Array) -> Array:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(self._log, np.log(np.where(raw > 0, raw, np.nan)), raw)


def in_order(others: Sequence[Other]) -> list[Other]:
    """Co-runners in an order that does not depend on how they came, so that sums are the same to the bit."""
    if len(others) < 2:
        return list(others)
    return sorted(others, key=lambda other: (*_order(other[0]), other[1]))


def _order(workload: WorkloadFeatures) -> tuple[str, float]:
    """Tells workloads apart, those that run on the victim's compute units from those that do not too."""
    last = workload.demand[-1] if workload.demand else 0.0
    return identity(workload), last if math.isfinite(last) else -1.0


def _raw(w: WorkloadFeatures) -> tuple[float, ...]:
    share = math.log(w.share) if w.share > 0 else 0.0
    return (math.log(max(1.0, w.solo_ns)), math.log(w.variant.rows), share, *w.demand, *w.statics)


def _positive(column: Array) -> bool:
    known = column[np.isfinite(column)]
    return bool(len(known)) and bool((known > 0).all())

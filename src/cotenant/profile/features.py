"""What predictors know of a workload before they see it beside others: features, per variant and share.

A workload is a variant on a share of the device. Its demand says which share (0..1) of each resource it uses
when alone; segments say how that changes in the course of a run. NaN is "not measured".
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from cotenant.domain import Variant


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadFeatures:
    """Measured features of one workload. `solo_ns`: median span alone. `demand`: n_resources; `statics`:
    n_statics, of any unit; `segment_ns`: n_segments solo spans (none: one segment, the whole);
    `segment_demand`: n_segments x n_resources."""

    variant: Variant
    share: float
    solo_ns: float
    demand: tuple[float, ...] = ()
    statics: tuple[float, ...] = ()
    segment_ns: tuple[float, ...] = ()
    segment_demand: tuple[tuple[float, ...], ...] = ()

    @property
    def segments(self) -> tuple[tuple[float, tuple[float, ...]], ...]:
        """(share of the solo span, demand) of each segment, at least one; shares add up to 1."""
        total = sum(self.segment_ns)
        if not total:
            return ((1.0, self.demand),)
        return tuple(
            (span / total, demand)
            for span, demand in zip(self.segment_ns, self.segment_demand, strict=True)
            if span > 0
        )


class FeatureTable:
    """Features of workloads. `resources` names the columns of demands, `statics` those of static features."""

    def __init__(self, resources: tuple[str, ...] = (), statics: tuple[str, ...] = ()) -> None:
        self.resources, self.statics = resources, statics
        self._entries: dict[tuple[Variant, float], WorkloadFeatures] = {}

    def __iter__(self) -> Iterator[WorkloadFeatures]:
        return iter(self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, entry: WorkloadFeatures) -> None:
        """Take in a workload, or replace it."""
        self._entries[entry.variant, entry.share] = entry

    def has(self, variant: Variant, share: float = 1.0) -> bool:
        """Whether exactly this workload was measured."""
        return (variant, share) in self._entries

    def bare(self, variant: Variant, solo_ns: float, share: float = 1.0) -> WorkloadFeatures:
        """A workload of which only the solo span is known, with this table's columns."""
        return WorkloadFeatures(
            variant=variant,
            share=share,
            solo_ns=solo_ns,
            demand=(math.nan,) * len(self.resources),
            statics=(math.nan,) * len(self.statics),
        )

    def aligned(self, entry: WorkloadFeatures, other: FeatureTable) -> WorkloadFeatures:
        """An entry of this table with the columns of another; what this one has not is not a number."""

        def moved(
            values: tuple[float, ...], have: tuple[str, ...], want: tuple[str, ...]
        ) -> tuple[float, ...]:
            known = dict(zip(have, values, strict=False))
            return tuple(known.get(name, math.nan) for name in want)

        return replace(
            entry,
            demand=moved(entry.demand, self.resources, other.resources),
            statics=moved(entry.statics, self.statics, other.statics),
            segment_demand=tuple(moved(u, self.resources, other.resources) for u in entry.segment_demand),
        )

    def drop(self, model: str) -> None:
        """Forget a model."""
        self._entries = {key: entry for key, entry in self._entries.items() if key[0].model != model}

    def of(self, variant: Variant, share: float = 1.0) -> WorkloadFeatures:
        """The workload's features, else those of the nearest one of the same model that was measured: other
        rows or axes (solo span scaled by size), or another share. Raises KeyError for an unknown model."""
        exact = self._entries.get((variant, share))
        if exact is not None:
            return exact
        size = variant_size(variant)
        best: tuple[float, WorkloadFeatures] | None = None
        for (other, other_share), entry in self._entries.items():
            if other.model == variant.model:
                distance = abs(math.log(size / variant_size(other))) + 2.0 * abs(share - other_share)
                if best is None or distance < best[0]:
                    best = (distance, entry)
        if best is None:
            raise KeyError(f"nothing was measured of model {variant.model!r}")
        near = best[1]
        return WorkloadFeatures(
            variant=variant,
            share=share,
            solo_ns=near.solo_ns * size / variant_size(near.variant),
            demand=near.demand,
            statics=near.statics,
            segment_ns=near.segment_ns,
            segment_demand=near.segment_demand,
        )


def variant_size(variant: Variant) -> int:
    """Rows times the sizes of all axes."""
    return variant.rows * math.prod(length for _, length in variant.axes)

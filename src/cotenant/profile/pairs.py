"""Slowdowns of pairs as what a predictor is fitted on: steady co-runs, with demands where none are known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cotenant.domain import Observation, Overlap, Variant
from cotenant.profile.features import FeatureTable

DEMANDS = ("sensitivity", "pressure")
"""How much a model suffers and causes on average: less than nothing is taken as nothing."""


@dataclass(frozen=True, slots=True)
class Pair:
    """`victim` takes `ratio` times as long while `aggressor` runs back to back beside it."""

    victim: Variant
    aggressor: Variant
    ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CoRuns:
    """Co-runs that were measured before any request came, and features of the workloads in them."""

    features: FeatureTable
    observations: Sequence[Observation]


def steady(
    variant: Variant, others: Sequence[Variant], ratio: float, solo_ns: float, handover_ns: int = 0
) -> Observation:
    """A run, on the first lane, that took `ratio` times as long as alone while `others`, on the next lanes,
    were there throughout."""
    return Observation(
        dispatch_id=-1,
        variant=variant,
        rows=variant.rows,
        lane=0,
        share=1.0,
        decided_at=0,
        started_at=handover_ns,
        ended_at=handover_ns + max(1, round(ratio * solo_ns)),
        first_segment=0,
        end_segment=1,
        segment_ended_at=(),
        predictions=(),
        overlaps=tuple(Overlap(-2 - k, other, 0, None, 1 + k) for k, other in enumerate(others)),
    )


def coruns_of_pairs(pairs: Sequence[Pair], features: FeatureTable, handover_ns: int = 0) -> CoRuns:
    """Pairs as co-runs. Where no demand was measured of anybody, what the pairs say of each model on average
    stands for it."""
    measured = any(not math.isnan(value) for entry in features for value in entry.demand)
    table = features if measured or not pairs else _with_means(features, pairs)
    return CoRuns(
        features=table,
        observations=[
            steady(pair.victim, [pair.aggressor], pair.ratio, table.of(pair.victim).solo_ns, handover_ns)
            for pair in pairs
        ],
    )


def _with_means(features: FeatureTable, pairs: Sequence[Pair]) -> FeatureTable:
    suffered: dict[str, list[float]] = {}
    caused: dict[str, list[float]] = {}
    for pair in pairs:
        excess = max(0.0, pair.ratio - 1.0)
        suffered.setdefault(pair.victim.model, []).append(excess)
        caused.setdefault(pair.aggressor.model, []).append(excess)
    table = FeatureTable(DEMANDS, features.statics)
    for entry in features:
        model = entry.variant.model
        demand = tuple(_mean(of.get(model, ())) for of in (suffered, caused))
        table.add(replace(entry, demand=demand, segment_demand=(demand,) * len(entry.segment_ns)))
    return table


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan

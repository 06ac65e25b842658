"""Fluid predictors that have learned something, and all that can be asked of them."""

from __future__ import annotations

import random
from itertools import product

from cotenant.domain import (
    NS_PER_MS,
    Candidate,
    InFlight,
    ModelSpec,
    Observation,
    Overlap,
    Prediction,
    Snapshot,
    Variant,
)
from cotenant.ports import LaneInfo
from cotenant.predict.fluid import FluidPredictor
from cotenant.predict.pair_map import ReducedMap
from cotenant.predict.solo import SoloPredictor
from cotenant.profile.features import FeatureTable, WorkloadFeatures
from cotenant.testing import TableProfiles

SOLO_MS = {"a": 10.0, "b": 3.0, "c": 25.0}
VARIANTS = [Variant(model, rows) for model in SOLO_MS for rows in (1, 2)]
LANES = [LaneInfo(index=0, units=(0,)), LaneInfo(index=1, units=(1,)), LaneInfo(index=2, units=(0,))]


def predictor(solo_ms: dict[str, float] | None = None) -> FluidPredictor:
    """As the server's: two models measured, one known by its solo times alone."""
    solo_ms = solo_ms or SOLO_MS
    specs = {
        name: ModelSpec(name=name, slo_ns=50 * NS_PER_MS, max_batch=2, row_buckets=(1, 2)) for name in solo_ms
    }
    profiles = TableProfiles(specs, solo_ms)
    features = FeatureTable(("compute", "memory_bw"))
    for variant in VARIANTS:
        solo_ns = float(profiles.solo(variant).median_ns)
        if variant.model == "c":
            features.add(features.bare(variant, solo_ns))
            continue
        demand = (0.8, 0.2) if variant.model == "a" else (0.3, 0.9)
        features.add(WorkloadFeatures(variant=variant, share=1.0, solo_ns=solo_ns, demand=demand))
    return FluidPredictor(
        features,
        ReducedMap(features).begin(),
        profiles=profiles,
        screen=SoloPredictor(profiles),
        lanes=LANES,
    )


def flight(number: int, variant: Variant, lane: int, started_at: int) -> InFlight:
    return InFlight(
        dispatch_id=number, variant=variant, lane=lane, share=1.0, decided_at=started_at,
        started_at=started_at, segment=0, end_segment=1, boundary_at=None,
    )  # fmt: skip


def observations(of: FluidPredictor, n: int, *, at: int = 0, seed: int = 1) -> list[Observation]:
    """`n` dispatches one after another from `at` on, each beside another, learned by `of` as they come."""
    rng = random.Random(seed)
    found = []
    for number in range(n):
        variant, other = rng.choice(VARIANTS), rng.choice(VARIANTS)
        lane = rng.randrange(2)
        beside = (flight(-1, other, 1 - lane, at),)
        forecast = of.predict(
            Snapshot(at=at, in_flight=beside), [Candidate(variant=variant, lane=lane, start_at=at)]
        )
        issued = Prediction(
            issued_at=at, finish_at=tuple(forecast.finish_at[0]), slo_level=0.99, version=forecast.version,
            corunners=1, features=forecast.features[0],
        )  # fmt: skip
        began = at + rng.randrange(1_000, 300_000)
        span = int(SOLO_MS[variant.model] * NS_PER_MS * variant.rows * 1.3 * rng.lognormvariate(0.0, 0.1))
        overlap = Overlap(-1, other, began, began + int(span * rng.random()), 1 - lane)
        seen = Observation(
            dispatch_id=number, variant=variant, rows=variant.rows, lane=lane, share=1.0, decided_at=at,
            started_at=began, ended_at=began + span, first_segment=0, end_segment=1, segment_ended_at=(),
            predictions=(issued,), overlaps=(overlap,),
        )  # fmt: skip
        of.learn(seen)
        found.append(seen)
        at = seen.ended_at
    return found


def answers(of: FluidPredictor, at: int) -> list[int]:
    """Spans (ns from `at`) of everything that can be asked with up to two in flight."""
    spans: list[int] = []
    for first, second in product([None, *VARIANTS], [None, *VARIANTS]):
        both = [(0, first), (1, second)]
        in_flight = tuple(
            flight(lane, variant, lane, at - NS_PER_MS) for lane, variant in both if variant is not None
        )
        candidates = [Candidate(variant=variant, lane=2, start_at=at) for variant in VARIANTS]
        found = of.predict(Snapshot(at=at, in_flight=in_flight), candidates)
        rows = [*found.finish_at, *found.baseline_finish_at]
        rows += [row for rows_then in found.in_flight_finish_at for row in rows_then]
        spans += [finish_at - at for row in rows for finish_at in row]
    return spans + [span for variant in VARIANTS for span in of.solo(variant, at)]

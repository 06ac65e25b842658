"""Has the compiled steps compiled, or loaded from where they were kept, before anything waits for them.

The first time on a machine this takes a while; numba keeps the result beside the modules, or in the user's
cache.
"""

from __future__ import annotations

from functools import cache

from cotenant.domain import (
    Candidate,
    InFlight,
    LaneUse,
    LoadEstimate,
    Observation,
    Overlap,
    Snapshot,
    Variant,
)
from cotenant.ports import LaneInfo
from cotenant.predict.fluid import FluidPredictor
from cotenant.predict.pair_map import ReducedMap
from cotenant.profile.features import FeatureTable

MS = 1_000_000
LANES = tuple(LaneUse(lane=i, fill_per_s=9.0, refill=0.5) for i in range(2))


@cache
def warm_up() -> None:
    """Predict and learn once, for a made-up device. Does so once a process; answers of others do not
    change."""
    table, a, b = FeatureTable(), Variant("a", 1), Variant("b", 1)
    for variant in (a, b):
        table.add(table.bare(variant, 5.0 * MS))
    lanes = [LaneInfo(index=i, units=(i,)) for i in range(2)]
    predictor = FluidPredictor(table, ReducedMap(table).begin(), lanes=lanes)
    overlap = Overlap(2, b, 2 * MS, None, 1)
    flight = InFlight(
        dispatch_id=1, variant=a, lane=0, share=1.0, decided_at=MS, started_at=MS, segment=0, end_segment=1,
        boundary_at=None, overlaps=(overlap,),
    )  # fmt: skip
    load = LoadEstimate(
        models={}, refill=0.5, busy=0.5, fill_per_s=9.0, span_ns=5e6, variants=((b, 1.0),), lanes=LANES
    )
    candidate = Candidate(variant=b, lane=1, start_at=3 * MS)
    predictor.predict(Snapshot(at=3 * MS, in_flight=(flight,), load=load), [candidate])
    run = Observation(
        dispatch_id=1, variant=a, rows=1, lane=0, share=1.0, decided_at=MS, started_at=MS, ended_at=9 * MS,
        first_segment=0, end_segment=1, segment_ended_at=(), predictions=(), overlaps=(overlap,),
    )  # fmt: skip
    predictor.learn(run)
    predictor.given_overlap(run)

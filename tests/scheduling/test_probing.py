"""What a predictor says against overlap must be found out to be wrong, where trying it can harm nobody."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import structs
from rig import outcomes_of

from cotenant.domain import NS_PER_MS, NS_PER_S, Candidate, ModelSpec, Request, Snapshot
from cotenant.ports import Forecast, LaneInfo
from cotenant.predict.solo import SoloPredictor

SOLO_MS = 10.0


class NobodyBesideAnother(SoloPredictor):
    """Says that whatever joins waits until all else has ended."""

    def predict(self, snapshot: Snapshot, candidates: Sequence[Candidate]) -> Forecast:
        found = super().predict(snapshot, candidates)
        done_at = max((row[0] for row in found.baseline_finish_at), default=snapshot.at)
        finish_at = [
            [done_at + instant - candidate.start_at for instant in row]
            for candidate, row in zip(candidates, found.finish_at, strict=True)
        ]
        return structs.replace(found, finish_at=finish_at)


def n_begun_beside_another(slo_ms: float) -> tuple[int, int]:
    """(dispatches that began beside another, all) of 2000 requests, two every 25 ms."""
    specs = {
        name: ModelSpec(name=name, slo_ns=int(slo_ms * NS_PER_MS), max_batch=1, row_buckets=(1,))
        for name in ("a", "b")
    }
    requests = [
        Request(
            id=f"{name}{n}",
            model=name,
            arrived_at=(at := n * NS_PER_S // 40),
            deadline_at=at + int(slo_ms * NS_PER_MS),
        )
        for n in range(1000)
        for name in specs
    ]
    lanes = [LaneInfo(index=i, units=(0,)) for i in range(2)]
    solo_ms = dict.fromkeys(specs, SOLO_MS)
    outcomes = outcomes_of("ours", specs, solo_ms, requests, lanes, predicts=NobodyBesideAnother)
    assert all(outcome.ended_at <= outcome.request.deadline_at for outcome in outcomes)
    waited_ns = [o.started_at - o.request.arrived_at for o in outcomes if o.request.model == "b"]
    return sum(waited < 0.5 * SOLO_MS * NS_PER_MS for waited in waited_ns), len(waited_ns)


def test_an_overlap_that_seems_to_gain_nothing_is_tried_now_and_then_where_deadlines_are_ample():
    tried, of = n_begun_beside_another(slo_ms=200.0)
    assert of / 100 <= tried <= of / 25


def test_it_is_not_tried_where_a_deadline_could_be_missed_for_it():
    tried, _ = n_begun_beside_another(slo_ms=35.0)
    assert tried == 0

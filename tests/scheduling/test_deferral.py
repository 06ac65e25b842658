"""Holding a batch back for a larger one ends when those that were expected do not come."""

from __future__ import annotations

from cotenant.domain import NS_PER_MS, NS_PER_S, ModelSpec, Request
from cotenant.ports import LaneInfo
from cotenant.predict.solo import SoloPredictor
from cotenant.schedule.plan import best_offer, wait_until
from cotenant.schedule.view import View
from cotenant.testing import TableProfiles
from cotenant.workload.no_load import NoLoad

SPEC = ModelSpec(name="m", slo_ns=10 * NS_PER_S, max_batch=8, row_buckets=(1, 2, 4, 8))
RATE_PER_S = 1000.0


def held_until(at_ms: int) -> int | None:
    """Until when (ns) three requests of instant 0 are held, asked at an instant, while a thousand per second
    are expected."""
    view = View(
        [LaneInfo(index=0, units=(0,))], SoloPredictor(TableProfiles({"m": SPEC}, {"m": 10.0}, 0.1)), NoLoad()
    )
    view.specs["m"] = SPEC
    view.add_queue("m", fifo=False)
    queue = view.queues["m"]
    for n in range(3):
        queue.push(Request(id=f"{n}", model="m", arrived_at=0, deadline_at=SPEC.slo_ns))
    view.at = at_ms * NS_PER_MS
    offer = best_offer(view, queue)
    assert offer is not None
    return wait_until(view, offer, RATE_PER_S, lane_would_idle=True)


def test_a_batch_waits_for_those_that_are_expected_soon() -> None:
    until = held_until(1)
    assert until is not None
    assert 1 * NS_PER_MS < until < 20 * NS_PER_MS


def test_nobody_is_held_until_the_deadline_for_requests_that_do_not_come() -> None:
    assert held_until(50) is None

"""Work without a deadline must be served now and then, however much work with deadlines there is."""

from __future__ import annotations

from itertools import pairwise

import pytest
from rig import outcomes_of

from cotenant.domain import NS_PER_S, JobClass, ModelSpec, Outcome, OutcomeKind, Request, Variant
from cotenant.ports import LaneInfo
from cotenant.schedule.plan import Offer
from cotenant.schedule.queue import NEVER, PATIENCE_NS, DeadlineQueue

SOLO_MS = 10.0
ENDS_S = 60


def run(policy: str, job_class: JobClass) -> list[Outcome]:
    """One lane. A hundred and fifty requests/s that take 10 ms each, due in 100 ms; five a second of another
    model that are due at no time."""
    names = ("urgent", "patient")
    specs = {name: ModelSpec(name=name, slo_ns=None, max_batch=1, row_buckets=(1,)) for name in names}
    requests = [
        Request(
            id=f"u{n}",
            model="urgent",
            arrived_at=(at := n * NS_PER_S // 150),
            deadline_at=at + NS_PER_S // 10,
        )
        for n in range(150 * ENDS_S)
    ]
    requests += [
        Request(
            id=f"p{n}", model="patient", arrived_at=n * NS_PER_S // 5, deadline_at=None, job_class=job_class
        )
        for n in range(5 * ENDS_S)
    ]
    requests.sort(key=lambda request: request.arrived_at)
    lanes = [LaneInfo(index=0, units=(0,))]
    return outcomes_of(policy, specs, dict.fromkeys(specs, SOLO_MS), requests, lanes)


@pytest.mark.parametrize("job_class", [JobClass.STANDARD, JobClass.BEST_EFFORT])
@pytest.mark.parametrize("policy", ["exclusive_edf", "deferred_edf", "k_edf", "ours", "ours-no-overlap"])
def test_a_model_without_deadlines_is_served_at_least_every_ten_seconds_in_overload(policy, job_class):
    outcomes = run(policy, job_class)
    served = sorted(
        outcome.started_at
        for outcome in outcomes
        if outcome.request.model == "patient" and outcome.kind is OutcomeKind.OK
    )
    during = [at for at in served if at < ENDS_S * NS_PER_S]
    instants = [0, *during, ENDS_S * NS_PER_S]
    assert max(b - a for a, b in pairwise(instants)) <= 11 * NS_PER_S
    assert len(during) <= 2 * ENDS_S * NS_PER_S / PATIENCE_NS + 20  # it takes no more than is left over


def test_what_has_been_served_is_patient_anew():
    queue = DeadlineQueue("m")
    requests = [Request(id=f"r{n}", model="m", arrived_at=0, deadline_at=None) for n in range(3)]
    for request in requests:
        queue.push(request)
    assert not queue.aged(PATIENCE_NS - 1)
    assert queue.aged(PATIENCE_NS)
    queue.taken(requests[:1], PATIENCE_NS)
    assert not queue.aged(2 * PATIENCE_NS - 1)
    queue.remove("r1")
    assert queue.aged(2 * PATIENCE_NS)
    queue.remove("r2")
    assert not queue.aged(3 * PATIENCE_NS)


def test_a_deadline_never_ages():
    queue = DeadlineQueue("m")
    queue.push(Request(id="r", model="m", arrived_at=0, deadline_at=int(1e12)))
    assert not queue.aged(5 * PATIENCE_NS)


def test_what_has_aged_is_not_ranked_by_the_class_of_others_of_its_model():
    queue = DeadlineQueue("m")
    patient = Request(id="p", model="m", arrived_at=0, deadline_at=None, job_class=JobClass.BEST_EFFORT)
    queue.push(patient)
    queue.push(Request(id="r", model="m", arrived_at=0, deadline_at=1, job_class=JobClass.PROTECTED))
    offer = Offer(
        queue=queue,
        variant=Variant("m", 1),
        requests=[patient],
        rows=1,
        due_at=NEVER,
        median_ns=1,
        upper_ns=1,
        aged=True,
    )
    assert queue.job_class is JobClass.PROTECTED
    assert offer.job_class is JobClass.STANDARD

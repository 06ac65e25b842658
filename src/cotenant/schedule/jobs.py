"""What could run next: new batches and those that were stopped, in one order."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from cotenant.domain import JobClass, Request, Variant
from cotenant.schedule.plan import Offer, aged_offer, best_offer, hopeless, latest_start
from cotenant.schedule.queue import DeadlineQueue, due
from cotenant.schedule.skip import worth_skipping
from cotenant.schedule.view import Suspended, View


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A batch that could run now: an `offer` of a queue, or one that was `stopped`. Spans (ns) are of what is
    left of it, alone: `median_ns`, and `upper_ns` which it keeps with the model's `slo_percentile`. `dues`
    are the deadlines of its requests, `due_at` the earliest that it can meet."""

    variant: Variant
    job_class: JobClass
    rows: int
    dues: Sequence[int]
    due_at: int
    median_ns: int
    upper_ns: int
    first_segment: int = 0
    offer: Offer | None = None
    stopped: Suspended | None = None
    aged: bool = False
    """Has no deadline and has waited too long."""

    @property
    def latest_start_at(self) -> int:
        """Instant by which it must start to meet its earliest deadline at the upper quantile."""
        return latest_start(self.due_at, self.upper_ns)


def job_of_offer(offer: Offer) -> Job:
    """A new batch."""
    return Job(
        variant=offer.variant,
        job_class=offer.job_class,
        rows=offer.rows,
        dues=[due(request) for request in offer.requests],
        due_at=offer.due_at,
        median_ns=offer.median_ns,
        upper_ns=offer.upper_ns,
        offer=offer,
        aged=offer.aged,
    )


def job_of_stopped(view: View, stopped: Suspended) -> Job:
    """The rest of a batch that was stopped."""
    dispatch = stopped.dispatch
    left = 1.0 - stopped.segment / dispatch.end_segment
    solo = view.predictor.solo(stopped.variant, view.at)
    return Job(
        variant=stopped.variant,
        job_class=stopped.rank(view.at)[0],
        rows=dispatch.rows,
        dues=[due(request) for request in dispatch.requests],
        due_at=stopped.due_at,
        median_ns=int(solo[0] * left),
        upper_ns=int(solo[-1] * left),
        first_segment=stopped.segment,
        stopped=stopped,
        aged=stopped.aged(view.at),
    )


def next_jobs(
    view: View, most: int, passed_over: Collection[str] = ()
) -> tuple[list[Job], Sequence[Request]]:
    """The first `most` jobs in order (class, deadline), stopped ones before queued ones on a tie; and
    requests that are past saving, which must be settled before there are jobs at all. A queue begins with
    the first request that is not `passed_over` (ids), unless all are."""
    entries: list[tuple[JobClass, int, str, Suspended | DeadlineQueue | Offer]] = [
        (*stopped.rank(view.at), "", stopped) for stopped in view.suspended
    ]
    first = {queue.model: _first(queue, passed_over) for queue in view.waiting()} if passed_over else {}
    for queue in view.waiting():
        aged = aged_offer(view, queue)
        if aged is None:
            due_at = first.get(queue.model) or queue.head_due
            entries.append((queue.job_class, due_at, queue.model, queue))
        else:
            entries.append((*aged.order, aged))
    entries.sort(key=lambda entry: entry[:3])
    jobs: list[Job] = []
    for _, _, _, entry in entries:
        if isinstance(entry, Suspended):
            jobs.append(job_of_stopped(view, entry))
        elif isinstance(entry, Offer):
            jobs.append(job_of_offer(entry))
        else:
            skips = first.get(entry.model)
            offer = best_offer(view, entry, but=passed_over if skips else ())
            if offer is None and skips:
                continue
            if offer is None:
                gone = hopeless(view, entry)
                if gone:
                    return [], gone
                continue
            jobs.append(job_of_offer(offer if skips else worth_skipping(view, offer)))
        if len(jobs) >= most:
            break
    return jobs, ()


def _first(queue: DeadlineQueue, passed_over: Collection[str]) -> int | None:
    """Deadline (ns) of the first request that is not passed over; None when that is the first of all, or
    when there is none."""
    for n, request in enumerate(queue):
        if request.id not in passed_over:
            return due(request) if n else None
    return None

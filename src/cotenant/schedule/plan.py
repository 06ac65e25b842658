"""Pure functions over a `View`: which batch a queue could run now, how long it may wait, what backlog means.

How this works. An `Offer` is the best batch that one queue can run at this instant: the requests in deadline
order that fit the earliest one's bucket, cut to the row bucket with the most rows per unit of time among
those that still meet the earliest deadline (`span_to_fit`). Offers are cheap, so every policy builds one per
waiting queue and then only ranks them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from cotenant.domain import LEVELS, Alternative, Axes, JobClass, ModelSpec, Request, Variant
from cotenant.schedule.queue import NEVER, DeadlineQueue, due
from cotenant.schedule.view import Suspended, View

PAYS = 0.95
"""A larger batch is taken when it costs at most this share, per row, of the smaller one: a longer run blocks
its lane for everyone else, which a batch that saves nothing (common on CPUs) is not worth."""

MOST_WAITS = 4.0
"""Expected waits after which nobody is waited for any more: clients that send again when they are answered
would wait for each other until the deadline."""

LIKELY = 0.7
"""Chance (0.5 to 0.9) that a larger batch must have to meet its earliest deadline."""


def latest_start(due_at: int, upper_ns: int) -> int:
    """Instant (ns) by which work of span `upper_ns` must start to end by `due_at`."""
    return due_at - upper_ns if due_at < NEVER else NEVER


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """The batch that a queue could run now. `latest_start_at` = earliest deadline - upper span. `aged`: its
    requests have no deadline and have waited too long."""

    queue: DeadlineQueue
    variant: Variant
    requests: Sequence[Request]
    rows: int
    due_at: int
    median_ns: int
    upper_ns: int
    aged: bool = False

    @property
    def job_class(self) -> JobClass:
        """The class that it is ranked with: its queue's, or, aged, that of what is in it, but no less than
        standard."""
        if not self.aged:
            return self.queue.job_class
        return min(JobClass.STANDARD, *(request.job_class for request in self.requests))

    @property
    def order(self) -> tuple[JobClass, int, str]:
        """Class, then deadline; what has aged comes before all others of its class."""
        return self.job_class, 0 if self.aged else self.due_at, self.queue.model

    @property
    def latest_start_at(self) -> int:
        """Instant by which the batch must start to meet its earliest deadline at the upper quantile."""
        return latest_start(self.due_at, self.upper_ns)

    @property
    def complete(self) -> bool:
        """Whether nothing that waits is left out."""
        return self.rows == self.queue.rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One dispatch that a policy wants: a new batch (`offer`), or one that was stopped (`resume`). `why` and
    `alternatives` go to the log and into explanations."""

    lane: int
    why: str
    offer: Offer | None = None
    resume: Suspended | None = None
    alternatives: tuple[Alternative, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a policy wants now: at most one dispatch (it is asked again), requests that cannot be served any
    more, dispatches to stop at their next segment boundary, and the instant at which waiting should end."""

    choice: Choice | None = None
    drop: Sequence[Request] = ()
    preempt: Sequence[int] = ()
    wake_at: int | None = None


def members(view: View, queue: DeadlineQueue, max_rows: int, but: Collection[str] = ()) -> list[Request]:
    """Requests in deadline order that can run with the first one, up to `max_rows` rows, without those whose
    ids are in `but`."""
    chosen: list[Request] = []
    rows = 0
    head: Request | None = None
    for request in queue:
        if request.id in but:
            continue
        if head is None:
            head = request
        elif not view.joins(request, head):
            continue
        if rows + request.rows > max_rows:
            break
        chosen.append(request)
        rows += request.rows
        if rows == max_rows:
            break
    return chosen


def span_to_fit(view: View, solo: Sequence[int], job_class: JobClass) -> int:
    """The span (ns) of a batch, of which `solo` are the quantiles, that must fit before its earliest
    deadline for more requests to be taken into it.

    The upper quantile for protected work, and where lanes share compute: whoever joins later makes spans
    longer. Else the one of `LIKELY`: held to the upper one batches stay small where spans vary much, and
    more is lost for want of throughput than by a head that is late."""
    if job_class is JobClass.PROTECTED or view.shares_compute:
        return solo[-1]
    return solo[0] + int((LIKELY - 0.5) / (LEVELS[1] - 0.5) * (solo[1] - solo[0]))


def best_offer(
    view: View, queue: DeadlineQueue, *, margin: float | None = None, but: Collection[str] = ()
) -> Offer | None:
    """The best batch that `queue` could start at this instant, or None when its head cannot make it. Requests
    whose ids are in `but`, never all of them, are left out.

    With `margin`, the span that must fit is margin x median instead of the learned upper quantile. A head
    that fits its median but not its upper span is still offered, alone with what its bucket holds.
    """
    spec = view.specs[queue.model]
    candidates = members(view, queue, spec.max_batch, but)
    head = candidates[0]
    due_at = due(head)
    best: Offer | None = None
    taken, rows, n = 0, 0, 0
    for bucket in spec.row_buckets:
        while n < len(candidates) and rows + candidates[n].rows <= bucket:
            rows += candidates[n].rows
            n += 1
        if rows == taken:
            continue
        taken = rows
        variant = Variant(queue.model, bucket, head.axes)
        solo = view.predictor.solo(variant, view.at)
        median = solo[0]
        upper = int(margin * median) if margin is not None else solo[-1]
        fits = upper if margin is not None else span_to_fit(view, solo, queue.job_class)
        if best is None:
            if view.at + median > due_at and not _probe_fits(view, head, variant):
                return None
        elif view.at + fits > due_at or rows * best.median_ns * PAYS < best.rows * median:
            continue
        best = Offer(
            queue=queue,
            variant=variant,
            requests=candidates[:n],
            rows=rows,
            due_at=due_at,
            median_ns=median,
            upper_ns=upper,
        )
        if n == len(candidates):
            break
    return best


def aged_offer(view: View, queue: DeadlineQueue) -> Offer | None:
    """The batch of requests without a deadline that should not wait any longer; None when there is none."""
    if not queue.aged(view.at):
        return None
    found = best_offer(view, queue, but=queue.with_deadline())
    return None if found is None else replace(found, aged=True)


def _probe_fits(view: View, head: Request, variant: Variant) -> bool:
    """Whether a probe (admitted against the learned prediction) still fits by profile times alone."""
    return head.id in view.probes and view.at + view.predictor.prior(variant) <= due(head)


def hopeless(view: View, queue: DeadlineQueue) -> list[Request]:
    """Requests that would miss their deadline even if they were started now, alone (by the median)."""
    spec = view.specs[queue.model]
    gone = []
    for request in queue:
        variant = spec.bucket(request.rows, request.axes)
        if view.at + view.median(variant) <= due(request) or _probe_fits(view, request, variant):
            break
        gone.append(request)
    return gone


def offers(
    view: View, *, margin: float | None = None, drop: bool = True
) -> tuple[list[Offer], list[Request]]:
    """Best offers of all waiting queues in order (class, deadline), and the requests that are past saving."""
    found: list[Offer] = []
    for queue in view.waiting():
        offer = aged_offer(view, queue) or best_offer(view, queue, margin=margin)
        if offer is None:
            gone = hopeless(view, queue)
            if drop and gone:
                return [], gone
        else:
            found.append(offer)
    found.sort(key=lambda offer: offer.order)
    return found, []


def wait_until(view: View, offer: Offer, rate_per_s: float, *, lane_would_idle: bool) -> int | None:
    """Until when it pays to hold the offer back for a larger batch; None when it should run now.

    Waiting pays while the next larger bucket would still meet the earliest deadline, running the joiners
    together saves device time, and they are expected in time. When the lane would stand idle meanwhile the
    expected wait must also be shorter than the time saved. (Deferral: Symphony, arXiv 2308.07470, with the
    saving made explicit, because on a CPU batches often save nothing.)
    """
    spec = view.specs[offer.queue.model]
    if not offer.complete or offer.rows >= spec.max_batch or offer.due_at >= NEVER or rate_per_s <= 0:
        return None
    target = next(bucket for bucket in spec.row_buckets if bucket > offer.rows)
    n_missing = target - offer.rows
    larger = Variant(offer.variant.model, target, offer.variant.axes)
    rest = spec.bucket(n_missing, offer.variant.axes)
    solo = view.predictor.solo(larger, view.at)
    until = offer.due_at - solo[-1] - view.lateness_ns
    expected_wait_ns = n_missing / rate_per_s * 1e9
    saved_ns = offer.median_ns + view.median(rest) - solo[0]
    if until <= view.at or expected_wait_ns > until - view.at or saved_ns <= 0:
        return None
    if lane_would_idle and expected_wait_ns > saved_ns:
        return None
    newest_at = max(request.arrived_at for request in offer.requests)
    until = min(until, newest_at + int(MOST_WAITS * expected_wait_ns))
    return until if until > view.at else None


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """A batch that waits: its earliest deadline, median span (ns), number of requests, model and class."""

    due_at: int
    span_ns: int
    n: int
    model: str
    job_class: JobClass


def chunks(view: View, queue: DeadlineQueue, most: int) -> list[Chunk]:
    """The queue cut into the batches of at most `most` rows that it would run as, in order."""
    spec = view.specs[queue.model]
    result: list[Chunk] = []
    axes: Axes = ()
    rows, n, due_at = 0, 0, NEVER

    def cut() -> None:
        span = view.median(spec.bucket(rows, axes))
        result.append(Chunk(due_at, span, n, queue.model, queue.job_class))

    for request in queue:
        if rows and rows + request.rows > most:
            cut()
            rows = n = 0
        if rows == 0:
            due_at, axes = due(request), request.axes
        rows += request.rows
        n += 1
        axes = max(axes, request.axes)
    cut()
    return result


def paying_rows(view: View, spec: ModelSpec, axes: Axes) -> int:
    """The largest row bucket that a full queue would run as, deadlines aside."""
    most, cheapest = 0, 0.0
    for bucket in spec.row_buckets:
        per_row = view.median(Variant(spec.name, bucket, axes)) / bucket
        if not most or per_row <= PAYS * cheapest:
            most, cheapest = bucket, per_row
    return most

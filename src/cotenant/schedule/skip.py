"""Passing over the most urgent requests of a queue where that lets more of the others be served in time.

In a burst the earliest deadline can leave room for a small batch only, which costs more per request than a
large one; then it may pay to begin with a later request. Nobody is dropped for it: who is passed over keeps
waiting. (Nexus, SOSP 2019, drops heads for a planned batch size; here the size is found by looking ahead.)
"""

from __future__ import annotations

from collections.abc import Sequence

from cotenant.domain import Variant
from cotenant.schedule.plan import PAYS, Offer, span_to_fit
from cotenant.schedule.queue import NEVER, due
from cotenant.schedule.view import View

LOOKED_AT = 40
"""Requests of a queue that are looked at."""
MOST_SKIPPED = 8

Bucket = tuple[int, int, int]
"""Rows, median span, span that must fit (ns)."""


def worth_skipping(view: View, offer: Offer) -> Offer:
    """`offer`, or the batch that begins later in its queue where more deadlines are then met, each batch
    after the other on the whole device. Only for requests of one row and one shape."""
    queue, spec = offer.queue, view.specs[offer.queue.model]
    if offer.complete or offer.rows >= spec.max_batch or offer.due_at >= NEVER:
        return offer
    requests = [request for request, _ in zip(queue, range(LOOKED_AT), strict=False)]
    axes = requests[0].axes
    if any(request.rows != 1 or request.axes != axes for request in requests):
        return offer
    dues = [due(request) for request in requests]
    buckets: list[Bucket] = []
    for rows in spec.row_buckets:
        solo = view.predictor.solo(Variant(queue.model, rows, axes), view.at)
        buckets.append((rows, solo[0], span_to_fit(view, solo, queue.job_class)))
    best, first, rows = -1, 0, 0
    for skipped in range(min(len(dues), MOST_SKIPPED + 1)):
        met, begin, n = look_ahead(dues, buckets, view.at, skipped)
        if met > best:
            best, first, rows = met, begin, n
    if first == 0 or rows == 0:
        return offer
    variant = Variant(queue.model, next(size for size in spec.row_buckets if size >= rows), axes)
    solo = view.predictor.solo(variant, view.at)
    return Offer(
        queue=queue,
        variant=variant,
        requests=requests[first : first + rows],
        rows=rows,
        due_at=dues[first],
        median_ns=solo[0],
        upper_ns=solo[-1],
    )


def look_ahead(dues: Sequence[int], buckets: Sequence[Bucket], at: int, begin: int) -> tuple[int, int, int]:
    """(deadlines met, where the first batch begins, its rows) when the queue with deadlines `dues` (ns,
    ascending) runs from `begin` on, one batch after the other from `at` on, each the largest that pays and
    meets its earliest deadline; whatever cannot make it is passed over."""
    met, first, first_rows = 0, begin, 0
    i, n = begin, len(dues)
    while i < n:
        taken, span = 0, 0
        for size, median, fits in buckets:
            rows = min(size, n - i)
            if at + fits > dues[i] or (taken and rows * span * PAYS < taken * median):
                break
            taken, span = rows, median
            if rows < size:
                break
        if not taken:
            i += 1
            continue
        if not first_rows:
            first, first_rows = i, taken
        met += taken
        at += span
        i += taken
    return met, first, first_rows

"""What a request really costs the device when work overlaps, and who is passed over when that is too much.

How this works. A batch that joins others delays the end of all work by less than it would take alone: that
difference is its *cost*, learned per row and model from the forecasts that dispatches were decided on. With
costs instead of solo spans the device is one resource that serves everything one after the other, and it can
be told in advance whether what waits will fit: in order of deadline, whenever something would be late the
request that costs most is passed over (Moore 1968, Hodgson's rule for the fewest late jobs), of equal ones
the most urgent. So in a burst a queue is not served from its head, where no slack is left to overlap with
anything, but from where there is enough of it. Nobody is dropped for it: who is passed over is served when
nobody behind it can be.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush

from cotenant.domain import JobClass
from cotenant.schedule.queue import NEVER, due
from cotenant.schedule.view import View

RATE = 0.05
"""Weight of the newest dispatch in what is learned of its model."""

Waiting = tuple[int, JobClass, float, str | None]
"""Due at (ns), class, cost (ns), and the request's id; None: work in flight, which nobody can pass over."""


@dataclass(slots=True)
class Packing:
    """Learned costs. One per policy instance."""

    _row_ns: dict[str, float] = field(default_factory=dict)

    def row_ns(self, view: View, model: str) -> float:
        """Device time (ns) that a row of the model costs; before anything is known, as in its best batch."""
        found = self._row_ns.get(model)
        if found is None:
            found = min(view.median(variant) / variant.rows for variant in view.specs[model].variants())
            self._row_ns[model] = found
        return found

    def learn(self, view: View, model: str, rows: int, cost_ns: float) -> None:
        """A batch of `rows` rows is expected to delay the end of all work by `cost_ns`."""
        known = self.row_ns(view, model)
        self._row_ns[model] = known + RATE * (max(0.0, cost_ns) / rows - known)

    def passed_over(self, view: View, ends: Mapping[int, int]) -> Collection[str]:
        """Ids of waiting requests that are not worth serving now. `ends`: when dispatches in flight will end
        (ns) by id; of others the last prediction holds. Best-effort work costs nothing: it can be stopped."""
        queues = [queue for queue in view.waiting() if queue.head_due < NEVER]
        if not queues:
            return ()
        at = view.at
        total_ns = sum(queue.rows * self.row_ns(view, queue.model) for queue in queues)
        left = {
            flight.dispatch.id: max(0, ends.get(flight.dispatch.id, flight.predictions[-1].finish_at[0]) - at)
            for flight in view.flights.values()
            if flight.job_class is not JobClass.BEST_EFFORT
        }
        last = max(left.values(), default=0)
        if at + last + total_ns <= min(queue.head_due for queue in queues):
            return ()
        # what is in flight ends together at `last`: each of it costs its share of that
        all_left = max(1, sum(left.values()))
        waiting: list[Waiting] = [
            (view.flights[i].due_at, view.flights[i].job_class, last * ns / all_left, None)
            for i, ns in left.items()
        ]
        for queue in queues:
            row_ns = self.row_ns(view, queue.model)
            for request in queue:
                due_at = due(request)
                if due_at >= NEVER:
                    break
                waiting.append((due_at, request.job_class, row_ns * request.rows, request.id))
        return fewest_late(at, waiting)


def fewest_late(at: float, waiting: list[Waiting]) -> set[str]:
    """Ids to pass over so that the fewest of the others are late when all run one after the other from `at`
    (ns) on: less important classes first, then the dearest, then the earliest due."""
    over: set[str] = set()
    kept: list[tuple[int, float, int, str]] = []
    for due_at, job_class, cost, request_id in sorted(waiting, key=lambda each: (each[0], each[3] or "")):
        at += cost
        if request_id is not None:
            heappush(kept, (-job_class, -cost, due_at, request_id))
        if at > due_at and kept:
            _, minus_cost, _, given_up = heappop(kept)
            at += minus_cost
            over.add(given_up)
    return over

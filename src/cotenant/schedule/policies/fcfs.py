"""First come, first served: k instances per model, work-conserving, batching whatever waits.

Choose it to see what common servers do. Fails under overload: it knows no deadline, so every queue grows
until all of it is late.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from cotenant.domain import Request, Variant
from cotenant.schedule.admission import Verdict, admit_all
from cotenant.schedule.plan import Choice, Offer, Plan, members
from cotenant.schedule.queue import NEVER
from cotenant.schedule.view import View


@dataclass(slots=True, kw_only=True)
class Fcfs:
    """`k`: instances per model, that is dispatches of one model that may run at once."""

    k: int = 2
    name: str = "fcfs"
    fifo: bool = True
    resumes: bool = False
    plans_alone: bool = False

    def admit(self, view: View, request: Request) -> Verdict:
        """Everything may wait."""
        return admit_all(view, request)

    def plan(self, view: View) -> Plan:
        """The queue whose head came first and whose model has an instance free, on the first idle lane."""
        lane = next((lane for lane in view.lanes if lane.idle), None)
        if lane is None:
            return Plan()
        running = Counter(flight.dispatch.variant.model for flight in view.flights.values())
        ready = [queue for queue in view.waiting() if running[queue.model] < self.k]
        if not ready:
            return Plan()
        queue = min(ready, key=lambda queue: next(iter(queue)).arrived_at)
        spec = view.specs[queue.model]
        requests = members(view, queue, spec.max_batch)
        rows = sum(request.rows for request in requests)
        offer = Offer(
            queue=queue,
            variant=Variant(queue.model, spec.bucket(rows).rows, requests[0].axes),
            requests=requests,
            rows=rows,
            due_at=NEVER,
            median_ns=0,
            upper_ns=0,
        )
        return Plan(choice=Choice(offer=offer, lane=lane.info.index, why="first come"))

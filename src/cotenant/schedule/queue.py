"""Requests of one model that wait, in deadline order."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Sequence

from cotenant.domain import NS_PER_S, JobClass, Request

NEVER = 1 << 62
"""Stands for "no deadline": later than any instant."""

PATIENCE_NS = 10 * NS_PER_S
"""Requests without a deadline wait no longer than this before a batch of them is ranked first."""


def due(request: Request) -> int:
    """By when the request must have run for its answer to come in time, `NEVER` when it has no deadline."""
    return NEVER if request.deadline_at is None else request.deadline_at - request.answer_ns


class DeadlineQueue:
    """Requests of one model ordered by (deadline, arrival order). `version` grows with every change.

    With `fifo` the order is that of arrival and deadlines are ignored, as common servers do. `turned` is told
    when the queue begins to hold something and when it no longer does."""

    def __init__(
        self, model: str, *, fifo: bool = False, turned: Callable[[DeadlineQueue], None] | None = None
    ) -> None:
        self.model = model
        self.fifo = fifo
        self._turned = turned
        self.version = 0
        self.rows = 0
        self.head_due = NEVER
        """Earliest deadline in the queue, `NEVER` when empty or first-come-first-served."""
        self.job_class = JobClass.BEST_EFFORT
        """The most important class that waits here."""
        self.n_patient = 0
        """Requests without a deadline."""
        self.waiting_since = 0
        """Since when (ns) some of those wait without any of them having been taken."""
        self._seq = 0
        self._entries: list[tuple[int, int, Request]] = []
        self._keys: dict[str, tuple[int, int]] = {}
        self._per_class: dict[JobClass, int] = dict.fromkeys(JobClass, 0)

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Request]:
        return (entry[2] for entry in self._entries)

    def push(self, request: Request) -> None:
        """Add a request; its id must not wait here already."""
        key = (request.arrived_at if self.fifo else due(request), self._seq)
        self._seq += 1
        assert request.id not in self._keys, f"request {request.id} is queued twice"
        self._keys[request.id] = key
        insort(self._entries, (*key, request), key=lambda entry: entry[:2])
        if request.deadline_at is None:
            if not self.n_patient:
                self.waiting_since = request.arrived_at
            self.n_patient += 1
        self._changed(request, 1)

    def taken(self, requests: Sequence[Request], at: int) -> None:
        """Take out requests, all of which wait here, because they are served from `at` (ns) on."""
        for request in requests:
            self.remove(request.id)
            if request.deadline_at is None:
                self.waiting_since = at

    def aged(self, at: int) -> bool:
        """Whether requests without a deadline have waited too long with none of them taken. Then one batch of
        them is ranked before other work, save that of protected models: once in `PATIENCE_NS`."""
        return self.n_patient > 0 and at - self.waiting_since >= PATIENCE_NS

    def with_deadline(self) -> set[str]:
        """Ids of the requests that have a deadline."""
        return {entry[2].id for entry in self._entries if entry[2].deadline_at is not None}

    def remove(self, request_id: str) -> Request | None:
        """Take one request out of the middle; None when it does not wait here."""
        key = self._keys.pop(request_id, None)
        if key is None:
            return None
        index = bisect_left(self._entries, key, key=lambda entry: entry[:2])
        request = self._entries.pop(index)[2]
        self.n_patient -= request.deadline_at is None
        self._changed(request, -1)
        return request

    def expire(self, before: int) -> list[Request]:
        """Take out every request whose deadline is earlier than `before`."""
        if self.head_due >= before:
            return []
        n = bisect_left(self._entries, (before, -1), key=lambda entry: entry[:2])
        gone = [entry[2] for entry in self._entries[:n]]
        del self._entries[:n]
        for request in gone:
            del self._keys[request.id]
            self._changed(request, -1)
        return gone

    def _changed(self, request: Request, sign: int) -> None:
        self.version += 1
        rows_before, self.rows = self.rows, self.rows + sign * request.rows
        if self._turned is not None and (not rows_before or not self.rows):
            self._turned(self)
        self._per_class[request.job_class] += sign
        self.head_due = self._entries[0][0] if self._entries and not self.fifo else NEVER
        if sign > 0:
            self.job_class = min(self.job_class, request.job_class)
        elif not self._per_class[self.job_class]:
            waiting = [job_class for job_class, count in self._per_class.items() if count]
            self.job_class = min(waiting, default=JobClass.BEST_EFFORT)

"""Jobs that were turned down a moment ago: nothing is asked twice while nothing has changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from cotenant.domain import NS_PER_MS
from cotenant.schedule.jobs import Job
from cotenant.schedule.queue import NEVER, DeadlineQueue
from cotenant.schedule.view import View

RETRY_NS = NS_PER_MS
"""A job that was turned down is tried again after this time (ns), or when anything has begun or ended."""

Key = tuple[str | int, bool]


@dataclass(slots=True)
class TurnedDown:
    """One per policy instance. `wake_at`: what was to be waited for when all were turned down last (ns)."""

    wake_at: int | None = None
    _jobs: dict[Key, tuple[int, int]] = field(default_factory=dict)
    """Version of the queue, and when to try again (ns)."""
    _turn: int = -1
    """When something last began or ended."""
    _queues: Sequence[DeadlineQueue] = ()
    _versions: Sequence[int] = ()
    _retry_at: int = 0

    def nothing_new(self, view: View) -> bool:
        """Whether all were turned down, and the same is in flight, the same waits, and no time has come."""
        return (
            view.turn == self._turn
            and view.at < self._retry_at
            and (self.wake_at is None or view.at < self.wake_at)
            and view.waiting() is self._queues
            and [queue.version for queue in self._queues] == self._versions
        )

    def waits(self, view: View, job: Job) -> bool:
        """Whether the job was turned down a moment ago and nothing has changed since."""
        if view.turn != self._turn:
            self._turn = view.turn
            self._jobs.clear()
        version, retry_at = self._jobs.get(_key(job), (-1, 0))
        return version == _version(job) and view.at < retry_at

    def add(self, view: View, job: Job) -> None:
        """The job does not start now. One that cannot be put off for long is tried again when it must be."""
        retry_at = view.at + RETRY_NS
        if view.at < job.latest_start_at < NEVER:
            retry_at = max(retry_at, job.latest_start_at)
        self._jobs[_key(job)] = (_version(job), retry_at)

    def all_of(self, view: View, jobs: Sequence[Job]) -> int | None:
        """None of the jobs, one at least, starts now; returns when the next of them becomes urgent (ns)."""
        self._queues = view.waiting()
        self._versions = [queue.version for queue in self._queues]
        self._retry_at = min([self._jobs.get(_key(job), (0, 0))[1] for job in jobs])
        urgent_at = [job.latest_start_at for job in jobs if view.at < job.latest_start_at < NEVER]
        self.wake_at = min(urgent_at, default=None)
        return self.wake_at


def _key(job: Job) -> Key:
    return (job.variant.model if job.stopped is None else job.stopped.dispatch.id, job.aged)


def _version(job: Job) -> int:
    return 0 if job.offer is None else job.offer.queue.version

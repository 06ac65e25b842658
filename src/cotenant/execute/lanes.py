"""Lanes on a CPU: which cores each has, and the thread that runs its work."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Generic, TypeVar

from cotenant.cores import LANE_NICENESS, pinned, yield_to_others
from cotenant.ports import LaneInfo

Work = TypeVar("Work")


def lane_layout(n_lanes: int, n_cores: int) -> tuple[LaneInfo, ...]:
    """Share `n_cores` out to lanes as evenly as whole cores allow. With more lanes than cores, lane i has
    core i % n_cores. Units count from 0 within the cores available to the process."""
    if n_lanes < 1 or n_cores < 1:
        raise ValueError(f"{n_lanes} lanes on {n_cores} cores: expected at least one of each")
    if n_lanes > n_cores:
        return tuple(LaneInfo(index=i, units=(i % n_cores,)) for i in range(n_lanes))
    bounds = [i * n_cores // n_lanes for i in range(n_lanes + 1)]
    return tuple(LaneInfo(index=i, units=tuple(range(bounds[i], bounds[i + 1]))) for i in range(n_lanes))


@dataclass(eq=False)
class LaneThread(Generic[Work]):
    """A thread on its own cores that does one piece of work after another until told to stop.

    A thread that does not come back is abandoned: it ends by itself after its current work, if ever.
    """

    name: str
    cores: frozenset[int]
    do: Callable[[LaneThread[Work], Work], None]
    ready: Callable[[], None] | None = None
    """Called in the thread before the first work."""
    niceness: int = LANE_NICENESS
    abandoned: bool = False
    _queue: SimpleQueue[Work | None] = field(default_factory=SimpleQueue)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread; returns at once."""
        self._thread = threading.Thread(target=self._loop, name=self.name, daemon=True)
        self._thread.start()

    def put(self, work: Work) -> None:
        """Hand over work; returns at once."""
        self._queue.put(work)

    def stop(self) -> None:
        """End after the work already handed over; returns at once."""
        self._queue.put(None)

    def join(self, timeout_s: float) -> None:
        """Wait for the end, at most `timeout_s`."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout_s)

    def _loop(self) -> None:
        yield_to_others(self.niceness)
        with pinned(self.cores):
            if self.ready is not None:
                self.ready()
            while not self.abandoned:
                work = self._queue.get()
                if work is None:
                    return
                self.do(self, work)
                del work

"""Lanes on a CPU: which cores each has, and the thread that runs its work."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Generic, TypeVar

from cotenant.ports import LaneInfo

Work = TypeVar("Work")
PR_SET_TIMERSLACK = 29
LANE_NICENESS = 5
"""Nice value of lane threads (0 is that of everything else)."""


def available_cores() -> tuple[int, ...]:
    """Numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def lane_layout(n_lanes: int, n_cores: int) -> tuple[LaneInfo, ...]:
    """Share `n_cores` out to lanes as evenly as whole cores allow. With more lanes than cores, lane i has
    core i % n_cores. Units count from 0 within the cores available to the process."""
    if n_lanes < 1 or n_cores < 1:
        raise ValueError(f"{n_lanes} lanes on {n_cores} cores: expected at least one of each")
    if n_lanes > n_cores:
        return tuple(LaneInfo(index=i, units=(i % n_cores,)) for i in range(n_lanes))
    bounds = [i * n_cores // n_lanes for i in range(n_lanes + 1)]
    return tuple(LaneInfo(index=i, units=tuple(range(bounds[i], bounds[i + 1]))) for i in range(n_lanes))


def core_numbers(units: Sequence[int], cores: Sequence[int]) -> frozenset[int]:
    """The machine's numbers of a lane's units."""
    return frozenset(cores[unit % len(cores)] for unit in units)


@contextmanager
def pinned(cores: frozenset[int]) -> Iterator[None]:
    """Keep the calling thread, and every thread it starts meanwhile, on `cores`. Where the platform cannot
    pin threads nothing happens."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, cores)
    except OSError:  # cores were taken from the process meanwhile
        yield
        return
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def yield_to_others() -> None:
    """Give the calling thread a lower priority than the threads that decide and answer. They need little
    time but need it at once; a lane that ran level with them would keep them waiting for whole milliseconds.
    Linux alone has priorities per thread; elsewhere nothing happens."""
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LANE_NICENESS)


def wake_promptly() -> None:
    """Let the calling thread's timed waits end on time: by default Linux lets each last some 50 us longer, to
    wake several threads at once. Elsewhere nothing happens."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)


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
        yield_to_others()
        with pinned(self.cores):
            if self.ready is not None:
                self.ready()
            while not self.abandoned:
                work = self._queue.get()
                if work is None:
                    return
                self.do(self, work)
                del work

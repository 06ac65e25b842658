"""Cores of the host CPU: which there are, and threads that stay on some of them."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

PR_SET_TIMERSLACK = 29
LANE_NICENESS = 10
"""Nice value of lane threads (0 is that of everything else)."""
MAINTENANCE_NICENESS = 19
"""Of the thread that loads models beside lanes that serve. Not idle priority: it needs the interpreter now
and then, and who holds that must get to let it go."""


def available_cores() -> tuple[int, ...]:
    """Numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


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


def yield_to_others(niceness: int = LANE_NICENESS) -> None:
    """Give the calling thread a lower priority than the threads that decide and answer. They need little
    time but need it at once; a lane that ran level with them would keep them waiting for whole milliseconds.
    Linux alone has priorities per thread; elsewhere nothing happens."""
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)


def wake_promptly() -> None:
    """Let the calling thread's timed waits end on time: by default Linux lets each last some 50 us longer, to
    wake several threads at once. Elsewhere nothing happens."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)

"""Clocks: the only module that imports `time`."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """A source of monotonic instants in integer nanoseconds. Never blocks."""

    def now(self) -> int:
        """The current instant, in nanoseconds from an arbitrary origin."""
        ...


class MonotonicClock:
    """The machine's monotonic clock."""

    now = staticmethod(time.monotonic_ns)


class VirtualClock:
    """A clock that stands still until it is advanced: simulation and unit tests."""

    def __init__(self, at: int = 0) -> None:
        self._at = at

    def now(self) -> int:
        """The instant last advanced to."""
        return self._at

    def advance_to(self, at: int) -> None:
        """Move forward to `at`; a clock never runs backwards."""
        if at < self._at:
            raise ValueError(f"the clock stands at {self._at} ns and cannot go back to {at} ns")
        self._at = at


def wall_time_s() -> float:
    """Seconds since the Unix epoch, for labels and records only; decisions use a `Clock`."""
    return time.time()


def wall_date() -> str:
    """The local date and time, `20261123-170507`, for names of files."""
    return time.strftime("%Y%m%d-%H%M%S")


def sleep(seconds: float) -> None:
    """Block the calling thread; for measurement and load generation, never on a decision path."""
    time.sleep(seconds)


def process_cpu_s() -> float:
    """CPU seconds (user + system) of this process so far."""
    return time.process_time()


def thread_cpu_ns() -> int:
    """CPU time of the calling thread so far (ns)."""
    return time.thread_time_ns()

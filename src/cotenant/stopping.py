"""Being told to stop by a signal: in order first, at once when told again."""

from __future__ import annotations

import asyncio
import signal
from contextlib import suppress

from cotenant.clock import MonotonicClock
from cotenant.domain import NS_PER_MS

SAME_NS = 500 * NS_PER_MS
"""Signals that come so close together (ns) say the same thing: a terminal, a shell and a service manager may
all pass on one request to stop."""


class StopSignals:
    """SIGTERM and SIGINT, from now on, on the running loop; or an event, and then signals are left alone."""

    def __init__(self, told: asyncio.Event | None = None) -> None:
        self.told = told or asyncio.Event()
        """Stop, what was admitted first."""
        self.at_once = asyncio.Event()
        """Stop now."""
        self._told_at = 0
        if told is not None:
            return
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            with suppress(NotImplementedError):
                loop.add_signal_handler(number, self._signalled)

    def _signalled(self) -> None:
        now = MonotonicClock.now()
        if not self.told.is_set():
            self._told_at = now
            self.told.set()
        elif now - self._told_at >= SAME_NS:
            self.at_once.set()

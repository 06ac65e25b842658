"""Driving lanes for measurements: waiting for what other threads report."""

from __future__ import annotations

import threading
from queue import SimpleQueue
from typing import Any

from cotenant.clock import MonotonicClock, VirtualClock
from cotenant.domain import Progress
from cotenant.execute.fake import FakeExecutor, FakeScript
from cotenant.execute.lanes import lane_layout
from cotenant.profile.drive_lanes import LaneDriver
from cotenant.simulate.driver import VirtualTimers

N = 100_000
SHORTEST_NS = (200, 1_000, 10_000, 50_000)
PATIENCE_S = 120.0


def test_a_wait_that_runs_out_as_something_is_reported_ends() -> None:
    clock = MonotonicClock()
    driver = LaneDriver(
        FakeExecutor(lane_layout(1, 1), VirtualTimers(VirtualClock()), FakeScript(durations=lambda _: 1)),
        clock,
    )
    asked: SimpleQueue[Any] = SimpleQueue()

    def report() -> None:
        while (n := asked.get()) is not None:
            driver.post(Progress(n, 0, 0))  # of no run of the driver's: it goes on waiting

    def wait() -> None:
        for n in range(N):
            asked.put(n)
            driver.poll(clock.now() + SHORTEST_NS[n % len(SHORTEST_NS)])
        asked.put(None)

    threading.Thread(target=report, daemon=True).start()
    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    waiting.join(PATIENCE_S)
    assert not waiting.is_alive()

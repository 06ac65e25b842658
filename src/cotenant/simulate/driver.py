"""The discrete-event driver: the same scheduler, the same actions, virtual time.

Events are taken in order of (time, kind, sequence): whatever the device reports first, then arrivals, then
the scheduler's own wake-up (`domain.EVENT_ORDER`).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence

from cotenant.clock import Clock, VirtualClock
from cotenant.domain import Action, Arrival, Cancel, Dispatch, Event, Observe, Outcome, Request, Wakeup
from cotenant.drive import Drive, Log, take_profiles
from cotenant.ports import Executor, Learner, Observer
from cotenant.schedule.queue import NEVER
from cotenant.schedule.scheduler import Scheduler


class VirtualTimers:
    """Implements `Timers` on a heap of virtual instants."""

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._n = 0
        self._off: set[int] = set()

    def now(self) -> int:
        return self._clock.now()

    def call_at(self, at: int, callback: Callable[[], None]) -> Callable[[], None]:
        self._n += 1
        key = self._n
        heapq.heappush(self._heap, (max(at, self._clock.now()), key, callback))
        return lambda: self._off.add(key)

    def next_at(self) -> int:
        """Instant of the next callback, `NEVER` when there is none."""
        while self._heap and self._heap[0][1] in self._off:
            self._off.discard(heapq.heappop(self._heap)[1])
        return self._heap[0][0] if self._heap else NEVER

    def run_next(self) -> None:
        """Run the next callback; the clock must stand at its instant."""
        heapq.heappop(self._heap)[2]()


class Simulation:
    """Drives a scheduler through virtual time until everything offered has ended."""

    def __init__(
        self,
        *,
        scheduler: Scheduler,
        executor: Executor,
        learner: Learner,
        clock: VirtualClock,
        timers: VirtualTimers,
        on_settled: Callable[[Outcome], None],
        observers: Sequence[Observer] = (),
        log: Log | None = None,
        stopwatch: Clock | None = None,
        on_dispatched: Callable[[Dispatch], None] | None = None,
    ) -> None:
        self._clock = clock
        self._timers = timers
        self._scheduler = scheduler
        self.drive = Drive(
            scheduler=scheduler,
            executor=executor,
            learner=learner,
            clock=clock,
            on_settled=on_settled,
            on_dispatched=on_dispatched,
            observers=observers,
            log=log,
            stopwatch=stopwatch,
        )
        executor.attach(self.drive.post)

    def run(
        self,
        requests: Iterable[Request],
        *,
        cancels: Iterable[tuple[int, str]] = (),
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Offer `requests` (in order of `arrived_at`) and go on until nothing is left to happen.

        `cancels`: (instant, request id), in order. `progress(n)` is told every 1,000 arrivals.
        """
        arrivals, gone = iter(requests), iter(cancels)
        request, cancel = next(arrivals, None), next(gone, None)
        n = 0
        while True:
            device_at = self._timers.next_at()
            cancel_at = NEVER if cancel is None else cancel[0]
            arrival_at = NEVER if request is None else request.arrived_at
            wake_at = self._scheduler.next_wakeup() or NEVER
            at = min(device_at, cancel_at, arrival_at, wake_at)
            if at >= NEVER:
                return
            self._clock.advance_to(max(at, self._clock.now()))
            if device_at == at:
                self._timers.run_next()
            elif cancel is not None and cancel_at == at:
                self.drive.post(Cancel(cancel[1]))
                cancel = next(gone, None)
            elif request is not None and arrival_at == at:
                self.drive.post(Arrival(request))
                request = next(arrivals, None)
                n += 1
                if progress is not None and n % 1000 == 0:
                    progress(n)
            else:
                self.drive.post(Wakeup())


def replay(
    scheduler: Scheduler, learner: Learner, entries: Iterable[tuple[Event, int]]
) -> Iterator[list[Action]]:
    """Feed logged events to a fresh scheduler, learning from what it observes; yields its actions per event.

    A log is faithful when these equal the logged actions.
    """
    for event, at in entries:
        take_profiles(learner, event)
        actions = scheduler.handle(event, at)
        yield actions
        for action in actions:
            if isinstance(action, Observe):
                learner.learn(action.observation)

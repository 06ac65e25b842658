"""What both drivers share: feed events to the scheduler, interpret its actions, learn, log.

`engine` calls this from an event loop with a real clock, `simulate` from a heap of virtual instants. Neither
decides anything, and the scheduler cannot tell them apart.

What a dispatch taught is learned before the next event is handled, but not before its answers are on their
way and the lane runs again: a live driver says when nothing more urgent is left to do (`later`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, assert_never

from cotenant.clock import Clock
from cotenant.domain import (
    Abort,
    Action,
    Dispatch,
    Event,
    Maintain,
    MaintenanceDone,
    ModelVersion,
    Observation,
    Observe,
    Outcome,
    Preempt,
    Progress,
    Settle,
)
from cotenant.ports import Executor, Learner, Observer, Tensors
from cotenant.schedule.scheduler import Scheduler


class Log(Protocol):
    """Where events and the actions they led to are written."""

    def record(self, event: Event, at: int, actions: Sequence[Action]) -> None:
        """Remember what happened; called on the deciding thread."""
        ...

    def close(self) -> None:
        """Write what is left. Idempotent."""
        ...


def take_profiles(learner: Learner, event: Event) -> None:
    """Before the scheduler hears of a newly loaded model, the learner does; also when a log is replayed."""
    if isinstance(event, MaintenanceDone) and event.spec is not None:
        learner.loaded(event.spec, event.profiles)


class Drive:
    """Interprets actions for one device. Not thread-safe: everything runs on the deciding thread.

    `payloads` maps request ids to their tensors (empty in simulation); `on_settled` is told every outcome.
    """

    def __init__(
        self,
        *,
        scheduler: Scheduler,
        executor: Executor,
        learner: Learner,
        clock: Clock,
        on_settled: Callable[[Outcome], None],
        on_maintained: Callable[[MaintenanceDone], None] | None = None,
        on_dispatched: Callable[[Dispatch], None] | None = None,
        observers: Sequence[Observer] = (),
        log: Log | None = None,
        payloads: Mapping[str, Tensors] | None = None,
        stopwatch: Clock | None = None,
        later: Callable[[], None] | None = None,
    ) -> None:
        """`later` is told that there is something to learn: have `learn` called soon, when what is more
        urgent is done. Without it that is at once."""
        self.scheduler = scheduler
        self._executor = executor
        self._learner = learner
        self._clock = clock
        self._on_settled = on_settled
        self._on_maintained = on_maintained
        self._on_dispatched = on_dispatched
        self._observers = tuple(observers)
        self._log = log
        self._payloads = payloads if payloads is not None else {}
        self._stopwatch = stopwatch
        self._later = later
        self._owed: deque[Observation] = deque()
        self._pending: deque[Event] = deque()
        self._running = False

    def post(self, event: Event) -> None:
        """Handle one event now, and every event that interpreting its actions brings about."""
        self._pending.append(event)
        if self._running:
            return
        self._running = True
        try:
            while self._pending:
                self._step(self._pending.popleft())
        finally:
            self._running = False

    def learn(self) -> None:
        """Learn now what is left to learn, and decide anew if something waits that it may change."""
        version = self._learn()
        if version is not None and self.scheduler.view.waiting():
            self.post(ModelVersion(version))  # where nothing waits it changes nothing

    def _step(self, event: Event) -> None:
        version = self._learn()
        if version is not None and isinstance(event, Progress) and self.scheduler.view.waiting():
            self._pending.append(ModelVersion(version))  # progress alone decides nothing anew
        at = max(self._clock.now(), self.scheduler.view.at)
        take_profiles(self._learner, event)
        began = self._stopwatch.now() if self._stopwatch else 0
        actions = self.scheduler.handle(event, at)
        if self._stopwatch:
            spent = self._stopwatch.now() - began
            for observer in self._observers:
                observer.decided(spent, at)
        if self._log is not None:
            self._log.record(event, at, actions)
        self._interpret(actions)
        if isinstance(event, MaintenanceDone) and self._on_maintained is not None:
            self._on_maintained(event)

    def _interpret(self, actions: Sequence[Action]) -> None:
        """Lanes start before answers are sent: an idle lane costs more than an answer that waits a little."""
        for action in actions:
            if isinstance(action, Dispatch):
                inputs = [self._payloads[r.id] for r in action.requests] if self._payloads else ()
                self._executor.start(action, inputs)
                if self._on_dispatched is not None:
                    self._on_dispatched(action)
        for action in actions:
            match action:
                case Dispatch():
                    pass
                case Settle(outcome):
                    for observer in self._observers:
                        observer.settled(outcome)
                    self._on_settled(outcome)
                case Observe(observation):
                    self._owed.append(observation)
                case Preempt(dispatch_id):
                    self._executor.preempt(dispatch_id)
                case Abort(dispatch_id, reason):
                    self._executor.abort(dispatch_id, reason)
                case Maintain():
                    self._executor.maintain(action)
                case _:
                    assert_never(action)
        if self._owed:
            if self._later is None:
                self.learn()
            else:
                self._later()

    def _learn(self) -> int | None:
        """Learn what is owed; the version of the predictor, if it is a new one."""
        version = None
        while self._owed:
            observation = self._owed.popleft()
            learned = self._learner.learn(observation)
            version = version if learned is None else learned
            for observer in self._observers:
                observer.observed(observation)
        return version

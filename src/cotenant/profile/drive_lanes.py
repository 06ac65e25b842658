"""Runs an executor synchronously, one dispatch per lane, for measurements. No scheduler is involved."""

from __future__ import annotations

from collections.abc import Callable
from queue import Empty, Queue

from cotenant.clock import Clock
from cotenant.domain import NS_PER_S, Completion, Dispatch, Event, ModelSpec, Prediction, Snapshot, Variant
from cotenant.ports import Executor, Tensors

HANG_S = 60.0
"""A run that takes longer is given up (s)."""

_NOBODY = Snapshot(at=0, in_flight=())
_UNKNOWN = Prediction(issued_at=0, finish_at=(0, 0, 0, 0, 0), slo_level=0.99, version=0, corunners=0)


class MeasureError(RuntimeError):
    """A run of a measurement failed; the message names the variant and the error."""


class LaneDriver:
    """Takes over an executor: attaches a sink of its own, so whoever serves with the executor afterwards
    must attach again. Dispatch ids are negative. Every method blocks.

    `pump` makes virtual time go on, one step per call; without it events are awaited in real time.
    """

    def __init__(self, executor: Executor, clock: Clock, pump: Callable[[], None] | None = None) -> None:
        self.executor = executor
        self.clock = clock
        self._pump = pump
        # not a SimpleQueue: in CPython 3.11 its `get` with a short timeout can wait for ever when a put from
        # another thread comes as the time runs out
        self._events: Queue[Event] = Queue()
        self._n = 0
        self._running: dict[int, Variant] = {}
        executor.attach(self.post)

    def post(self, event: Event) -> None:
        """Where the executor's events go; thread-safe."""
        self._events.put(event)

    def start(self, lane: int, spec: ModelSpec, variant: Variant, inputs: Tensors) -> Dispatch:
        """Start one run; its end comes out of `wait`."""
        self._n += 1
        dispatch = Dispatch(
            id=-self._n,
            variant=variant,
            requests=(),
            rows=variant.rows,
            lane=lane,
            share=1.0,
            decided_at=self.clock.now(),
            latest_start_at=None,
            first_segment=0,
            end_segment=spec.n_segments,
            prediction=_UNKNOWN,
            snapshot=_NOBODY,
            why="measurement",
        )
        self._running[dispatch.id] = variant
        self.executor.start(dispatch, [inputs])
        return dispatch

    def wait(self, variant: Variant) -> Completion:
        """The next completion on any lane. Raises MeasureError if that run failed or, naming `variant`, if
        none came for `HANG_S`; whatever else runs is then given up."""
        hangs_at = self.clock.now() + int(HANG_S * NS_PER_S)
        completion = self.poll(hangs_at)
        if completion is None:
            self._give_up()
            raise MeasureError(f"measuring {variant.label} failed: no end after {HANG_S:.0f} s")
        return completion

    def poll(self, until_at: int) -> Completion | None:
        """The next completion on any lane, or None when there was none by `until_at`. Raises MeasureError if
        the run failed; whatever else runs is then given up."""
        while (event := self._next(until_at)) is not None:
            if not isinstance(event, Completion):
                continue
            self.executor.take_results(event.dispatch_id)
            variant = self._running.pop(event.dispatch_id, None)
            if variant is None:
                continue
            if event.error is not None:
                self._give_up()
                raise MeasureError(f"measuring {variant.label} failed: {event.error}")
            return event
        return None

    @property
    def n_running(self) -> int:
        """Runs that were started and have not been seen to end."""
        return len(self._running)

    def run(self, spec: ModelSpec, variant: Variant, inputs: Tensors, lane: int = 0) -> Completion:
        """One run with nothing beside it."""
        dispatch = self.start(lane, spec, variant, inputs)
        while True:
            completion = self.wait(variant)
            if completion.dispatch_id == dispatch.id:
                return completion

    def _give_up(self) -> None:
        for dispatch_id in tuple(self._running):
            del self._running[dispatch_id]
            self.executor.abort(dispatch_id, "the measurement was given up")

    def _next(self, until_at: int) -> Event | None:
        """The next event; None when there was none by `until_at`."""
        if self._pump is not None:
            while self._events.empty():
                if self.clock.now() >= until_at:
                    return None
                self._pump()
            return self._events.get()
        left_s = (until_at - self.clock.now()) / NS_PER_S
        try:
            return self._events.get(timeout=left_s) if left_s > 0 else self._events.get_nowait()
        except Empty:
            return None

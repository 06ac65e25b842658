"""An executor that runs nothing: scripted durations on anybody's timers, in virtual or real time.

For tests of everything above the `Executor` port and for a live server without models. It can be told to
raise, to hang, to slow down from an instant on, to report segments, to stop at their boundaries, and to hold
staged dispatches, as a GPU's lanes do. Nothing here is random.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from cotenant.domain import (
    NS_PER_MS,
    Completion,
    Device,
    Dispatch,
    Event,
    Maintain,
    MaintenanceDone,
    ModelSpec,
    Progress,
    Started,
    Variant,
)
from cotenant.ports import LaneInfo, Sink, Tensors, Timers

Durations = Callable[[Dispatch], int] | Mapping[Variant, int]
"""Span (ns) of all segments of a dispatch's variant, alone and at normal speed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeScript:
    """What the fake device does. `raises(dispatch)` gives an error text, or None for a good run."""

    durations: Durations
    raises: Callable[[Dispatch], str | None] = lambda _: None
    hangs: Callable[[Dispatch], bool] = lambda _: False
    outputs: Callable[[Dispatch, Sequence[Tensors]], Sequence[Tensors]] | None = None
    n_segments: Mapping[str, int] = field(default_factory=dict)
    """Segments of equal length, by model; 1 where absent."""
    specs: Mapping[str, ModelSpec] = field(default_factory=dict)
    """What a finished load makes servable; any other name fails to load."""
    restart_ns: int = 100 * NS_PER_MS
    """From the loss of a lane to its restart."""
    maintenance_ns: int = 10 * NS_PER_MS
    """Span of a load or unload."""


@dataclass(slots=True, eq=False)
class _Run:
    dispatch: Dispatch
    inputs: Sequence[Tensors]
    started_at: int | None = None
    segment: int = 0
    segment_ended_at: list[int] = field(default_factory=list)
    call_off: Callable[[], None] | None = None
    stopping: bool = False


class FakeExecutor:
    """Implements the `Executor` port. Single-threaded: everything happens where `timers` calls back.

    Events are posted from timers, never from inside `start`.
    """

    def __init__(self, lanes: Sequence[LaneInfo], timers: Timers, script: FakeScript) -> None:
        self.lanes = tuple(lanes)
        self._timers = timers
        self._script = script
        self._queues: list[deque[_Run]] = [deque() for _ in self.lanes]
        self._lost: set[int] = set()
        self._factors: list[tuple[int, float]] = []
        self._results: dict[int, Sequence[Tensors]] = {}
        self._sink: Sink | None = None
        self._closed = False

    def slow_down(self, factor: float, at: int | None = None) -> None:
        """Make every segment that starts at `at` (default: now) or later take `factor` times its normal span,
        until the next such change; 1.0 is normal."""
        if factor <= 0:
            raise ValueError(f"the factor is {factor}; expected a positive number")
        self._factors.append((self._timers.now() if at is None else at, factor))
        self._factors.sort(key=lambda entry: entry[0])

    # --- Executor -------------------------------------------------------------------------------------

    def attach(self, sink: Sink) -> None:
        self._sink = sink

    def start(self, dispatch: Dispatch, inputs: Sequence[Tensors]) -> None:
        queue = self._queues[dispatch.lane]
        run = _Run(dispatch, inputs)
        queue.append(run)
        if dispatch.lane in self._lost:
            run.call_off = self._soon(lambda: self._refuse(run, "the lane is lost"))
        elif len(queue) == 1:
            self._begin(run)
        elif len(queue) > 1 + self.lanes[dispatch.lane].depth:
            raise AssertionError(f"lane {dispatch.lane} already holds {len(queue) - 1} dispatches")

    def preempt(self, dispatch_id: int) -> None:
        run = self._find(dispatch_id)
        if run is not None:
            run.stopping = True

    def abort(self, dispatch_id: int, reason: str) -> None:
        """A staged dispatch is withdrawn. A running one loses its lane until it restarts; what is staged
        behind it fails with it."""
        run = self._find(dispatch_id)
        if run is None:
            return
        queue = self._queues[run.dispatch.lane]
        if run is not queue[0]:
            queue.remove(run)
            self._end(run, error=f"withdrawn before it started: {reason}")
            return
        lane = run.dispatch.lane
        staged = list(queue)[1:]
        queue.clear()
        self._lost.add(lane)
        self._timers.call_at(self._timers.now() + self._script.restart_ns, lambda: self._restarted(lane))
        self._end(run, error=reason, lane_lost=True)
        for other in staged:
            self._end(other, error="withdrawn before it started: its lane was lost", lane_lost=True)

    def take_results(self, dispatch_id: int) -> Sequence[Tensors] | None:
        return self._results.pop(dispatch_id, None)

    def maintain(self, action: Maintain) -> None:
        spec = self._script.specs.get(action.model) if action.kind == "load" else None
        error = f"unknown model {action.model!r}" if action.kind == "load" and spec is None else None
        done = MaintenanceDone(
            maintenance_id=action.id, kind=action.kind, model=action.model, error=error, spec=spec
        )
        self._timers.call_at(self._timers.now() + self._script.maintenance_ns, lambda: self._post(done))

    def close(self) -> None:
        self._closed = True
        for queue in self._queues:
            for run in queue:
                if run.call_off is not None:
                    run.call_off()
            queue.clear()

    # --- runs -----------------------------------------------------------------------------------------

    def _begin(self, run: _Run) -> None:
        run.started_at = self._timers.now()
        run.segment = run.dispatch.first_segment
        if not self._script.hangs(run.dispatch):
            self._next_segment(run)

    def _next_segment(self, run: _Run) -> None:
        now = self._timers.now()
        factor = 1.0
        for since, value in self._factors:
            if since <= now:
                factor = value
        n_segments = self._script.n_segments.get(run.dispatch.variant.model, 1)
        span = max(1, int(self._duration(run.dispatch) * factor / n_segments))
        run.call_off = self._timers.call_at(now + span, lambda: self._boundary(run))

    def _duration(self, dispatch: Dispatch) -> int:
        durations = self._script.durations
        if isinstance(durations, Mapping):
            return durations[dispatch.variant]
        return durations(dispatch)

    def _boundary(self, run: _Run) -> None:
        run.segment += 1
        run.segment_ended_at.append(self._timers.now())
        error = self._script.raises(run.dispatch)
        if error is not None or run.segment >= run.dispatch.end_segment or run.stopping:
            self._finish(run, error)
            return
        self._next_segment(run)
        self._post(Progress(run.dispatch.id, run.segment, self._timers.now()))

    def _finish(self, run: _Run, error: str | None) -> None:
        """The running dispatch leaves its lane, and the staged one behind it starts."""
        queue = self._queues[run.dispatch.lane]
        queue.popleft()
        left = run.segment < run.dispatch.end_segment
        if error is None and not left and self._script.outputs is not None:
            self._results[run.dispatch.id] = self._script.outputs(run.dispatch, run.inputs)
        following = queue[0] if queue else None
        if following is not None:
            self._begin(following)
        self._end(run, error=error, next_segment=run.segment if left and error is None else None)
        if following is not None:
            self._post(Started(following.dispatch.id, self._timers.now()))

    def _refuse(self, run: _Run, error: str) -> None:
        self._queues[run.dispatch.lane].remove(run)
        self._end(run, error=error)

    def _end(
        self, run: _Run, *, error: str | None, lane_lost: bool = False, next_segment: int | None = None
    ) -> None:
        if run.call_off is not None:
            run.call_off()
        now = self._timers.now()
        self._post(
            Completion(
                dispatch_id=run.dispatch.id,
                lane=run.dispatch.lane,
                started_at=now if run.started_at is None else run.started_at,
                ended_at=now,
                segment_ended_at=tuple(run.segment_ended_at),
                next_segment=next_segment,
                error=error,
                lane_lost=lane_lost,
            )
        )

    # --- inside ---------------------------------------------------------------------------------------

    def _find(self, dispatch_id: int) -> _Run | None:
        return next((run for queue in self._queues for run in queue if run.dispatch.id == dispatch_id), None)

    def _soon(self, callback: Callable[[], None]) -> Callable[[], None]:
        return self._timers.call_at(self._timers.now(), callback)

    def _restarted(self, lane: int) -> None:
        self._lost.discard(lane)
        self._post(Device("restarted", lane))

    def _post(self, event: Event) -> None:
        assert self._sink is not None, "attach() first"
        if not self._closed:
            self._sink(event)

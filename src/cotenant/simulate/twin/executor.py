"""The twin behind the `Executor` port, on virtual time.

How this works. The device's state is brought up to the present whenever something starts or stops. Then a
copy runs ahead to the next end of a run (with `progress`, to the next boundary), one timer is set for that
instant, and when it comes the copy is the state: nothing is computed twice unless something intervenes.
`truth` answers what-if questions on copies too.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cotenant.domain import (
    Candidate,
    Completion,
    Device,
    Dispatch,
    Event,
    InFlight,
    Maintain,
    MaintenanceDone,
    ModelSpec,
    Progress,
    Started,
)
from cotenant.ports import LaneInfo, Sink, Tensors, Timers
from cotenant.simulate.twin.device import Noise, Programs, State
from cotenant.simulate.twin.what_if import HANDOVER_NS, Outlook, Planned, WhatIf

RESTART_NS = 100_000_000
"""From the loss of a lane to its restart."""


def twin_lanes(n_lanes: int) -> tuple[LaneInfo, ...]:
    """Lanes of a GPU: all on the same SMs, each with room for one staged dispatch."""
    return tuple(LaneInfo(index=i, units=(0,), depth=1) for i in range(n_lanes))


@dataclass(slots=True, eq=False)
class _Run:
    dispatch: Dispatch
    started_at: int | None = None
    ended_at: int = 0
    stopping: bool = False


class TwinDevice:
    """Implements the `Executor` port. Events are posted from timers, never from inside `start`.

    `specs`: what `maintain` can load. With `progress` every boundary is told, which costs."""

    def __init__(
        self,
        programs: Programs,
        timers: Timers,
        *,
        n_lanes: int = 8,
        seed: int = 0,
        noise: Noise | None = None,
        progress: bool = False,
        specs: Mapping[str, ModelSpec] | None = None,
    ) -> None:
        self.lanes = twin_lanes(n_lanes)
        self.programs = programs
        self.noise = noise or Noise()
        self._timers = timers
        self._progress = progress
        self._specs = dict(specs or {})
        self._state = State.idle(programs, n_lanes, self.noise, seed, timers.now())
        self._caught_up_at = -1
        self._ahead: tuple[State, int] | None = None
        self._outlook = Outlook()
        self._call_off: Callable[[], None] | None = None
        self._queues: list[deque[_Run]] = [deque() for _ in self.lanes]
        self._events: list[Event] = []
        self._ended: set[int] = set()
        self._lost: set[int] = set()
        self._n_started = 0
        self._posting = False
        self._sink: Sink | None = None
        self._closed = False

    @property
    def sm_busy_ns(self) -> float:
        """SM x ns in use so far."""
        return self._state.sm_ns

    def counters(self) -> tuple[float, float]:
        """As of now, since the beginning: SM x ns in use, and ns at full memory bandwidth."""
        self._catch_up()
        self._look_ahead()
        return self._state.sm_ns, self._state.moved_ns

    @property
    def n_sms(self) -> int:
        """SMs of the device."""
        return self.programs.spec.n_sms

    # --- Executor -------------------------------------------------------------------------------------

    def attach(self, sink: Sink) -> None:
        self._sink = sink

    def start(self, dispatch: Dispatch, inputs: Sequence[Tensors]) -> None:
        run, lane = _Run(dispatch), dispatch.lane
        queue = self._queues[lane]
        error = self._refusal(dispatch)
        if error is not None:
            self._later(self._completion(run, error=error))
            return
        if len(queue) > self.lanes[lane].depth:
            raise AssertionError(f"lane {lane} already holds {len(queue)} dispatches")
        self._catch_up()
        queue.append(run)
        if len(queue) == 1:
            self._begin(run, HANDOVER_NS)
        self._look_ahead()

    def preempt(self, dispatch_id: int) -> None:
        self._catch_up()
        run = self._find(dispatch_id)
        if run is not None:
            run.stopping = True
            if self._running(run):
                self._ahead = None
                self._state.stop_at_boundary(run.dispatch.lane)
        self._look_ahead()

    def abort(self, dispatch_id: int, reason: str) -> None:
        """A staged dispatch is withdrawn. A running one loses its lane until it restarts; what is staged
        behind it fails with it."""
        self._catch_up()
        run = self._find(dispatch_id)
        if run is None:
            self._look_ahead()
            return
        lane, queue = run.dispatch.lane, self._queues[run.dispatch.lane]
        if not self._running(run):
            queue.remove(run)
            self._later(self._completion(run, error=f"withdrawn before it started: {reason}"))
            self._look_ahead()
            return
        self._ahead = None
        self._state.drop(lane)
        self._lost.add(lane)
        _, *staged = queue
        queue.clear()
        self._later(self._completion(run, error=reason, lane_lost=True))
        for other in staged:
            error = "withdrawn before it started: its lane was lost"
            self._later(self._completion(other, error=error, lane_lost=True))
        self._timers.call_at(self._timers.now() + RESTART_NS, lambda: self._restarted(lane))
        self._look_ahead()

    def take_results(self, dispatch_id: int) -> Sequence[Tensors] | None:
        return None

    def maintain(self, action: Maintain) -> None:
        spec = self._specs.get(action.model) if action.kind == "load" else None
        error = f"unknown model {action.model!r}" if action.kind == "load" and spec is None else None
        self._later(
            MaintenanceDone(
                maintenance_id=action.id, kind=action.kind, model=action.model, error=error, spec=spec
            )
        )

    def close(self) -> None:
        self._closed = True
        self._stop_timer()
        for queue in self._queues:
            queue.clear()

    def truth(self, candidates: Sequence[Candidate], in_flight: Sequence[InFlight] | None = None) -> WhatIf:
        """Expected ends, from what is really going on: see `WhatIf`. `in_flight` are the dispatches that are
        to be counted: also those that have been decided and not been handed over yet; one that is left out
        stops at its next boundary. None: those that have been handed over. Changes nothing."""
        self._catch_up()
        self._look_ahead()
        lines: list[list[Planned]] = [[] for _ in self.lanes]
        known, stopping = set(self._ended), list[int]()
        counted = None if in_flight is None else {flight.dispatch_id for flight in in_flight}
        for lane, queue in enumerate(self._queues):
            for run in queue:
                d = run.dispatch
                known.add(d.id)
                if counted is not None and d.id not in counted:
                    if not self._running(run):
                        continue
                    stopping.append(lane)
                lines[lane].append(Planned(d.id, d.variant, d.first_segment, d.end_segment))
        for flight in in_flight or ():
            if flight.dispatch_id not in known:
                lines[flight.lane].append(
                    Planned(flight.dispatch_id, flight.variant, flight.segment, flight.end_segment)
                )
        return self._outlook.ask(self._state, lines, self._ended, candidates, stopping)

    # --- runs -----------------------------------------------------------------------------------------

    def _refusal(self, dispatch: Dispatch) -> str | None:
        program = self.programs.of.get(dispatch.variant)
        if program is None:
            return f"nothing is known of {dispatch.variant.label} on this device"
        if dispatch.lane in self._lost:
            return "the lane is lost"
        if not 0 <= dispatch.first_segment < dispatch.end_segment <= len(program.ends):
            return (
                f"{dispatch.variant.label} has {len(program.ends)} segments, not "
                f"[{dispatch.first_segment}, {dispatch.end_segment})"
            )
        return None

    def _begin(self, run: _Run, after_ns: int) -> None:
        """The run is the next of its lane: its first kernel arrives `after_ns` from now."""
        d, self._ahead = run.dispatch, None
        run.started_at = math.ceil(self._state.now) + after_ns
        self._n_started += 1
        program = self.programs.of[d.variant]
        self._state.begin(d.lane, program, self._n_started, d.first_segment, d.end_segment, after_ns)
        if run.stopping:
            self._state.stop_at_boundary(d.lane)

    def _catch_up(self) -> None:
        """Bring the state to the present. Ends on the way are told by a timer."""
        now = self._timers.now()
        if now == self._caught_up_at:
            return
        self._caught_up_at, self._ahead = now, None
        while (code := self._state.advance(float(now), self._progress)) >= 0:
            self._passed(code)

    def _passed(self, code: int) -> None:
        """A run has ended, or passed a boundary."""
        n_lanes = len(self.lanes)
        queue = self._queues[code % n_lanes]
        run, at = queue[0], math.ceil(self._state.now)
        if code >= n_lanes:
            self._events.append(Progress(run.dispatch.id, self._state.segment(code - n_lanes), at))
            return
        queue.popleft()
        run.ended_at = at
        self._ended.add(run.dispatch.id)
        segment = self._state.segment(code)
        left = segment < run.dispatch.end_segment
        self._events.append(self._completion(run, next_segment=segment if left else None))
        if queue:
            self._begin(queue[0], round(self.programs.spec.launch_gap_ns))
            self._events.append(Started(queue[0].dispatch.id, queue[0].started_at or at))

    def _look_ahead(self) -> None:
        """Set the timer for the next thing that will happen by itself."""
        if self._posting or self._closed:
            return
        self._stop_timer()
        if self._events:
            self._ahead = None
            self._call_off = self._timers.call_at(self._timers.now(), self._wake)
            return
        if self._ahead is None:
            ahead = self._state.copy()
            code = ahead.advance(at_boundaries=self._progress)
            self._ahead = ahead, code
        ahead, code = self._ahead
        if code >= 0:
            self._call_off = self._timers.call_at(math.ceil(ahead.now), self._wake)

    def _wake(self) -> None:
        self._call_off = None
        if self._ahead is not None:
            self._state, code = self._ahead
            self._caught_up_at, self._ahead = -1, None
            self._passed(code)
        self._catch_up()
        self._tell()

    def _tell(self) -> None:
        """Post what has happened; whatever that starts is looked at once afterwards."""
        self._posting = True
        try:
            while self._events:
                event = self._events.pop(0)
                if isinstance(event, Completion):
                    self._ended.discard(event.dispatch_id)
                self._post(event)
        finally:
            self._posting = False
        self._look_ahead()

    # --- inside ---------------------------------------------------------------------------------------

    def _completion(
        self,
        run: _Run,
        *,
        error: str | None = None,
        lane_lost: bool = False,
        next_segment: int | None = None,
    ) -> Completion:
        d, now = run.dispatch, self._timers.now()
        ended = error is None
        passed = self._state.passed(d.lane, d.first_segment) if run.started_at is not None else ()
        return Completion(
            dispatch_id=d.id,
            lane=d.lane,
            started_at=now if run.started_at is None else min(run.started_at, now),
            ended_at=run.ended_at if ended else now,
            segment_ended_at=tuple(math.ceil(at) for at in passed),
            next_segment=next_segment,
            error=error,
            lane_lost=lane_lost,
        )

    def _running(self, run: _Run) -> bool:
        return self._queues[run.dispatch.lane][0] is run

    def _find(self, dispatch_id: int) -> _Run | None:
        return next((run for queue in self._queues for run in queue if run.dispatch.id == dispatch_id), None)

    def _stop_timer(self) -> None:
        if self._call_off is not None:
            self._call_off()
            self._call_off = None

    def _later(self, event: Event) -> None:
        self._timers.call_at(self._timers.now(), lambda: self._post(event))

    def _restarted(self, lane: int) -> None:
        self._lost.discard(lane)
        self._post(Device("restarted", lane))

    def _post(self, event: Event) -> None:
        assert self._sink is not None, "attach() first"
        if not self._closed:
            self._sink(event)

"""What a policy may look at: queues, lanes, work in flight, and estimates. Policies never change it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from cotenant.domain import (
    Axes,
    Dispatch,
    InFlight,
    JobClass,
    ModelSpec,
    Observation,
    Overlap,
    Prediction,
    Request,
    Snapshot,
    Variant,
)
from cotenant.ports import LaneInfo, LoadMeter, Predictor
from cotenant.schedule.queue import NEVER, PATIENCE_NS, DeadlineQueue


@dataclass(slots=True, kw_only=True)
class Flight:
    """A dispatch in flight, as the scheduler keeps it."""

    dispatch: Dispatch
    started_at: int | None
    segment: int
    boundary_at: int | None
    hang_at: int
    predictions: list[Prediction]
    overlaps: list[Overlap] = field(default_factory=list)
    staged: bool = False
    aborting: str | None = None
    preempting: bool = False
    dues: Sequence[int] = ()
    """Deadlines of its requests (ns) ..."""
    due_at: int = NEVER
    """... the earliest of them ..."""
    job_class: JobClass = JobClass.BEST_EFFORT
    """... and the most important class among them."""

    def snapshot(self) -> InFlight:
        """The flight as a predictor sees it."""
        dispatch = self.dispatch
        return InFlight(
            dispatch_id=dispatch.id,
            variant=dispatch.variant,
            lane=dispatch.lane,
            share=dispatch.share,
            decided_at=dispatch.decided_at,
            started_at=self.started_at,
            segment=self.segment,
            end_segment=dispatch.end_segment,
            boundary_at=self.boundary_at,
            overlaps=tuple(self.overlaps),
        )

    def observation(self, started_at: int, ended_at: int, segment_ended_at: tuple[int, ...]) -> Observation:
        """What was issued joined with what was measured."""
        dispatch = self.dispatch
        return Observation(
            dispatch_id=dispatch.id,
            variant=dispatch.variant,
            rows=dispatch.rows,
            lane=dispatch.lane,
            share=dispatch.share,
            decided_at=dispatch.decided_at,
            started_at=started_at,
            ended_at=ended_at,
            first_segment=dispatch.first_segment,
            end_segment=dispatch.end_segment,
            segment_ended_at=segment_ended_at,
            predictions=tuple(self.predictions),
            overlaps=tuple(self.overlaps),
            staged=self.staged,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Suspended:
    """A batch that was stopped before `segment` at `since` (ns) and waits to go on. `due_at`: the earliest
    deadline that it can still meet (ns), `NEVER` when there is none; `job_class`: the most important one in
    it."""

    dispatch: Dispatch
    segment: int
    due_at: int
    job_class: JobClass
    since: int

    def aged(self, at: int) -> bool:
        """Whether it has no deadline and has waited too long."""
        return self.due_at >= NEVER and at - self.since >= PATIENCE_NS

    def rank(self, at: int) -> tuple[JobClass, int]:
        """Class and deadline that it is ranked by."""
        return (min(self.job_class, JobClass.STANDARD), 0) if self.aged(at) else (self.job_class, self.due_at)

    @property
    def variant(self) -> Variant:
        """What is to go on."""
        return self.dispatch.variant


@dataclass(slots=True)
class LaneState:
    """A lane and the dispatches on it, the running one first."""

    info: LaneInfo
    flights: list[Flight] = field(default_factory=list)
    usable: bool = True

    @property
    def idle(self) -> bool:
        """Usable and with nothing on it."""
        return self.usable and not self.flights


class View:
    """Read access to the scheduler's state at the instant `at`."""

    def __init__(self, lanes: Sequence[LaneInfo], predictor: Predictor, load: LoadMeter) -> None:
        self.at = 0
        self.specs: dict[str, ModelSpec] = {}
        self.smallest: dict[str, Variant] = {}
        self.queues: dict[str, DeadlineQueue] = {}
        self._held: dict[str, DeadlineQueue] = {}
        self._waiting: tuple[DeadlineQueue, ...] | None = ()
        self.lanes = [LaneState(info) for info in lanes]
        units = [set(info.units) for info in lanes]
        self.neighbours = [
            [k for k, theirs in enumerate(units) if k != lane and not mine.isdisjoint(theirs)]
            for lane, mine in enumerate(units)
        ]
        """Of each lane those that share compute units with it."""
        self.shares_compute = any(self.neighbours)
        """Whether any two lanes do."""
        self.flights: dict[int, Flight] = {}
        self.suspended: list[Suspended] = []
        self.predictor = predictor
        self.load = load
        self.probes: set[str] = set()
        self.lateness_ns = 0
        self.turn = 0
        """Grows whenever something begins or ends on a lane."""
        self._apart: list[LaneState] | None = None
        self._snapshot: Snapshot | None = None
        self._in_flight: tuple[InFlight, ...] | None = None

    def waiting(self) -> Sequence[DeadlineQueue]:
        """The queues that hold something."""
        if self._waiting is None:
            self._waiting = tuple(self._held.values())
        return self._waiting

    def add_queue(self, model: str, *, fifo: bool) -> None:
        """Let requests of a model wait, unless they can already."""
        if model not in self.queues:
            self.queues[model] = DeadlineQueue(model, fifo=fifo, turned=self._turned)

    def _turned(self, queue: DeadlineQueue) -> None:
        if self.queues.get(queue.model) is queue:
            if queue.rows:
                self._held[queue.model] = queue
            else:
                self._held.pop(queue.model, None)
            self._waiting = None

    def forget_queue(self, model: str) -> DeadlineQueue | None:
        """The queue of a model that goes; it is no longer looked at."""
        self._held.pop(model, None)
        self._waiting = None
        return self.queues.pop(model, None)

    def apart(self) -> list[LaneState]:
        """Usable lanes that share no compute unit with an earlier one: on a GPU the first alone, on a CPU
        one for each set of cores. An exclusive policy keeps to these."""
        if self._apart is None:
            taken: set[int] = set()
            self._apart = []
            for lane in self.lanes:
                if lane.usable and taken.isdisjoint(lane.info.units):
                    taken.update(lane.info.units)
                    self._apart.append(lane)
        return self._apart

    def lanes_changed(self) -> None:
        """A lane was lost or came back."""
        self._apart = None

    def median(self, variant: Variant) -> int:
        """Median span (ns) of the variant alone, as learned."""
        return self.predictor.solo(variant, self.at)[0]

    def upper(self, variant: Variant) -> int:
        """Span (ns) that the variant alone keeps with the model's `slo_percentile`."""
        return self.predictor.solo(variant, self.at)[-1]

    def free_at(self, lane: LaneState) -> int:
        """When the lane is expected to be free (median); never before `at`."""
        free = self.at
        for flight in lane.flights:
            begin = free if flight.started_at is None else flight.started_at
            free = max(self.at, begin + self.median(flight.dispatch.variant))
        return free

    def first_free(self, lanes: Sequence[LaneState]) -> int:
        """When the first of some lanes, one at least, is expected to be free."""
        for lane in lanes:
            if not lane.flights:
                return self.at
        return min([self.free_at(lane) for lane in lanes])

    def snapshot(self) -> Snapshot:
        """The state as a predictor may see it. The same one as long as nothing changes: what predictors make
        of it can then be kept."""
        load, known = self.load.estimate(self.at), self._snapshot
        if known is None or known.at != self.at or known.load is not load:
            known = self._snapshot = Snapshot(at=self.at, in_flight=self._in_flight_now(), load=load)
        return known

    def snapshot_alone(self) -> Snapshot:
        """The same without the load: a predictor then counts on nobody who joins."""
        return Snapshot(at=self.at, in_flight=self._in_flight_now())

    def _in_flight_now(self) -> tuple[InFlight, ...]:
        if self._in_flight is None:
            self._in_flight = tuple([flight.snapshot() for flight in self.flights.values()])
        return self._in_flight

    def turned(self) -> None:
        """Something began or ended on a lane."""
        self.turn += 1
        self.flights_changed()

    def flights_changed(self) -> None:
        """Something in flight began, went on or ended."""
        self._snapshot = self._in_flight = None

    def fits(self, axes: Axes, outer: Axes) -> bool:
        """Whether a request with bucket sizes `axes` can run, padded, in a batch of sizes `outer`."""
        return axes == outer or (
            len(axes) == len(outer)
            and all(a[0] == b[0] and a[1] <= b[1] for a, b in zip(axes, outer, strict=True))
        )

    def joins(self, request: Request, head: Request) -> bool:
        """Whether `request` can share a batch with `head` without enlarging it. An axis without declared
        buckets is never padded, so there the sizes must be equal."""
        if request.axes == head.axes:
            return True
        declared = {axis for axis, _ in self.specs[request.model].axis_buckets}
        exact = all(axis in declared for axis, _ in request.axes)
        return exact and self.fits(request.axes, head.axes)

"""The scheduler: a state machine `(event, at) -> [Action]`, plus `next_wakeup()`.

How this works. `handle` changes the state for one event, settles what has expired, then asks the policy for
one dispatch at a time until it wants none. Drivers interpret the actions and feed events back; the scheduler
never waits, never reads a clock, and cannot tell a live engine from a simulation. All of its state is in the
`View` that policies read. A request is in exactly one place: a queue, a flight, or settled.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import assert_never

from msgspec import structs

from cotenant.domain import (
    NS_PER_S,
    Abort,
    Action,
    Arrival,
    Cancel,
    Candidate,
    Command,
    Completion,
    Device,
    Dispatch,
    Event,
    JobClass,
    Maintain,
    MaintenanceDone,
    ModelSpec,
    ModelVersion,
    Observe,
    Outcome,
    OutcomeKind,
    Prediction,
    Preempt,
    Progress,
    Request,
    Respecified,
    Settle,
    Snapshot,
    Started,
    Variant,
    Wakeup,
)
from cotenant.ports import LaneInfo, LoadMeter, Predictor
from cotenant.schedule.overlap import overlap_begins, overlap_ends
from cotenant.schedule.plan import Choice
from cotenant.schedule.policy import Policy
from cotenant.schedule.queue import NEVER, due
from cotenant.schedule.view import Flight, LaneState, Suspended, View


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Limits of the scheduler."""

    hang_factor: float = 20.0
    """A dispatch is given up after this many times its predicted upper span ..."""
    hang_floor_ns: int = 2 * NS_PER_S
    """... but never sooner than this (ns)."""
    max_queued_rows: int = 20_000
    """Rows that may wait per model; beyond it requests are refused (not available: queue full)."""


class Scheduler:
    """See the module's head. Not thread-safe: one thread decides."""

    def __init__(
        self,
        *,
        policy: Policy,
        predictor: Predictor,
        load: LoadMeter,
        lanes: Sequence[LaneInfo],
        specs: Iterable[ModelSpec] = (),
        config: SchedulerConfig | None = None,
    ) -> None:
        self.policy = policy
        self.view = View(lanes, predictor, load)
        self._config = config or SchedulerConfig()
        self._n_dispatches = 0
        self._n_maintenance = 0
        self._wake_at: int | None = None
        self._where: dict[str, str] = {}
        self._draining: str | None = None
        self._actions: list[Action] = []
        for spec in specs:
            self.add_model(spec)

    # --- configuration ------------------------------------------------------------------------------

    def add_model(self, spec: ModelSpec) -> None:
        """Make a model servable (again)."""
        self.view.specs[spec.name] = spec
        self.view.smallest[spec.name] = spec.variants()[0]
        self.view.add_queue(spec.name, fifo=self.policy.fifo)

    # --- the state machine --------------------------------------------------------------------------

    def handle(self, event: Event, at: int) -> list[Action]:
        """The actions that follow from `event` at the instant `at` (never earlier than the last one)."""
        self._begin(at)
        match event:
            case Arrival(request, others):
                self._arrive(request)
                for other in others:
                    self._arrive(other)
            case Completion():
                self._complete(event)
            case ModelVersion():
                pass
            case Started(dispatch_id, started_at):
                self._started(dispatch_id, started_at)
            case Progress(dispatch_id, segment, passed_at):
                self._progressed(dispatch_id, segment, passed_at)
                return self._finish()
            case Cancel(request_id, reason):
                self._cancel(request_id, reason)
            case Device(change, lane):
                self._device(change, lane)
            case MaintenanceDone():
                if event.spec is not None:
                    self.add_model(event.spec)
            case Command(kind, model):
                self._command(kind, model)
            case Respecified(spec):
                if spec.name in self.view.specs:
                    self.view.specs[spec.name] = spec
            case Wakeup(late_ns):
                self.view.lateness_ns = late_ns
                self._give_up_hung()
            case _:
                assert_never(event)
        self._expire()
        self._plan()
        return self._finish()

    def next_wakeup(self) -> int | None:
        """The instant by which a `Wakeup` is wanted, unless an event comes sooner."""
        wake = NEVER if self._wake_at is None else self._wake_at
        for queue in self.view.waiting():
            if queue.head_due < wake:
                wake = queue.head_due + 1
        for flight in self.view.flights.values():
            if flight.hang_at < wake:
                wake = flight.hang_at
        return None if wake >= NEVER else wake

    def _begin(self, at: int) -> None:
        assert at >= self.view.at, "events must come in order of time"
        self.view.at = at
        self._actions = []

    def _finish(self) -> list[Action]:
        actions, self._actions = self._actions, []
        return actions

    # --- arrivals and ends ----------------------------------------------------------------------------

    def _arrive(self, request: Request) -> None:
        view = self.view
        queue = view.queues.get(request.model)
        if self._draining is not None:
            self._settle(request, OutcomeKind.REJECTED, self._draining)
        elif queue is None or request.model not in view.specs:
            self._settle(request, OutcomeKind.REJECTED, "not available: model is not loaded")
        elif queue.rows + request.rows > self._config.max_queued_rows:
            self._settle(request, OutcomeKind.REJECTED, "not available: queue is full")
        elif request.rows > view.specs[request.model].max_batch:  # checked against the model before this one
            self._settle(request, OutcomeKind.REJECTED, "not available: model has changed")
        else:
            view.load.arrived(request)
            verdict = self.policy.admit(view, request)
            if not verdict.admitted:
                self._settle(request, OutcomeKind.REJECTED, verdict.reason, predicted_at=verdict.predicted_at)
                return
            if verdict.probe:
                view.probes.add(request.id)
            queue.push(request)
            self._where[request.id] = request.model

    def _settle(
        self,
        request: Request,
        kind: OutcomeKind,
        reason: str,
        *,
        predicted_at: int | None = None,
        flight: Flight | None = None,
        completion: Completion | None = None,
    ) -> None:
        self._where.pop(request.id, None)
        self.view.probes.discard(request.id)
        outcome = Outcome(
            request=request,
            kind=kind,
            reason=reason,
            ended_at=self.view.at if completion is None else completion.ended_at,
            predicted_at=predicted_at if flight is None else flight.predictions[0].finish_at[0],
            dispatch_id=None if flight is None else flight.dispatch.id,
            dispatched_at=None if flight is None else flight.dispatch.decided_at,
            started_at=None if completion is None else completion.started_at,
            batch_rows=0 if flight is None else flight.dispatch.rows,
        )
        self._actions.append(Settle(outcome))

    def _expire(self) -> None:
        at = self.view.at
        for queue in self.view.waiting():
            if queue.head_due >= at:
                continue
            for request in queue.expire(at):
                self._settle(request, OutcomeKind.EXPIRED, "deadline passed: while it waited")

    def _cancel(self, request_id: str, reason: str) -> None:
        model = self._where.get(request_id)
        request = self.view.queues[model].remove(request_id) if model else None
        if request is not None:
            self._settle(request, OutcomeKind.CANCELLED, reason)

    def _command(self, kind: str, model: str) -> None:
        if kind == "drain":
            self._draining = "not available: the server is draining"
            return
        if kind == "unload":
            self._remove_model(model, "not available: model is unloaded")
        self._n_maintenance += 1
        self._actions.append(Maintain(id=self._n_maintenance, kind=kind, model=model))

    def _remove_model(self, model: str, reason: str) -> None:
        self.view.specs.pop(model, None)
        self.view.smallest.pop(model, None)
        queue = self.view.forget_queue(model)
        for suspended in [s for s in self.view.suspended if s.variant.model == model]:
            self.view.suspended.remove(suspended)
            self._drop_suspended(suspended.dispatch, OutcomeKind.REJECTED, reason)
        for request in list(queue or ()):
            self._settle(request, OutcomeKind.REJECTED, reason)

    # --- lanes ------------------------------------------------------------------------------------------

    def _complete(self, completion: Completion) -> None:
        view = self.view
        flight = view.flights.pop(completion.dispatch_id, None)
        if flight is None:
            return
        lane = view.lanes[completion.lane]
        lane.flights.remove(flight)
        if completion.lane_lost:
            lane.usable = False
            view.lanes_changed()
        view.turned()
        if not lane.flights:
            view.load.freed(completion.lane, view.at)
        self._busy_changed()
        overlap_ends(flight, view.flights.values(), completion.ended_at)
        dispatch = flight.dispatch
        if completion.error is not None:
            reason = f"execution failed: {flight.aborting or completion.error}"
            for request in dispatch.requests:
                self._settle(request, OutcomeKind.FAILED, reason, flight=flight, completion=completion)
            return
        self._actions.append(
            Observe(
                flight.observation(completion.started_at, completion.ended_at, completion.segment_ended_at)
            )
        )
        if completion.next_segment is not None and completion.next_segment < dispatch.end_segment:
            self._suspend(flight, completion.next_segment)
            return
        for request in dispatch.requests:
            late = request.deadline_at is not None and completion.ended_at > request.deadline_at
            kind = OutcomeKind.LATE if late else OutcomeKind.OK
            reason = "served late: ended after its deadline" if late else "served"
            self._settle(request, kind, reason, flight=flight, completion=completion)

    def _suspend(self, flight: Flight, segment: int) -> None:
        """Keep a preempted batch for later, unless its model has gone meanwhile."""
        dispatch, at = flight.dispatch, self.view.at
        if dispatch.variant.model in self.view.specs:
            dues = [due(request) for request in dispatch.requests]
            due_at = min((due_at for due_at in dues if due_at >= at), default=min(dues))
            self.view.suspended.append(Suspended(dispatch, segment, due_at, flight.job_class, at))
            return
        self._drop_suspended(dispatch, OutcomeKind.REJECTED, "not available: model is unloaded")

    def _drop_suspended(self, dispatch: Dispatch, kind: OutcomeKind, reason: str) -> None:
        """A batch that stopped at a boundary will not go on: the executor need not keep its tensors."""
        self._actions.append(Abort(dispatch.id, reason))
        for request in dispatch.requests:
            self._settle(request, kind, reason)

    def _started(self, dispatch_id: int, started_at: int) -> None:
        flight = self.view.flights.get(dispatch_id)
        if flight is not None and flight.started_at is None:
            flight.started_at = started_at
            flight.hang_at = started_at + self._hang_ns(flight.dispatch)
            self.view.flights_changed()
            overlap_begins(flight, self.view.flights.values(), started_at)

    def _progressed(self, dispatch_id: int, segment: int, passed_at: int) -> None:
        flight = self.view.flights.get(dispatch_id)
        if flight is not None:
            flight.segment = segment
            flight.boundary_at = passed_at
            self.view.flights_changed()

    def _device(self, change: str, lane: int | None) -> None:
        if lane is not None:
            self.view.lanes[lane].usable = change == "restarted"
            self.view.lanes_changed()
            self.view.turned()
            self._busy_changed()

    def _give_up_hung(self) -> None:
        for flight in self.view.flights.values():
            if flight.aborting is None and self.view.at >= flight.hang_at:
                limit_s = self._hang_ns(flight.dispatch) / NS_PER_S
                flight.aborting = f"hang limit of {limit_s:.1f} s passed"
                flight.hang_at = NEVER
                self._actions.append(Abort(flight.dispatch.id, flight.aborting))

    def _hang_ns(self, dispatch: Dispatch) -> int:
        span = dispatch.prediction.finish_at[-1] - dispatch.prediction.issued_at
        return max(self._config.hang_floor_ns, int(self._config.hang_factor * span))

    def _busy_changed(self) -> None:
        n_busy = n_usable = 0
        for lane in self.view.lanes:
            if lane.usable:
                n_usable += 1
                if lane.flights:
                    n_busy += 1
        self.view.load.lanes_busy(n_busy, max(1, n_usable), self.view.at)

    # --- dispatching --------------------------------------------------------------------------------------

    def _plan(self) -> None:
        self._wake_at = None
        self._drop_expired_suspended()
        if not self.policy.resumes:
            self._resume()
        while self.view.waiting() or (self.policy.resumes and self.view.suspended):
            plan = self.policy.plan(self.view)
            for dispatch_id in plan.preempt:
                self._preempt(dispatch_id)
            for request in plan.drop:
                self.view.queues[request.model].remove(request.id)
                self._settle(request, OutcomeKind.EXPIRED, "deadline out of reach: could not start in time")
            if plan.choice is not None:
                self._dispatch(plan.choice)
            elif not plan.drop:
                self._wake_at = plan.wake_at
                return

    def _preempt(self, dispatch_id: int) -> None:
        """Ask the lane to stop the dispatch at its next boundary, once."""
        flight = self.view.flights.get(dispatch_id)
        if flight is not None and not flight.preempting:
            flight.preempting = True
            self._actions.append(Preempt(dispatch_id))

    def _resume(self) -> None:
        """Suspended batches go on, from the boundary where they stopped, before anything new starts."""
        while self.view.suspended:
            lane = next((lane for lane in self.view.apart() if lane.idle), None)
            if lane is None:
                return
            self._go_on(Choice(resume=self.view.suspended[0], lane=lane.info.index, why="first in line"))

    def _drop_expired_suspended(self) -> None:
        """Batches that have stopped and of whose deadlines none is left are given up."""
        view = self.view
        for suspended in list(view.suspended):
            if all(due(request) < view.at for request in suspended.dispatch.requests):
                view.suspended.remove(suspended)
                reason = "deadline passed: while it was suspended"
                self._drop_suspended(suspended.dispatch, OutcomeKind.EXPIRED, reason)

    def _go_on(self, choice: Choice) -> None:
        suspended = choice.resume
        assert suspended is not None
        self.view.suspended.remove(suspended)
        snapshot = self.view.snapshot()
        before, segment = suspended.dispatch, suspended.segment
        lane = self.view.lanes[choice.lane]
        prediction = self._predict(before.variant, lane, snapshot, segment)
        self._n_dispatches += 1
        resumed = structs.replace(
            before,
            id=self._n_dispatches,
            lane=choice.lane,
            decided_at=self.view.at,
            first_segment=segment,
            resumes=before.id,
            prediction=prediction,
            snapshot=snapshot,
            why=f"resumed at a segment boundary: {choice.why}",
            alternatives=choice.alternatives,
        )
        self._launch(resumed, lane, suspended.rank(self.view.at)[0])

    def _dispatch(self, choice: Choice) -> None:
        view, offer = self.view, choice.offer
        if offer is None:
            self._go_on(choice)
            return
        lane = view.lanes[choice.lane]
        offer.queue.taken(offer.requests, view.at)
        for request in offer.requests:
            self._where.pop(request.id, None)
        self._n_dispatches += 1
        snapshot = view.snapshot()
        dispatch = Dispatch(
            id=self._n_dispatches,
            variant=offer.variant,
            requests=tuple(offer.requests),
            rows=offer.rows,
            lane=choice.lane,
            share=1.0,
            decided_at=view.at,
            latest_start_at=None if offer.due_at >= NEVER else offer.latest_start_at,
            first_segment=0,
            end_segment=view.specs[offer.queue.model].n_segments,
            prediction=self._predict(offer.variant, lane, snapshot),
            snapshot=snapshot,
            why=choice.why,
            alternatives=choice.alternatives,
        )
        classes = [request.job_class for request in offer.requests]
        self._launch(dispatch, lane, offer.job_class if offer.aged else min(classes))

    def _launch(self, dispatch: Dispatch, lane: LaneState, job_class: JobClass) -> None:
        view = self.view
        assert len(lane.flights) <= lane.info.depth, "the policy put a dispatch on a full lane"
        staged = bool(lane.flights)
        dues = [due(request) for request in dispatch.requests]
        flight = Flight(
            dispatch=dispatch,
            started_at=None if staged else view.at,
            segment=dispatch.first_segment,
            boundary_at=None,
            hang_at=NEVER if staged else view.at + self._hang_ns(dispatch),
            predictions=[dispatch.prediction],
            staged=staged,
            dues=dues,
            due_at=min(dues),
            job_class=job_class,
        )
        lane.flights.append(flight)
        view.flights[dispatch.id] = flight
        view.turned()
        if not staged:
            overlap_begins(flight, view.flights.values(), view.at)
        view.load.dispatched(dispatch.variant, -1 if staged else lane.info.index, view.at)
        self._busy_changed()
        self._actions.append(dispatch)

    def _predict(
        self, variant: Variant, lane: LaneState, snapshot: Snapshot, first_segment: int = 0
    ) -> Prediction:
        """The prediction to issue, which also revises those of what is in flight."""
        view = self.view
        n_in_flight = len(view.flights)
        candidate = Candidate(
            variant=variant, lane=lane.info.index, start_at=view.free_at(lane), first_segment=first_segment
        )
        found = view.predictor.predict(snapshot, [candidate])
        if n_in_flight:
            self._revise(found.in_flight_finish_at[0], found.version, n_in_flight)
        return Prediction(
            issued_at=view.at,
            finish_at=tuple(found.finish_at[0]),
            slo_level=view.specs[variant.model].slo_percentile,
            version=found.version,
            corunners=n_in_flight,
            features=found.features[0] if found.features else (),
        )

    def _revise(self, finish_at: Sequence[Sequence[int]], version: int, n_in_flight: int) -> None:
        """Append a prediction to each dispatch whose future a decision has changed."""
        at = self.view.at
        for flight, instants in zip(self.view.flights.values(), finish_at, strict=True):
            last, row = flight.predictions[-1], tuple(instants)
            if row != last.finish_at:
                flight.predictions.append(
                    Prediction(
                        issued_at=at,
                        finish_at=row,
                        slo_level=last.slo_level,
                        version=version,
                        corunners=n_in_flight,
                    )
                )

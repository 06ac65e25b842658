"""Overlap by prediction: what runs beside what, in which batches, decided dispatch by dispatch.

How this works. The most urgent jobs (class, then deadline) are tried one after the other: "if it joined what
is in flight now, when would everything end?". A job joins when no deadline is put at risk that waiting would
have saved, and when overlap makes enough of its work free; a job that waiting would make late joins for that
reason alone, as long as it saves more deadlines than it costs. So the number of lanes in use follows from
what the device can take. Where nothing that runs shares compute with the free lane, the most urgent job
starts unless it pays to wait for a larger batch. A protected dispatch in flight is never pushed past its
upper quantile; best-effort work joins only where nobody notices, and is stopped at its next segment boundary
when somebody does. Any dispatch with a later deadline can be stopped where that saves a more urgent job. In a
burst a queue is served from where slack is left (`packing.py`). Forecasts for decisions count on no joiners:
who joins is decided here, and later.
Choose it where models leave parts of the device unused. With overlap off, what is left is deferred EDF with
preemption. Fails where predictions are far off: then an exclusive policy is safer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from msgspec import structs

from cotenant.domain import SLO_COLUMN, Candidate, JobClass, Request, Snapshot
from cotenant.ports import Forecast
from cotenant.schedule.admission import Admission, Verdict, admit_if_feasible_alone
from cotenant.schedule.jobs import Job, next_jobs
from cotenant.schedule.last_lane import LastLane
from cotenant.schedule.packing import Packing
from cotenant.schedule.plan import Choice, Plan, wait_until
from cotenant.schedule.queue import NEVER
from cotenant.schedule.score import benefit, expected_met
from cotenant.schedule.turned_down import TurnedDown
from cotenant.schedule.view import Flight, LaneState, View

LOOKED_AT = 4
"""Jobs that are tried per decision, the most urgent first."""
LEAST_BENEFIT = 0.5
"""Share of the smaller work that overlap must make free (0..1) for a job that could wait."""
URGENT_BENEFIT = 0.1
"""The same for a job that cannot wait."""
LEAST_GAIN = 0.05
"""Deadlines that a job which cannot wait must be expected to save, harm to others deducted."""
NO_LOSS = -0.1
"""Expected deadlines below which the loss of a job that could wait counts as one."""
CARE = 2.0
"""How many deadlines of a new job one of those in flight is worth: what follows may harm them again."""
GAIN_BY_STOPPING = 0.3
"""Deadlines that stopping a dispatch must be expected to save."""
ISOLATION = 0.03
"""By how much of what it has left best-effort work may delay a protected dispatch."""
PROBED = 50
"""Of the overlaps that seem to gain too little and that harm nobody, one in so many is tried, since only what
is tried is learned ..."""
AMPLE = 2.0
"""... where every deadline leaves this many times what is expected at the upper quantile."""


@dataclass(slots=True, kw_only=True)
class Ours:
    """`overlaps`: run beside what is in flight; `defers`: wait for larger batches; `stops`: stop dispatches
    at segment boundaries. Off for comparison."""

    name: str = "ours"
    overlaps: bool = True
    defers: bool = True
    stops: bool = True
    fifo: bool = False
    resumes: bool = True
    plans_alone: bool = True
    _turned_down: TurnedDown = field(default_factory=TurnedDown)
    _free: tuple[int, LaneState | None] = (-1, None)
    """The freest lane, as of a turn."""
    _n_ample: int = 0
    """Overlaps that seemed to gain too little and could have harmed nobody."""
    _admission: Admission = field(default_factory=Admission)
    _packing: Packing = field(default_factory=Packing)
    _last: LastLane = field(default_factory=LastLane)
    _ends: Mapping[int, int] = field(default_factory=dict)
    """When dispatches in flight will end (ns), by id, as last seen."""

    def admit(self, view: View, request: Request) -> Verdict:
        """Refused when it could not be served in time even alone, but for the probes."""
        verdict = admit_if_feasible_alone(view, request)
        if not verdict.admitted and self._admission.probe(view, request):
            return Verdict(admitted=True, probe=True)
        return verdict

    def plan(self, view: View) -> Plan:
        """One job to start beside what is in flight, or a dispatch to stop for one."""
        if self._turned_down.nothing_new(view):
            return Plan(wake_at=self._turned_down.wake_at)
        lane = self._freest_lane(view)
        if lane is None and not (self.stops and any(map(_boundaries_left, view.flights.values()))):
            return Plan()
        jobs, gone = next_jobs(view, LOOKED_AT, self._packing.passed_over(view, self._ends))
        if gone:
            return Plan(drop=gone)
        if not jobs:
            return Plan()
        if not view.flights:
            return Plan() if lane is None else self._alone(view, jobs, lane)
        return self._beside(view, jobs, lane)

    def _freest_lane(self, view: View) -> LaneState | None:
        if self._free[0] != view.turn:
            self._free = view.turn, freest_lane(view)
        return self._free[1]

    # --- nothing shares its compute -----------------------------------------------------------------------

    def _alone(self, view: View, jobs: Sequence[Job], lane: LaneState) -> Plan:
        """The most urgent job that is not worth holding back."""
        wake_at = NEVER
        for n, job in enumerate(jobs, start=1):
            until = self._held_until(view, job, last=n == len(jobs))
            if until is None:
                if len(view.waiting()) > 1 or job.offer is None or not job.offer.complete:
                    cost_ns = job.median_ns / len(view.apart())
                    self._packing.learn(view, job.variant.model, job.rows, cost_ns)
                return Plan(choice=_choice(job, lane, "nothing shares its compute"))
            wake_at = min(wake_at, until)
        return Plan(wake_at=wake_at if wake_at < NEVER else None)

    def _held_until(self, view: View, job: Job, *, last: bool) -> int | None:
        if job.offer is None or not self.defers:
            return None
        found = view.load.estimate(view.at).models.get(job.variant.model)
        return wait_until(view, job.offer, found.rate_per_s if found else 0.0, lane_would_idle=last)

    # --- beside what is in flight -----------------------------------------------------------------------

    def _beside(self, view: View, jobs: Sequence[Job], lane: LaneState | None) -> Plan:
        for n, job in enumerate(jobs):
            if job.aged:  # nobody joins before it, so that it finds the device empty in the end
                jobs = jobs[: n + 1]
                break
        tried = (
            [job for job in jobs if not self._turned_down.waits(view, job)]
            if self.overlaps or lane is None
            else jobs
        )
        if lane is not None:
            tried = [job for job in tried if not self._keeps_from(view, job)]
        if not tried:
            return Plan(wake_at=self._turned_down.all_of(view, jobs))
        if lane is not None and self._has_its_own(view, lane):
            return self._alone(view, tried, lane)
        snapshot = view.snapshot_alone()
        candidates = []
        if lane is not None and self.overlaps:
            candidates = [
                Candidate(
                    variant=job.variant,
                    lane=lane.info.index,
                    start_at=view.at,
                    first_segment=job.first_segment,
                )
                for job in tried
            ]
        forecast = view.predictor.predict(snapshot, candidates)
        self._see(view, forecast.baseline_finish_at)
        if lane is not None and candidates:
            done_at = max([row[0] for row in forecast.baseline_finish_at])
            for index, job in enumerate(tried):
                why = self._joins(view, job, forecast, index, done_at)
                if why:
                    self._learn_cost(view, job, forecast, index)
                    return Plan(
                        choice=_choice(job, lane, why), preempt=_in_the_way(view, job, forecast, index)
                    )
        stopped = self._stop_for(view, tried, forecast, snapshot) if self.stops else ()
        for job in tried:
            self._turned_down.add(view, job)
        return Plan(preempt=stopped, wake_at=self._turned_down.all_of(view, jobs))

    @staticmethod
    def _has_its_own(view: View, lane: LaneState) -> bool:
        """Whether nothing that runs shares compute with the lane, and nothing protected runs at all: then
        there is nothing to weigh that would be worth the time of a forecast."""
        return not any(view.lanes[k].flights for k in view.neighbours[lane.info.index]) and not any(
            flight.job_class is JobClass.PROTECTED for flight in view.flights.values()
        )

    def _keeps_from(self, view: View, job: Job) -> bool:
        """Whether the last lane that shares no compute with others is kept for shorter work."""
        return job.offer is not None and not job.aged and self._last.kept_until(view, job.offer) is not None

    def _joins(self, view: View, job: Job, forecast: Forecast, index: int, done_at: int) -> str:
        """Why the job should start now beside what is in flight, which would be done at `done_at`; empty when
        it should not."""
        before, after = forecast.baseline_finish_at, forecast.in_flight_finish_at[index]
        finish_at = forecast.finish_at[index]
        then_at = max([row[0] for row in after])
        free = benefit(view.at, job.median_ns, done_at, then_at, finish_at[0])
        if free <= URGENT_BENEFIT:
            return "probe: to learn from it" if self._probes(view, job, forecast, index) else ""
        harm = 0.0
        for flight, was, then in zip(view.flights.values(), before, after, strict=True):
            if flight.job_class is JobClass.PROTECTED and _breaks(view, flight, was, then, job):
                return ""
            if flight.due_at < then[3]:
                harm += expected_met(was, flight.dues) - expected_met(then, flight.dues)
        gain = 0.0
        if job.due_at < NEVER:
            gain = expected_met(finish_at, job.dues) - expected_met(_alone_from(done_at, job), job.dues)
        worth = gain - CARE * harm
        if worth < NO_LOSS:
            return ""
        if worth > LEAST_GAIN:
            return f"cannot wait: {worth:+.2f} deadlines"
        if free > LEAST_BENEFIT:
            return f"overlap: {free:.0%} free"
        return "probe: to learn from it" if self._probes(view, job, forecast, index) else ""

    def _probes(self, view: View, job: Job, forecast: Forecast, index: int) -> bool:
        """Whether it is time to try an overlap that is expected to gain too little, and nobody could be late
        for it: an expectation that keeps work apart is never put right otherwise."""
        at = view.at
        before, after = forecast.baseline_finish_at, forecast.in_flight_finish_at[index]
        for flight, was, then in zip(view.flights.values(), before, after, strict=True):
            if flight.due_at < at + AMPLE * (then[SLO_COLUMN] - at):
                return False
            if flight.job_class is JobClass.PROTECTED and _breaks(view, flight, was, then, job):
                return False
        if job.due_at < at + AMPLE * (forecast.finish_at[index][SLO_COLUMN] - at):
            return False
        self._n_ample += 1
        return self._n_ample % PROBED == 0

    def _see(self, view: View, finish_at: Sequence[Sequence[int]]) -> None:
        """Remember when what is in flight will end."""
        self._ends = {i: row[0] for i, row in zip(view.flights, finish_at, strict=True)}

    def _learn_cost(self, view: View, job: Job, forecast: Forecast, index: int) -> None:
        """By how much the job delays the end of all work, as it joins."""
        after = forecast.in_flight_finish_at[index]
        done_at = max(row[0] for row in forecast.baseline_finish_at)
        then_at = max(forecast.finish_at[index][0], max(row[0] for row in after))
        self._packing.learn(view, job.variant.model, job.rows, then_at - done_at)
        self._see(view, after)

    # --- stopping dispatches --------------------------------------------------------------------------------

    def _stop_for(
        self, view: View, jobs: Sequence[Job], forecast: Forecast, snapshot: Snapshot
    ) -> Sequence[int]:
        """Dispatches to stop at their next boundary for the sake of a job that cannot start now."""
        flights = list(view.flights.values())
        if any(flight.preempting for flight in flights):
            return ()
        best_effort = _best_effort(view)
        if best_effort and any(job.job_class is not JobClass.BEST_EFFORT for job in jobs):
            return best_effort
        done_at = max(row[0] for row in forecast.baseline_finish_at)
        for job in jobs:
            if job.stopped is None and job.latest_start_at < done_at:
                found = self._stop_one(view, job, forecast, snapshot, done_at)
                if found is not None:
                    return [found]
        return ()

    def _stop_one(
        self, view: View, job: Job, forecast: Forecast, snapshot: Snapshot, done_at: int
    ) -> int | None:
        """The dispatch with a later deadline that ends last, when stopping it saves more than it costs."""
        flights = list(view.flights.values())
        later = [
            (row[0], index)
            for index, (flight, row) in enumerate(zip(flights, forecast.baseline_finish_at, strict=True))
            if flight.due_at > job.due_at and _boundaries_left(flight) > 1
        ]
        if not later:
            return None
        ends_at, index = max(later)
        flight = flights[index]
        boundary_at = view.at + view.median(flight.dispatch.variant) // flight.dispatch.end_segment
        if ends_at <= boundary_at:
            return None
        others = tuple(f for f in snapshot.in_flight if f.dispatch_id != flight.dispatch.id)
        candidate = Candidate(
            variant=job.variant,
            lane=flight.dispatch.lane,
            start_at=boundary_at,
            first_segment=job.first_segment,
        )
        then = view.predictor.predict(structs.replace(snapshot, in_flight=others), [candidate])
        delay_ns = then.finish_at[0][0] - view.at
        was = forecast.baseline_finish_at[index]
        harm = expected_met(was, flight.dues) - expected_met([at + delay_ns for at in was], flight.dues)
        gain = expected_met(then.finish_at[0], job.dues) - expected_met(_alone_from(done_at, job), job.dues)
        return flight.dispatch.id if gain - CARE * harm > GAIN_BY_STOPPING else None


def freest_lane(view: View) -> LaneState | None:
    """The idle lane whose compute units the fewest other lanes are using."""
    idle = [lane for lane in view.lanes if lane.idle]
    if len(idle) < 2:
        return idle[0] if idle else None
    lanes, neighbours = view.lanes, view.neighbours
    return min(idle, key=lambda lane: sum([bool(lanes[k].flights) for k in neighbours[lane.info.index]]))


def _breaks(view: View, flight: Flight, was: Sequence[int], then: Sequence[int], job: Job) -> bool:
    """Whether a protected dispatch loses its promise, or is held up by best-effort work; one of that beside
    it is enough, since each would only be compared with those before."""
    if was[SLO_COLUMN] <= flight.due_at < then[SLO_COLUMN]:
        return True
    if job.job_class is not JobClass.BEST_EFFORT:
        return False
    crowded = any(other.job_class is JobClass.BEST_EFFORT for other in view.flights.values())
    return crowded or then[0] - was[0] > ISOLATION * (was[0] - view.at)


def _in_the_way(view: View, job: Job, forecast: Forecast, index: int) -> Sequence[int]:
    """Best-effort dispatches to stop because a protected job joins that they would hold up."""
    if job.job_class is not JobClass.PROTECTED:
        return ()
    slow = forecast.finish_at[index][0] - view.at > (1.0 + ISOLATION) * job.median_ns
    return _best_effort(view) if slow else ()


def _best_effort(view: View) -> Sequence[int]:
    """Best-effort dispatches that can still be stopped."""
    return [
        flight.dispatch.id
        for flight in view.flights.values()
        if flight.job_class is JobClass.BEST_EFFORT and _boundaries_left(flight) > 0
    ]


def _boundaries_left(flight: Flight) -> int:
    return flight.dispatch.end_segment - flight.segment - 1


def _alone_from(at: int, job: Job) -> list[int]:
    """Quantiles of the job's end (ns) when it runs alone from `at` on."""
    return [at + job.median_ns] * 3 + [at + job.upper_ns]


def _choice(job: Job, lane: LaneState, why: str) -> Choice:
    return Choice(lane=lane.info.index, why=why, offer=job.offer, resume=job.stopped)

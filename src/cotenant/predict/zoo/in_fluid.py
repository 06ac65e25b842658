"""A whole-model slowdown inside the fluid integration: what knowing the overlap is worth, whatever the model.

The model says the slowdown of the momentary set; `predict.replay` steps from end to end. Progress of what is
in flight follows from who has run beside it. Nobody is expected to join.

Choose it to separate the value of overlap from that of the slowdown model. It fails where joiners matter (a
dispatch on an idle device that is joined at once) and where demand changes from segment to segment; and it
is slow: Python, an interpreter's 100 us.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from cotenant.domain import Candidate, InFlight, LoadEstimate, Observation, Overlap, Snapshot
from cotenant.ports import Forecast
from cotenant.predict.replay import Course, Running, replay
from cotenant.predict.zoo.margins import finish
from cotenant.predict.zoo.workloads import clipped
from cotenant.predict.zoo.wrapped import LEAST_LEFT, Wrapped
from cotenant.profile.features import WorkloadFeatures

Part = tuple[WorkloadFeatures, int | None]
"""A workload in one of its pieces; None: some time in its course."""


class InFluid(Wrapped):
    """Implements `StudyPredictor`. A run is one piece; see `oracle` for more."""

    def pieces(self, workload: WorkloadFeatures) -> tuple[float, ...]:
        """Solo spans (ns) of the pieces of a run."""
        return (workload.solo_ns,)

    def slowdown(self, victim: Part, others: Sequence[Part]) -> float:
        """Of a piece beside others in theirs."""
        return self.momentary(victim[0], [other for other, _ in others])

    # --- asking -------------------------------------------------------------------------------------------

    def predict(self, snapshot: Snapshot, candidates: Sequence[Candidate]) -> Forecast:
        """See `StudyPredictor.predict`."""
        at, n = snapshot.at, len(snapshot.in_flight)
        courses, last_on = self._courses(snapshot)
        alone = self._in_flight(snapshot, self._replayed(snapshot.in_flight, courses, snapshot.load))
        finish_at, others, features = [], [], []
        for candidate in candidates:
            course = self._course_of(candidate, last_on.get(candidate.lane), at)
            spans = self._replayed([*snapshot.in_flight, candidate], [*courses, course], snapshot.load)
            offsets = self.margins.offsets(candidate.variant.model, n, at)
            span = spans[n] + self.margins.handover_ns(at)
            finish_at.append(finish(at, span, offsets))
            others.append(self._in_flight(snapshot, spans[:n], n_joining=1))
            features.append((span,))
        return Forecast(
            finish_at=finish_at,
            in_flight_finish_at=others,
            baseline_finish_at=alone,
            version=self.version,
            features=features,
        )

    def _courses(self, snapshot: Snapshot) -> tuple[list[Course], dict[int, int]]:
        """Of what is in flight, and the last one on each lane."""
        courses: list[Course] = []
        last_on: dict[int, int] = {}
        for i, flight in enumerate(snapshot.in_flight):
            courses.append(self._in_course(flight, last_on.get(flight.lane), snapshot.at))
            if flight.lane >= 0:
                last_on[flight.lane] = i
        return courses, last_on

    def _in_course(self, flight: InFlight, after: int | None, at: int) -> Course:
        victim = self.workloads.victim(flight.variant, flight.share)
        if flight.started_at is None:
            k, pieces = self._from(victim, flight.segment)
            return Course(pieces=pieces, first=k, after=after)
        begin, first = flight.started_at, flight.segment
        if flight.boundary_at is not None:
            known = flight.end_segment == len(victim.segments)
            begin, first = (flight.boundary_at, flight.segment) if known else (flight.started_at, 0)
        k, pieces = self._from(victim, first)
        done = self._done((victim, k), pieces, flight.lane, flight.overlaps, begin, at)
        while len(pieces) > 1 and done >= pieces[0]:
            done -= pieces[0]
            k, pieces = k + 1, pieces[1:]
        left = max(pieces[0] - done, LEAST_LEFT * victim.solo_ns)
        return Course(pieces=(left, *pieces[1:]), first=k)

    def _course_of(self, candidate: Candidate, after: int | None, at: int) -> Course:
        victim = self.workloads.victim(candidate.variant, candidate.share)
        k, pieces = self._from(victim, candidate.first_segment)
        start = 0.0 if after is not None else max(0.0, float(candidate.start_at - at))
        return Course(pieces=pieces, first=k, start=start, after=after)

    def _from(self, workload: WorkloadFeatures, segment: int) -> tuple[int, tuple[float, ...]]:
        """The pieces left from a segment on, and the number of the first."""
        pieces, shares = self.pieces(workload), [share for share, _ in workload.segments]
        if not 0 < segment < len(shares):
            return 0, pieces
        if len(pieces) == len(shares):
            return segment, pieces[segment:]
        return 0, (workload.solo_ns * sum(shares[segment:]),)

    def _replayed(
        self, runs: Sequence[InFlight | Candidate], courses: Sequence[Course], load: LoadEstimate | None
    ) -> list[float]:
        """When each run ends (ns from now)."""
        victims = [self.workloads.victim(run.variant, run.share) for run in runs]
        beside = [
            [self.workloads.beside(other.variant, other.share, other.lane, run.lane) for other in runs]
            for run in runs
        ]

        def slowdown(running: Running, others: Sequence[Running], now: float) -> float:
            i, k = running
            return self.slowdown((victims[i], k), [(beside[i][j], piece) for j, piece in others])

        return replay(courses, slowdown)

    def _done(
        self,
        part: tuple[WorkloadFeatures, int],
        pieces: Sequence[float],
        lane: int,
        overlaps: Sequence[Overlap],
        begin: int,
        end: int,
    ) -> float:
        """Solo work (ns) done from `begin` to `end`, beginning with these pieces; the last one goes on."""
        victim, k = part
        spans = [(o, *clipped(o, begin, end)) for o in overlaps]
        cuts = sorted({begin, end, *(t for _, a, b in spans if b > a for t in (a, b))})
        done, left, last = 0.0, pieces[0], k + len(pieces) - 1
        for a, b in pairwise(cuts):
            others: list[Part] = [
                (self.workloads.beside(o.variant, o.share, o.lane, lane), None)
                for o, came, went in spans
                if came <= a and went >= b
            ]
            span = float(b - a)
            while span > 0:
                slowdown = self.slowdown((victim, k), others)
                work = span / slowdown
                if work < left or k == last:
                    done, left, span = done + work, left - work, 0.0
                else:
                    done, span, k = done + left, span - left * slowdown, k + 1
                    left = pieces[len(pieces) - 1 - (last - k)]
        return done

    def given_overlap(self, observation: Observation) -> float:
        """See `StudyPredictor.given_overlap`: solo progress integrated over the intervals."""
        o = observation
        victim = self.workloads.victim(o.variant, o.share)
        k, pieces = self._from(victim, o.first_segment)
        done = self._done((victim, k), pieces, o.lane, o.overlaps, o.started_at, o.ended_at)
        return (o.ended_at - o.started_at) * self.workloads.work_ns(victim, o) / max(1.0, done)

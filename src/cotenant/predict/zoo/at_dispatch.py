"""Whole model against whole model, as most published predictors are used: the set in flight at dispatch
counts as present throughout.

Choose it to see what a slowdown model is worth by itself. It fails with free overlap: a co-runner that leaves
soon is over-predicted, and one that joins is not seen; with a perfect slowdown of 1.6 that alone is 40 to
50 % either way (Zhao & Georgantas 2025). The model is trained on what was: the share of a run's span that
each other was present.
"""

from __future__ import annotations

from collections.abc import Sequence

from cotenant.domain import Candidate, InFlight, Observation, Snapshot
from cotenant.ports import Forecast
from cotenant.predict.zoo.margins import finish
from cotenant.predict.zoo.wrapped import LEAST_LEFT, Wrapped
from cotenant.profile.features import WorkloadFeatures


class AtDispatch(Wrapped):
    """Implements `StudyPredictor`."""

    def predict(self, snapshot: Snapshot, candidates: Sequence[Candidate]) -> Forecast:
        """See `StudyPredictor.predict`."""
        at, n = snapshot.at, len(snapshot.in_flight)
        alone = self._in_flight(snapshot, self._spans(snapshot, None))
        finish_at, others, features = [], [], []
        for candidate in candidates:
            spans = self._spans(snapshot, candidate)
            offsets = self.margins.offsets(candidate.variant.model, n, at)
            finish_at.append(finish(at, spans[n], offsets))
            others.append(self._in_flight(snapshot, spans[:n], n_joining=1))
            features.append((spans[n],))
        return Forecast(
            finish_at=finish_at,
            in_flight_finish_at=others,
            baseline_finish_at=alone,
            version=self.version,
            features=features,
        )

    def _spans(self, snapshot: Snapshot, candidate: Candidate | None) -> list[float]:
        """Medians (ns from now) of what is in flight and of the candidate, with it there: it slows down what
        is left of the others."""
        at, flights = snapshot.at, snapshot.in_flight
        runs = [*flights, *(() if candidate is None else (candidate,))]
        spans: list[float] = []
        until: dict[int, float] = {}
        for run in runs:
            victim = self.workloads.victim(run.variant, run.share)
            slowdown = self._slowdown(victim, run, runs)
            if isinstance(run, Candidate):
                begin = until.get(run.lane, float(run.start_at - at)) + self.margins.handover_ns(at)
                span = begin + _rest(victim.segments, run.first_segment) * victim.solo_ns * slowdown
            elif run.started_at is None:
                work = _rest(victim.segments, run.segment) * victim.solo_ns
                span = until.get(run.lane, 0.0) + work * slowdown
            else:
                first = run.segment if run.boundary_at is None else 0
                before = self._slowdown(victim, run, flights)
                left = _rest(victim.segments, first) * victim.solo_ns * before - (at - run.started_at)
                span = max(left, LEAST_LEFT * victim.solo_ns) * slowdown / before
            if run.lane >= 0:
                until[run.lane] = span
            spans.append(span)
        return spans

    def _slowdown(
        self, victim: WorkloadFeatures, run: InFlight | Candidate, runs: Sequence[InFlight | Candidate]
    ) -> float:
        """Of a run beside the others of `runs` that are on other lanes."""
        others = [
            self.workloads.beside(other.variant, other.share, other.lane, run.lane)
            for other in runs
            if other is not run and (other.lane != run.lane or run.lane < 0)
        ]
        return self.momentary(victim, others)

    def given_overlap(self, observation: Observation) -> float:
        """See `StudyPredictor.given_overlap`: by the shares of the span that others were present."""
        row = self.workloads.row(observation)
        if row is None:
            return self.workloads.victim(observation.variant, observation.share).solo_ns
        work = self.workloads.work_ns(row.victim, observation)
        return work * self._model.slowdown(row.victim, row.others)


def _rest(segments: Sequence[tuple[float, object]], first: int) -> float:
    """Share of the solo span from a segment on."""
    return sum(share for share, _ in segments[first:]) if 0 < first < len(segments) else 1.0

"""What every predictor must do, for anyone who writes one: `PredictorChecks(make).check_...()`.

A check raises AssertionError that says what was wrong. They run on simulated free overlap
(`experiment.simulated_coruns`): the predictor is fitted on its first part, then asked at every dispatch and
taught at every end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import msgspec
from msgspec.structs import replace as with_fields

from cotenant.domain import LEVELS, Candidate, InFlight, Observation, Prediction, Snapshot
from cotenant.experiment.corun_events import Dispatched, Ended, Replay
from cotenant.experiment.simulated_coruns import SimulatedConfig, simulate_coruns
from cotenant.ports import Forecast, LaneInfo
from cotenant.predict.study_port import StudyPredictor
from cotenant.profile.features import FeatureTable

Make = Callable[[FeatureTable, Sequence[LaneInfo]], StudyPredictor]
Question = tuple[Snapshot, Candidate]
N_FITTED, N_TAUGHT = 120, 60
"""Runs that a predictor is fitted on, and runs that it learns online after that."""


@dataclass(frozen=True, slots=True)
class Case:
    """Workloads, lanes, and what happens in order."""

    features: FeatureTable
    lanes: tuple[LaneInfo, ...]
    events: tuple[Dispatched | Ended, ...]

    @property
    def questions(self) -> list[Question]:
        """All dispatches."""
        return [(e.snapshot, e.candidate) for e in self.events if isinstance(e, Dispatched)]

    @property
    def observations(self) -> list[Observation]:
        """All ends, nothing issued."""
        return [e.observation for e in self.events if isinstance(e, Ended)]


@lru_cache(maxsize=1)
def simulated_case() -> Case:
    """Five workloads on three lanes."""
    config = SimulatedConfig(n_workloads=5, n_runs=N_FITTED + 2 * N_TAUGHT, load=(0.35, 0.35), n_lanes=(3, 3))
    dataset = simulate_coruns(config).dataset
    events = Replay(dataset)
    return Case(dataset.features, events.lanes, tuple(events))


def case_with_own_units() -> Case:
    """The same on lanes of which only the first and the last share their compute units."""
    lanes = tuple(LaneInfo(index=k, units=(k % 2,)) for k in range(3))
    return replace(simulated_case(), lanes=lanes)


class PredictorChecks:
    """The checks of one predictor. `make` builds a fresh one from features and lanes; `expects_joiners`: it
    learns what usually joins, so a run that begins alone may be predicted longer."""

    def __init__(self, make: Make, *, expects_joiners: bool = False, case: Case | None = None) -> None:
        self._make, self._expects_joiners = make, expects_joiners
        self._case = case or simulated_case()

    @cached_property
    def taught(self) -> StudyPredictor:
        """One that has learned."""
        return self.teach(self.fresh())

    def fresh(self, features: FeatureTable | None = None) -> StudyPredictor:
        """One that knows features only."""
        return self._make(features or self._case.features, self._case.lanes)

    def teach(self, predictor: StudyPredictor) -> StudyPredictor:
        """Fit on the first part, learn the second."""
        predictor.fit(self._case.observations[:N_FITTED])
        self._learn(predictor, N_FITTED, N_FITTED + N_TAUGHT)
        return predictor

    def _learn(self, predictor: StudyPredictor, first: int, last: int) -> None:
        """Ask at dispatches, teach at ends number `first` to `last`."""
        issued: dict[int, Prediction] = {}
        n = 0
        for event in self._case.events:
            if isinstance(event, Ended):
                n += 1
                if first < n <= last and event.number in issued:
                    predictor.learn(with_fields(event.observation, predictions=(issued.pop(event.number),)))
            elif first <= n < last:
                issued[event.number] = _issued(predictor, event.snapshot, event.candidate)

    # --- the checks ---------------------------------------------------------------------------------------

    def check_nothing_that_is_handed_in_is_changed(self) -> None:
        """Snapshots, candidates and observations are the same after as before."""
        predictor = self.teach(self.fresh())
        for snapshot, candidate in self._case.questions[-20:]:
            before = msgspec.json.encode((snapshot, candidate))
            predictor.predict(snapshot, [candidate])
            assert msgspec.json.encode((snapshot, candidate)) == before, "predict changed its arguments"
        for observation in self._case.observations[-20:]:
            before = msgspec.json.encode(observation)
            predictor.given_overlap(observation)
            predictor.learn(observation)
            assert msgspec.json.encode(observation) == before, "an observation was changed"

    def check_the_same_teaching_gives_the_same_predictions(self) -> None:
        """Whatever is random is seeded."""
        again = self.teach(self.fresh())
        self._assert_alike(self.taught, again, "two that were taught the same")

    def check_the_order_of_corunners_does_not_matter(self) -> None:
        """Neither of what is in flight nor of overlaps."""
        for snapshot, candidate in self._crowded():
            flights = snapshot.in_flight[::-1]
            turned = with_fields(snapshot, in_flight=tuple(map(_turned, flights)))
            one, other = (self.taught.predict(s, [candidate]) for s in (snapshot, turned))
            _assert_close(one.finish_at[0], other.finish_at[0], snapshot.at, "the candidate")
            for k, row in enumerate(one.in_flight_finish_at[0]):
                there = other.in_flight_finish_at[0][len(flights) - 1 - k]
                _assert_close(row, there, snapshot.at, "what is in flight")
        for observation in self._case.observations[-20:]:
            turned_one = with_fields(observation, overlaps=observation.overlaps[::-1])
            a, b = self.taught.given_overlap(observation), self.taught.given_overlap(turned_one)
            assert math.isclose(a, b, rel_tol=1e-9), f"overlaps in another order give {b} instead of {a} ns"

    def check_alone_a_run_takes_about_its_solo_span(self) -> None:
        """Nobody beside it, no load: within a fifth at dispatch, a tenth with the overlap known."""
        for predictor in () if self._expects_joiners else (self.fresh(), self.taught):
            for workload in self._case.features:
                at = self._case.questions[-1][0].at
                candidate = Candidate(variant=workload.variant, lane=0, start_at=at)
                forecast = predictor.predict(Snapshot(at=at, in_flight=()), [candidate])
                factor = forecast.features[0][0] / workload.solo_ns
                assert 0.8 <= factor <= 1.2, f"{workload.variant.label} alone is predicted {factor:.2f} solo"
        alone = [o for o in self._case.observations if not o.overlaps]
        assert alone, "the case has nobody who ran alone"
        for observation in alone:
            factor = self.taught.given_overlap(observation) / _solo_ns(self._case, observation)
            assert 0.9 <= factor <= 1.1, f"{observation.variant.label} known to be alone: {factor:.2f} solo"

    def check_quantiles_ascend_and_the_future_is_ahead(self) -> None:
        """Of candidates and of what is in flight; the shape is that of `Forecast`."""
        for predictor in (self.fresh(), self.taught):
            for snapshot, candidate in self._case.questions[-40:]:
                self._assert_sound(predictor.predict(snapshot, [candidate, candidate]), snapshot, 2)
                self._assert_sound(predictor.predict(snapshot, []), snapshot, 0)

    def check_missing_features_are_survived(self) -> None:
        """A resource that was measured of nobody, and a workload of which nothing but its span was."""
        source = self._case.features
        table = FeatureTable(source.resources, source.statics)
        for k, entry in enumerate(source):
            missing = range(len(source.resources)) if k == 0 else (1,)
            table.add(
                replace(
                    entry,
                    demand=_without(entry.demand, missing),
                    segment_demand=tuple(_without(u, missing) for u in entry.segment_demand),
                )
            )
        predictor = self.teach(self.fresh(table))
        for snapshot, candidate in self._case.questions[-40:]:
            self._assert_sound(predictor.predict(snapshot, [candidate]), snapshot, 1)
        for observation in self._case.observations[-20:]:
            expected = predictor.given_overlap(observation)
            assert 0 < expected < math.inf, f"given overlap it expects {expected} ns"

    def check_a_stored_state_restores_to_identical_predictions(self) -> None:
        """And learning goes on from there as it would have."""
        stored = self.taught.state()
        first, second = self.fresh(), self.fresh()
        first.restore(stored)
        self._assert_alike(self.taught, first, "the one restored and the one stored")
        second.restore(first.state())
        for predictor in (first, second):
            self._learn(predictor, N_FITTED + N_TAUGHT, N_FITTED + N_TAUGHT + 20)
        self._assert_alike(first, second, "two that were restored and taught the same")

    def check_a_damaged_state_is_refused(self) -> None:
        """With a ValueError, and nothing has changed."""
        stored = self.taught.state()
        predictor = self.fresh()
        predictor.restore(stored)
        for damaged in (b"", b"not a state", stored[: len(stored) // 2]):
            assert _refusal(predictor, damaged), f"a state of {len(damaged)} damaged bytes was taken"
        self._assert_alike(self.taught, predictor, "before and after refusing a damaged state")

    def check_asking_never_changes_an_answer(self) -> None:
        """In any order, at any instant."""
        predictor = self.taught
        before = self._answers(predictor)
        for snapshot, candidate in self._case.questions:
            predictor.predict(snapshot, [candidate])
        for observation in self._case.observations:
            predictor.given_overlap(observation)
        assert self._answers(predictor) == before, "asking about something else changed answers"

    def check_impossible_observations_are_refused(self) -> None:
        """Not a number, endless, or ended before it began."""
        predictor = self.fresh()
        predictor.restore(self.taught.state())
        sound = self._case.observations[-1]
        for changes in (
            {"ended_at": math.nan},
            {"ended_at": math.inf},
            {"started_at": math.nan},
            {"decided_at": math.nan},
            {"ended_at": sound.started_at - 1},
            {"ended_at": sound.started_at},
        ):
            found = predictor.learn(with_fields(sound, **changes))
            assert found is None, f"an observation with {changes} was taken"
        self._assert_alike(self.taught, predictor, "before and after refusing observations")

    # --- inside -------------------------------------------------------------------------------------------

    def _crowded(self) -> list[Question]:
        found = [(s, c) for s, c in self._case.questions if len(s.in_flight) >= 2]
        assert found, "the case has nobody beside two others"
        return found[-20:]

    def _answers(self, predictor: StudyPredictor) -> tuple[list[Forecast], list[float]]:
        asked = [predictor.predict(snapshot, [one]) for snapshot, one in self._case.questions[-30:]]
        return asked, [predictor.given_overlap(o) for o in self._case.observations[-30:]]

    def _assert_alike(self, a: StudyPredictor, b: StudyPredictor, who: str) -> None:
        (asked, given), (asked_b, given_b) = self._answers(a), self._answers(b)
        differing = sum(x != y for x, y in zip(asked, asked_b, strict=True))
        assert not differing, f"{who} differ in {differing} of {len(asked)} forecasts"
        differing = sum(x != y for x, y in zip(given, given_b, strict=True))
        assert not differing, f"{who} differ in {differing} of {len(given)} spans given the overlap"

    def _assert_sound(self, forecast: Forecast, snapshot: Snapshot, n_candidates: int) -> None:
        n_in_flight, n_levels = len(snapshot.in_flight), len(LEVELS) + 1
        assert len(forecast.finish_at) == len(forecast.in_flight_finish_at) == n_candidates
        assert all(len(rows) == n_in_flight for rows in forecast.in_flight_finish_at)
        assert len(forecast.baseline_finish_at) == n_in_flight
        rows = [*forecast.finish_at, *forecast.baseline_finish_at]
        for row in [*rows, *(row for rows in forecast.in_flight_finish_at for row in rows)]:
            assert len(row) == n_levels, f"{len(row)} quantiles, expected {n_levels}"
            assert all(isinstance(instant, int) for instant in row), f"instants are integers (ns): {row}"
            assert list(row[:-1]) == sorted(row[:-1]), f"quantiles descend: {row}"
            assert row[0] <= row[-1], f"the model's own level lies below the median: {row}"
            assert row[0] >= snapshot.at, f"a finish lies {snapshot.at - row[0]} ns in the past"


def _issued(predictor: StudyPredictor, snapshot: Snapshot, candidate: Candidate) -> Prediction:
    forecast = predictor.predict(snapshot, [candidate])
    return Prediction(
        issued_at=snapshot.at,
        finish_at=tuple(forecast.finish_at[0]),
        slo_level=0.99,
        version=forecast.version,
        corunners=len(snapshot.in_flight),
        features=tuple(forecast.features[0]),
    )


def _refusal(predictor: StudyPredictor, state: bytes) -> str:
    """What it says to a state that it refuses; empty when it takes it."""
    try:
        predictor.restore(state)
    except ValueError as error:
        return str(error)
    return ""


def _turned(flight: InFlight) -> InFlight:
    return with_fields(flight, overlaps=flight.overlaps[::-1])


def _without(values: Sequence[float], missing: Sequence[int]) -> tuple[float, ...]:
    return tuple(math.nan if k in missing else value for k, value in enumerate(values))


def _solo_ns(case: Case, observation: Observation) -> float:
    return case.features.of(observation.variant, observation.share).solo_ns


def _assert_close(one: Sequence[int], other: Sequence[int], at: int, who: str) -> None:
    for a, b in zip(one, other, strict=True):
        assert math.isclose(a - at, b - at, rel_tol=1e-6, abs_tol=2.0), (
            f"{who} finishes at {b - at} instead of {a - at} ns when co-runners come in another order"
        )


CHECKS: tuple[str, ...] = tuple(name for name in vars(PredictorChecks) if name.startswith("check_"))
"""Names of all checks."""

"""The predictor that the server runs: fluid integration over what is in flight, learned from every run.

How this works. `estimator.py` says how much sets of workloads slow each other down; `courses.py` lays out
what is in flight, what might be dispatched and who is likely to join; `kernel.py` steps from event to event
until everything asked for has finished. That is the median. Upper quantiles come from `calibrate.py`,
scored against what was issued. Every finished run teaches the calibrator (the residual at dispatch, joiners
unknown) and the estimator (the residual given the overlap that really was); a drift alarm widens the one
and loosens the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from cotenant.domain import (
    LEVELS,
    SLO_COLUMN,
    Candidate,
    ModelSpec,
    Observation,
    Prediction,
    Snapshot,
    SoloProfile,
    Variant,
)
from cotenant.ports import Forecast, LaneInfo, ProfileTable
from cotenant.predict import fluid_state
from cotenant.predict.calibrate import CalibrateConfig, Calibrator, Offsets
from cotenant.predict.courses import Courses
from cotenant.predict.drift import DriftDetector
from cotenant.predict.estimator import Estimator, EstimatorConfig, PairMap
from cotenant.predict.handover import Handover
from cotenant.predict.pair_map import FEWEST_LABELS, ReducedMap
from cotenant.predict.solo import SoloPredictor, possible
from cotenant.predict.workloads import Known
from cotenant.profile.features import FeatureTable

LEAST_SIGMA, LARGEST_SIGMA, UNPROFILED_SIGMA = 0.03, 0.5, 0.2
"""Spread (log) that a profile is believed to have: bounds, and where there is none."""
DEFAULT_LEVEL = 0.99
MEMORY = 150.0
"""Completions over which the calibrator averages what is left of the median's error: the pace of each model
is followed by the estimator already."""
N_ISSUED = 1 + SLO_COLUMN + 1
"""Numbers that go with an issued prediction: the median span (ns) before quantiles, and the log offsets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FluidConfig:
    """What the predictor does; off for comparison."""

    learns: bool = True
    """Learn from completions."""
    joiners: bool = True
    """Count on likely joiners."""
    conformal: bool = True
    """Hold upper quantiles to what was missed; else they are those of a normal with the spread that the
    estimator believes in."""
    estimator: EstimatorConfig = field(default_factory=EstimatorConfig)
    """How the slowdowns are learned."""


class FluidPredictor:
    """Implements the `Predictor` and `Learner` ports; see the module's head. Deterministic in (learned state,
    arguments). `profiles` names models and their spread; `features` measures workloads. `screen` answers
    `solo`, for policies that plan with one span per variant, whatever will run beside it; without it that is
    the span with nobody beside it."""

    def __init__(
        self,
        features: FeatureTable,
        pair_map: PairMap,
        *,
        profiles: ProfileTable | None = None,
        screen: SoloPredictor | None = None,
        lanes: Sequence[LaneInfo] = (),
        config: FluidConfig | None = None,
    ) -> None:
        self.config = config or FluidConfig()
        self.features = features
        self.estimator = Estimator(features, pair_map, lanes, self.config.estimator)
        self.pair_map = fluid_state.digest(features, pair_map.n_features)
        self.calibrator = Calibrator(CalibrateConfig(memory_location=MEMORY))
        self.drift = DriftDetector()
        self.handover = Handover()
        self.n_refused = 0
        self.screen = screen
        self.screens = screen is not None
        """Whether `solo` is what the screen says."""
        self._profiles = profiles
        self._levels: dict[str, float] = {}
        self._courses = self._new_courses()
        self._solo: dict[Variant, tuple[int, ...]] = {}
        self._solo_key = (-1, -1)

    @property
    def version(self) -> int:
        return self.estimator.version

    def get_ready(self) -> None:
        """Look up what there is to know of all measured workloads and, where they are few, of their pairs,
        before requests wait for it. Changes no answer."""
        self.estimator.get_ready()

    # --- Predictor ------------------------------------------------------------------------------------

    def prior(self, variant: Variant) -> int:
        return int(self.features.of(variant).solo_ns)

    def solo(self, variant: Variant, at: int) -> tuple[int, ...]:
        if self.screens and self.screen is not None:
            return self.screen.solo(variant, at)
        key = (self.version, at // 200_000_000)
        if key != self._solo_key:
            self._solo.clear()
            self._solo_key = key
        found = self._solo.get(variant)
        if found is None:
            known = self.estimator.workload(variant, 1.0)
            median = known.features.solo_ns * self.estimator.pace(known, at) + self.handover.at(at)
            offsets = self._offsets(variant.model, 0, at)
            found = self._solo[variant] = tuple(int(median * math.exp(offset)) for offset in offsets)
        return found

    def predict(self, snapshot: Snapshot, candidates: Sequence[Candidate]) -> Forecast:
        quantiles, issued = self._courses.ask(snapshot, candidates, self.handover.at(snapshot.at))
        baseline, *rows = quantiles.tolist()
        baseline.pop()
        return Forecast(
            finish_at=[row.pop() for row in rows],
            in_flight_finish_at=rows,
            baseline_finish_at=baseline,
            version=self.estimator.version,
            features=list(map(tuple, issued.tolist())),
        )

    name = "fluid"

    def fit(self, observations: Sequence[Observation]) -> None:
        """Begin anew, from observations: the scales of the pair features from steady pairs among them, the
        rest run by run in their order."""
        steady = [o for o in observations if len(o.overlaps) == 1 and o.overlaps[0].ended_at is None]
        pairs, slowdowns = [], []
        for o in steady:
            victim = self.features.of(o.variant, o.share)
            pairs.append((victim, self.features.of(o.overlaps[0].variant, o.overlaps[0].share)))
            slowdowns.append((o.ended_at - o.started_at) / victim.solo_ns)
        reduced = ReducedMap(self.features).fit(pairs, np.array(slowdowns))
        self.estimator = Estimator(self.features, reduced, self.estimator.lanes, self.config.estimator)
        self.pair_map = fluid_state.digest(self.features, reduced.n_features)
        self.estimator.begin_with(reduced.theta, reduced.covariance)
        self._courses = self._new_courses()
        known = {id(o) for o in steady} if len(pairs) >= FEWEST_LABELS else set()
        for o in observations:
            if id(o) not in known:
                self.learn(o)

    def given_overlap(self, observation: Observation) -> float:
        """Span (ns) from start to end that is expected for exactly the overlap that was (steady: an overlap
        without an end lasts throughout)."""
        known = self.estimator.workload(observation.variant, observation.share)
        o, span = observation, float(observation.ended_at - observation.started_at)
        beside, first = self._courses.beside(known, o), first_of(known, o)
        done, doubt = self.estimator.work_done(
            known, o.lane, beside, o.started_at, o.ended_at, o.decided_at, first
        )
        return span * work_of(known, o) / max(1e-3, done) * math.exp(-doubt)

    def _new_courses(self) -> Courses:
        return Courses(self.estimator, self.calibrator, self._declare, joiners=self.config.joiners)

    def _offsets(self, model: str, n_beside: int, at: int) -> Offsets:
        if model not in self._levels:
            self._declare(model)
        return self.calibrator.offsets((model, max(0, n_beside)), at)

    def _declare(self, model: str) -> None:
        level, sigma = DEFAULT_LEVEL, UNPROFILED_SIGMA
        if self._profiles is not None:
            spec = self._profiles.spec(model)
            level = spec.slo_percentile
            try:
                profile = self._profiles.solo(spec.variants()[0])
                sigma = profile.spread_ns / profile.median_ns
            except KeyError:
                pass
        self._levels[model] = level
        self.calibrator.declare(model, min(LARGEST_SIGMA, max(LEAST_SIGMA, sigma)), level)
        if not self.config.conformal:
            self.calibrator.believe(self.estimator.spread)

    # --- Learner --------------------------------------------------------------------------------------

    def learn(self, observation: Observation) -> int | None:
        if not self.config.learns:
            return None
        if not possible(observation):
            self.n_refused += 1
            return None
        if self.screen is not None:
            self.screen.learn(observation)
        model, at = observation.variant.model, observation.ended_at
        known = self.estimator.workload(observation.variant, observation.share)
        work = work_of(known, observation)
        if work <= 0:
            return None
        residual, _ = self.estimator.learn(
            known, observation.lane, self._courses.beside(known, observation), observation.started_at, at,
            work, first_of(known, observation),
        )  # fmt: skip
        if not observation.staged:
            self.handover.learn(observation.started_at - observation.decided_at, at)
        if not self.config.conformal:
            self.calibrator.believe(self.estimator.spread)
        elif not observation.preempted and observation.predictions:
            self._calibrate(observation, observation.predictions[0])
        if self.drift.learn(model, residual):
            if self.config.conformal:
                self.calibrator.widen(at, model)
            self.estimator.loosen(model)
        return self.version

    def _calibrate(self, observation: Observation, issued: Prediction) -> None:
        if len(issued.features) != N_ISSUED or issued.features[0] <= 0:
            return
        base, *offsets = issued.features
        actual = max(1.0, float(observation.ended_at - issued.issued_at))
        model = observation.variant.model
        if model not in self._levels:
            self._declare(model)
        self.calibrator.learn(
            (model, issued.corunners), math.log(actual / base), _five(offsets), observation.ended_at
        )

    def loaded(self, spec: ModelSpec, profiles: Sequence[SoloProfile]) -> None:
        if self.screen is not None:
            self.screen.loaded(spec, profiles)
        elif self._profiles is not None:
            self._profiles.renew(spec, profiles)
        self.features.drop(spec.name)
        for profile in profiles:
            self.features.add(self.features.bare(profile.variant, float(profile.median_ns), profile.share))
        self.estimator.forget(spec.name)
        self._courses.forget()
        self.calibrator.forget(spec.name)
        self.drift.forget(spec.name)
        self._levels.pop(spec.name, None)
        self._solo.clear()

    def state(self) -> bytes:
        return self.copied()()

    def copied(self) -> Callable[[], bytes]:
        """A copy of the state that costs tens of microseconds; what is returned encodes it, on any thread."""
        return fluid_state.copied(self)

    def restore(self, state: bytes, moved_ns: int = 0) -> None:
        """See the port. `moved_ns` is added to every instant in it: for a clock that has begun anew. Moved by
        whole steps of `DECAY_STEP_NS`, it predicts so much later exactly what it predicted before."""
        fluid_state.decode(self, state, moved_ns)
        if not self.config.conformal:
            self.calibrator.believe(self.estimator.spread)
        self._solo.clear()


def work_of(known: Known, observation: Observation) -> float:
    """Solo work (ns) of what was run: all of it, or the segments that a preempted run had ended; 0 when
    that is not known."""
    first, n = observation.first_segment, len(observation.segment_ended_at)
    n_segments = observation.end_segment
    if not observation.preempted and first == 0:
        return known.features.solo_ns
    if known.n_segments != n_segments:
        return 0.0
    last = first + n if observation.preempted else n_segments
    return float(known.segment_ns[first:last].sum())


def first_of(known: Known, observation: Observation) -> int:
    """The measured segment in which a run began."""
    if known.n_segments != observation.end_segment:
        return 0
    return observation.first_segment


def _five(offsets: Sequence[float]) -> Offsets:
    assert len(offsets) == len(LEVELS) + 1 == SLO_COLUMN + 1
    a, b, c, d, e = offsets
    return a, b, c, d, e

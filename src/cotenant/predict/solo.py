"""Solo profile times an online correction, with upper quantiles: the first predictor, and a baseline.

How this works. The median span of a variant is its profiled median times exp(correction). The correction is
an exponentially weighted mean of log(measured / profiled), kept per variant and per model; a variant with
little evidence leans on its model (shrinkage n / (n + 3)). Innovations are clipped at 4 robust sigma and
counted. Upper quantiles add the empirical quantiles of the last residuals of the model, scored against what
was issued at dispatch. Corrections and widened bounds decay to the prior with a half-life of 10 s without
observations, so that pessimism cannot confirm itself. Co-runners are not modelled: their effect is in the
correction, on average. It fails where the mix of co-runners changes quickly.

The hand-over from the decision to the start of the run is not proportional to anything, so it is kept apart:
its recent quantiles, over all models, are added to the run's (medians add; deviations from them add in
quadrature, as those of independent terms do).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field

import msgspec
from msgspec import structs

from cotenant.domain import (
    LEVELS,
    NS_PER_S,
    Candidate,
    InFlight,
    ModelSpec,
    Observation,
    Snapshot,
    SoloProfile,
    Variant,
)
from cotenant.ports import Forecast, ProfileTable
from cotenant.predict.quantiles import between, standard_normal, weighted_quantiles

STATE_FORMAT = 1
CLIP_SIGMAS = 4.0
WINDOW = 200
PRIOR_WEIGHT = 12.0
"""Pseudo-residuals that the profile's own spread stands for."""
UNPROFILED_NS = 10_000_000
"""Median assumed for a variant of a model of which nothing was measured (ns)."""
UNPROFILED_SIGMA = 0.2
PRIOR_GRID = (-1.64, -1.04, -0.67, -0.39, -0.13, 0.13, 0.39, 0.67, 1.04, 1.64, 2.33, 2.6)
"""Standard normal values that stand for a profile's spread among the residuals."""
HANDOVER_EVERY = 32
"""Dispatches after which the quantiles of the hand-over are renewed."""
DECAY_STEP_NS = 200_000_000
"""Forgetting is evaluated on this grid of instants (ns), so that estimates can be cached in between."""


class Correction(msgspec.Struct):
    """A running mean of log(measured / profiled) with its evidence and robust scale."""

    mean: float = 0.0
    scale: float = 0.1
    n: int = 0
    learned_at: int = 0
    n_clipped: int = 0

    def learn(self, value: float, at: int, decay: float, memory: float) -> None:
        """Take in one log ratio. `decay` (0..1) is how much of the old mean is still believed;
        `memory` the smallest weight of a new value."""
        mean = self.mean * decay
        innovation = value - mean
        bound = CLIP_SIGMAS * self.scale
        if abs(innovation) > bound:
            self.n_clipped += 1
            innovation = math.copysign(bound, innovation)
        self.scale += 0.1 * (1.25 * abs(innovation) - self.scale)
        self.scale = min(1.0, max(0.01, self.scale))
        self.n += 1
        self.mean = mean + max(memory, 1.0 / self.n) * innovation
        self.learned_at = at


class State(msgspec.Struct):
    """All that is learned, as it is stored."""

    format: int = STATE_FORMAT
    version: int = 0
    n_refused: int = 0
    variants: dict[str, Correction] = msgspec.field(default_factory=dict)
    models: dict[str, Correction] = msgspec.field(default_factory=dict)
    residuals: dict[str, list[tuple[int, float]]] = msgspec.field(default_factory=dict)
    offsets: dict[str, tuple[float, ...]] = msgspec.field(default_factory=dict)
    scored_at: dict[str, int] = msgspec.field(default_factory=dict)
    handovers: list[tuple[int, float]] = msgspec.field(default_factory=list)
    handover: tuple[float, ...] = (0.0,) * len(LEVELS)
    handover_at: int = 0

    def copied(self) -> State:
        """A copy that costs microseconds."""
        return structs.replace(
            self,
            variants={label: copy(correction) for label, correction in self.variants.items()},
            models={model: copy(correction) for model, correction in self.models.items()},
            residuals={model: ring.copy() for model, ring in self.residuals.items()},
            offsets=self.offsets.copy(),
            scored_at=self.scored_at.copy(),
            handovers=self.handovers.copy(),
        )

    def moved(self, by_ns: int) -> State:
        """The same, learned so much later (ns)."""

        def later(corrections: dict[str, Correction]) -> dict[str, Correction]:
            return {
                name: structs.replace(correction, learned_at=correction.learned_at + by_ns)
                for name, correction in corrections.items()
            }

        return structs.replace(
            self,
            variants=later(self.variants),
            models=later(self.models),
            residuals={
                model: [(at + by_ns, value) for at, value in ring] for model, ring in self.residuals.items()
            },
            scored_at={model: at + by_ns for model, at in self.scored_at.items()},
            handovers=[(at + by_ns, waited_ns) for at, waited_ns in self.handovers],
            handover_at=self.handover_at + by_ns,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SoloConfig:
    """Settings of the solo predictor."""

    memory: float = 0.12
    """Weight of the newest observation in a correction (0..1)."""
    half_life_s: float = 10.0
    """Seconds without observations after which half of what was learned is forgotten."""
    learns: bool = True
    """Off: profile times only (for comparison)."""
    calibrates: bool = True
    """Off: upper quantiles keep the profile's spread around the corrected median (for comparison)."""


@dataclass(slots=True)
class _Prior:
    """What the profile says of a variant: log of the median span and log offsets of the quantiles."""

    median_ns: int
    sigma: float
    offsets: tuple[float, ...]
    slo_level: float


@dataclass(slots=True, kw_only=True)
class _Shared:
    """Cached of a model: trust in its correction, hand-over quantiles (ns), variants that these went into."""

    trust: float
    mean: float
    waited: float
    late: list[float]
    offsets: tuple[float, ...] | None
    variants: list[Variant] = field(default_factory=list)


@dataclass(slots=True)
class SoloPredictor:
    """Implements the `Predictor` and `Learner` ports; see the module's head."""

    profiles: ProfileTable
    config: SoloConfig = field(default_factory=SoloConfig)
    _state: State = field(default_factory=State)
    _priors: dict[Variant, _Prior] = field(default_factory=dict)
    _labels: dict[Variant, str] = field(default_factory=dict)
    _spans: dict[Variant, tuple[int, ...]] = field(default_factory=dict)
    _of_model: dict[str, _Shared] = field(default_factory=dict)
    _waits: dict[float, tuple[float, float, list[float]]] = field(default_factory=dict)
    """By `slo_level`: how far the hand-over is trusted, its median and how much later its quantiles are
    (ns)."""
    _smallest: dict[str, _Prior] = field(default_factory=dict)
    _cached_at: int = -DECAY_STEP_NS

    @property
    def version(self) -> int:
        return self._state.version

    # --- Predictor ------------------------------------------------------------------------------------

    def prior(self, variant: Variant) -> int:
        return self._prior(variant).median_ns

    def solo(self, variant: Variant, at: int) -> tuple[int, ...]:
        if not 0 <= at - self._cached_at < DECAY_STEP_NS:
            self._forget_cached()
            self._cached_at = at // DECAY_STEP_NS * DECAY_STEP_NS
        spans = self._spans.get(variant)
        if spans is None:
            of_model = self._of_model.get(variant.model)
            if of_model is None:
                of_model = self._of_model[variant.model] = self._shared(variant.model, self._cached_at)
            spans = self._spans[variant] = self._solo(variant, of_model, self._cached_at)
            of_model.variants.append(variant)
        return spans

    def _forget_cached(self, model: str | None = None) -> None:
        """Of one model, or of all."""
        if model is None:
            self._spans.clear()
            self._of_model.clear()
            self._waits.clear()
            return
        of_model = self._of_model.pop(model, None)
        if of_model is not None:
            for variant in of_model.variants:
                del self._spans[variant]

    def _shared(self, model: str, at: int) -> _Shared:
        """What all variants of a model share until something is learned of it or forgotten."""
        state = self._state
        prior = self._smallest_prior(model)
        correction = state.models.get(model)
        trust = 0.0 if correction is None else self._trust(correction, at)
        waited, late = self._handover(prior.slo_level, at)
        return _Shared(
            trust=trust,
            mean=0.0 if correction is None else trust * correction.mean,
            waited=waited,
            late=late,
            offsets=None if correction is None else state.offsets.get(model, prior.offsets),
        )

    def _handover(self, slo_level: float, at: int) -> tuple[float, list[float]]:
        """Median of the hand-over (ns), and by how much its quantiles are later."""
        trust = self._faded(at - self._state.handover_at)
        known = self._waits.get(slo_level)
        if known is None or known[0] != trust:
            handover = [trust * value for value in self._state.handover]
            handover.append(between(handover, slo_level))
            late = [value - handover[0] for value in handover]
            known = self._waits[slo_level] = trust, handover[0], late
        return known[1], known[2]

    def _solo(self, variant: Variant, of_model: _Shared, at: int) -> tuple[int, ...]:
        prior, learned, trust = self._prior(variant), of_model.offsets, of_model.trust
        median, offsets = float(prior.median_ns), prior.offsets
        if learned is not None:
            median *= math.exp(self._corrected(variant, of_model.mean, at))
            offsets = tuple([old + trust * (new - old) for old, new in zip(offsets, learned, strict=True)])
        middle = median + of_model.waited
        spans = [
            int(middle + math.hypot(median * math.expm1(offset), late))
            for offset, late in zip(offsets, of_model.late, strict=True)
        ]
        return _monotone(spans)

    def _corrected(self, variant: Variant, of_model: float, at: int) -> float:
        """Log correction of the run's median span: the variant's own, leaning on its model's."""
        of_variant = self._state.variants.get(self._label(variant))
        if of_variant is None:
            return of_model
        share = of_variant.n / (of_variant.n + 3.0)
        return of_model + share * (self._trust(of_variant, at) * of_variant.mean - of_model)

    def _expected_log_ratio(self, variant: Variant, at: int) -> float:
        correction = self._state.models.get(variant.model)
        if correction is None:
            return 0.0
        return self._corrected(variant, self._trust(correction, at) * correction.mean, at)

    def _label(self, variant: Variant) -> str:
        label = self._labels.get(variant)
        if label is None:
            label = self._labels[variant] = variant.label
        return label

    def predict(self, snapshot: Snapshot, candidates: Sequence[Candidate]) -> Forecast:
        baseline = [self._remaining(flight, snapshot) for flight in snapshot.in_flight]
        finish_at = []
        for candidate in candidates:
            left = self._left(candidate.variant.model, candidate.first_segment)
            spans = self.solo(candidate.variant, snapshot.at)
            finish_at.append([candidate.start_at + int(left * span) for span in spans])
        return Forecast(
            finish_at=finish_at,
            in_flight_finish_at=[baseline] * len(candidates),
            baseline_finish_at=baseline,
            version=self._state.version,
        )

    def _left(self, model: str, segment: int) -> float:
        """Share of the model's work from `segment` on; segments count alike (none was measured)."""
        n_segments = self.profiles.spec(model).n_segments
        return (n_segments - segment) / n_segments

    def _remaining(self, flight: InFlight, snapshot: Snapshot) -> list[int]:
        spans = self.solo(flight.variant, snapshot.at)
        begin = snapshot.at if flight.started_at is None else flight.started_at
        floor = snapshot.at + spans[0] // 50
        return [max(begin + span, floor) for span in spans]

    # --- Learner --------------------------------------------------------------------------------------

    def learn(self, observation: Observation) -> int | None:
        if not self.config.learns:
            return None
        if not possible(observation):
            self._state.n_refused += 1
            return None
        span = observation.ended_at - observation.started_at
        if observation.preempted:
            return None  # how much of the work was done is not known to this predictor
        variant, at, state = observation.variant, observation.ended_at, self._state
        whole = self._left(variant.model, observation.first_segment)
        prior_ns = whole * self._prior(variant).median_ns
        expected = self._expected_log_ratio(variant, observation.decided_at)
        log_ratio = math.log(span / prior_ns)
        of_model = state.models.setdefault(variant.model, Correction(learned_at=at))
        if self.config.calibrates:
            self._score(variant.model, of_model, at, log_ratio - expected)
        if not observation.staged:
            self._score_handover(at, observation.started_at - observation.decided_at)
        memory = self.config.memory
        of_model.learn(log_ratio, at, self._trust(of_model, at), memory)
        of_variant = state.variants.setdefault(self._label(variant), Correction(learned_at=at))
        of_variant.learn(log_ratio, at, self._trust(of_variant, at), memory)
        self._forget_cached(variant.model)
        state.version += 1
        return state.version

    def _score(self, model: str, of_model: Correction, at: int, residual: float) -> None:
        """Remember how far the run's span was from the median then predicted; now and then renew the
        quantiles. Residuals lose half their weight in `half_life_s`, so that one bad spell cannot shut a
        model out for longer than that, however few requests are let through."""
        state = self._state
        ring = state.residuals.setdefault(model, [])
        ring.append((at, residual))
        if len(ring) > WINDOW:
            del ring[0]
        due = at - state.scored_at.get(model, 0) >= NS_PER_S
        if of_model.n < 16 or of_model.n % 8 == 0 or due:
            state.scored_at[model] = at
            state.offsets[model] = self._learned_offsets(model, ring, at)

    def _score_handover(self, at: int, waited_ns: int) -> None:
        """Remember a hand-over; now and then renew the quantiles, in which no wait at all has the weight of
        `PRIOR_WEIGHT` hand-overs, so that a lone slow one at the start does not set them."""
        state = self._state
        state.handover_at = at
        state.handovers.append((at, float(waited_ns)))
        if len(state.handovers) > WINDOW:
            del state.handovers[0]
        if state.version % HANDOVER_EVERY == 0:
            half_life_ns = self.config.half_life_s * NS_PER_S
            weighted = [(value, 0.5 ** ((at - seen_at) / half_life_ns)) for seen_at, value in state.handovers]
            weighted.append((0.0, PRIOR_WEIGHT))
            state.handover = tuple(weighted_quantiles(weighted, LEVELS))
            self._forget_cached()

    def loaded(self, spec: ModelSpec, profiles: Sequence[SoloProfile]) -> None:
        state, name = self._state, spec.name
        self.profiles.renew(spec, profiles)
        for learned in (state.models, state.residuals, state.offsets, state.scored_at):
            learned.pop(name, None)
        for variant in [variant for variant in self._priors if variant.model == name]:
            del self._priors[variant]
        for label in {variant.label for variant in spec.variants()}:
            state.variants.pop(label, None)
        self._smallest.pop(name, None)
        self._forget_cached(name)

    def state(self) -> bytes:
        return msgspec.msgpack.encode(self._state)

    def restore(self, state: bytes) -> None:
        try:
            decoded = msgspec.msgpack.decode(state, type=State)
        except msgspec.MsgspecError as error:
            raise ValueError(f"the learned state cannot be read: {error}") from error
        self.take(decoded)

    def copied(self) -> State:
        """A copy of what is learned, for microseconds."""
        return self._state.copied()

    def take(self, state: State) -> None:
        """Take over a state and keep it. Raises ValueError when it cannot be used."""
        if state.format != STATE_FORMAT:
            raise ValueError(
                f"the learned state has format {state.format}, this version reads {STATE_FORMAT}"
            )
        self._state = state
        self._forget_cached()

    # --- inside ---------------------------------------------------------------------------------------

    def _trust(self, correction: Correction, at: int) -> float:
        return self._faded(at - correction.learned_at)

    def _faded(self, idle_ns: int) -> float:
        """How much of what was learned is still believed after a time without observations (0..1)."""
        if idle_ns <= NS_PER_S:
            return 1.0
        return float(0.5 ** ((idle_ns - NS_PER_S) / NS_PER_S / self.config.half_life_s))

    def _prior(self, variant: Variant) -> _Prior:
        prior = self._priors.get(variant)
        if prior is None:
            prior = self._priors[variant] = self._make_prior(variant)
        return prior

    def _smallest_prior(self, model: str) -> _Prior:
        prior = self._smallest.get(model)
        if prior is None:
            prior = self._smallest[model] = self._prior(self.profiles.spec(model).variants()[0])
        return prior

    def _make_prior(self, variant: Variant) -> _Prior:
        spec = self.profiles.spec(variant.model)
        levels = (*LEVELS, spec.slo_percentile)
        try:
            profile = self.profiles.solo(variant)
        except KeyError:
            median_ns, sigma = self._unprofiled(spec, variant), UNPROFILED_SIGMA
        else:
            median_ns = profile.median_ns
            sigma = min(0.5, max(0.03, profile.spread_ns / profile.median_ns))
        offsets = tuple(sigma * standard_normal(level) for level in levels)
        return _Prior(median_ns, sigma, offsets, spec.slo_percentile)

    def _unprofiled(self, spec: ModelSpec, variant: Variant) -> int:
        """Median of the nearest measured variant, scaled by rows and axis sizes."""
        size = variant.rows * math.prod(length for _, length in variant.axes)
        best: tuple[float, int] | None = None
        for other in spec.variants():
            try:
                profile = self.profiles.solo(other)
            except KeyError:
                continue
            other_size = other.rows * math.prod(length for _, length in other.axes)
            distance = abs(math.log(size / other_size))
            if best is None or distance < best[0]:
                best = (distance, int(profile.median_ns * size / other_size))
        return UNPROFILED_NS if best is None else max(1, best[1])

    def _learned_offsets(self, model: str, ring: list[tuple[int, float]], at: int) -> tuple[float, ...]:
        """Log offsets of the quantiles from the weighted residuals, the profile's spread counted in."""
        spec = self.profiles.spec(model)
        levels = (*LEVELS, spec.slo_percentile)
        prior = self._smallest_prior(model).offsets
        half_life_ns = self.config.half_life_s * NS_PER_S
        weighted = [(value, 0.5 ** ((at - seen_at) / half_life_ns)) for seen_at, value in ring]
        weighted += [(offset, PRIOR_WEIGHT / len(PRIOR_GRID)) for offset in self._prior_residuals(model)]
        learned = [max(0.0, value) for value in weighted_quantiles(weighted, levels)]
        learned[0] = prior[0]
        return tuple(learned)

    def _prior_residuals(self, model: str) -> list[float]:
        """Residuals that the profile alone would make one expect, on a grid of levels."""
        sigma = self._smallest_prior(model).sigma
        return [sigma * z for z in PRIOR_GRID]


def possible(observation: Observation) -> bool:
    """Whether the instants are finite and in order and there was anything to run."""
    decided, started, ended = observation.decided_at, observation.started_at, observation.ended_at
    in_order = decided <= started < ended  # false where one is not a number
    return in_order and math.isfinite(ended) and observation.first_segment < observation.end_segment


def _monotone(spans: list[int]) -> tuple[int, ...]:
    """Make the fixed levels non-descending (the last column keeps its own level)."""
    for i in range(1, len(spans) - 1):
        if spans[i] < spans[i - 1]:
            spans[i] = spans[i - 1]
    if spans[-1] < spans[0]:
        spans[-1] = spans[0]
    return tuple(spans)

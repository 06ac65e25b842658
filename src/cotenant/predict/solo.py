"""Solo profile times an online correction, with upper quantiles: the first predictor, and a baseline.

How this works. The median span of a variant is its profiled median times exp(correction). The correction is
an exponentially weighted mean of log(measured / profiled), kept per variant and per model; a variant with
little evidence leans on its model (shrinkage n / (n + 3)). Innovations are clipped at 4 robust sigma and
counted. Upper quantiles add the empirical quantiles of the last residuals of the model, scored against what
was issued at dispatch. Corrections and widened bounds decay to the prior with a half-life of 10 s without
observations, so that pessimism cannot confirm itself. Co-runners are not modelled: their effect is in the
correction, on average. It fails where the mix of co-runners changes quickly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from cotenant.domain import LEVELS, NS_PER_S, Candidate, InFlight, ModelSpec, Observation, Snapshot, Variant
from cotenant.ports import Forecast, ProfileReader

STATE_FORMAT = 1
CLIP_SIGMAS = 4.0
WINDOW = 200
PRIOR_WEIGHT = 40
"""Pseudo-residuals that the profile's own spread stands for."""
UNPROFILED_NS = 10_000_000
"""Median assumed for a variant of a model of which nothing was measured (ns)."""
DECAY_STEP_NS = 50_000_000
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
    residuals: dict[str, list[float]] = msgspec.field(default_factory=dict)
    offsets: dict[str, tuple[float, ...]] = msgspec.field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SoloConfig:
    """Settings of the solo predictor."""

    memory: float = 0.12
    """Weight of the newest observation in a correction (0..1)."""
    half_life_s: float = 10.0
    """Seconds without observations after which half of what was learned is forgotten."""
    learns: bool = True
    """Off: profile times only (for comparison)."""


@dataclass(slots=True)
class _Prior:
    """What the profile says of a variant: log of the median span and log offsets of the quantiles."""

    median_ns: int
    offsets: tuple[float, ...]


@dataclass(slots=True)
class SoloPredictor:
    """Implements the `Predictor` and `Learner` ports; see the module's head."""

    profiles: ProfileReader
    config: SoloConfig = field(default_factory=SoloConfig)
    _state: State = field(default_factory=State)
    _priors: dict[Variant, _Prior] = field(default_factory=dict)
    _cache: dict[str, dict[Variant, tuple[int, ...]]] = field(default_factory=dict)
    _cache_slot: int = -1

    @property
    def version(self) -> int:
        return self._state.version

    # --- Predictor ------------------------------------------------------------------------------------

    def prior(self, variant: Variant) -> int:
        return self._prior(variant).median_ns

    def solo(self, variant: Variant, at: int) -> tuple[int, ...]:
        slot = at // DECAY_STEP_NS
        if slot != self._cache_slot:
            self._cache.clear()
            self._cache_slot = slot
        spans = self._cache.setdefault(variant.model, {}).get(variant)
        if spans is None:
            spans = self._cache[variant.model][variant] = self._solo(variant, slot * DECAY_STEP_NS)
        return spans

    def _solo(self, variant: Variant, at: int) -> tuple[int, ...]:
        prior, state = self._prior(variant), self._state
        of_model = state.models.get(variant.model)
        log_ratio, trust = 0.0, 0.0
        if of_model is not None:
            trust = self._trust(of_model, at)
            log_ratio = trust * of_model.mean
            of_variant = state.variants.get(variant.label)
            if of_variant is not None:
                share = of_variant.n / (of_variant.n + 3.0)
                log_ratio += share * (self._trust(of_variant, at) * of_variant.mean - log_ratio)
        learned = state.offsets.get(variant.model, prior.offsets)
        median = prior.median_ns * math.exp(log_ratio)
        offsets = [old + trust * (new - old) for old, new in zip(prior.offsets, learned, strict=True)]
        return tuple(_monotone([int(median * math.exp(offset)) for offset in offsets]))

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
        span = observation.ended_at - observation.started_at
        issued = observation.predictions[0]
        predicted = issued.finish_at[0] - issued.issued_at
        if span <= 0 or predicted <= 0 or not self.config.learns:
            self._state.n_refused += span <= 0 or predicted <= 0
            return None
        variant, at, state = observation.variant, observation.ended_at, self._state
        residual = math.log((observation.ended_at - issued.issued_at) / predicted)
        ring = state.residuals.setdefault(variant.model, [])
        ring.append(residual)
        if len(ring) > WINDOW:
            del ring[0]
        whole = self._left(variant.model, observation.first_segment)
        if observation.segment_ended_at and len(observation.segment_ended_at) < (
            observation.end_segment - observation.first_segment
        ):
            return None  # preempted: how much of the work it was is not known to this predictor
        log_ratio = math.log(span / (whole * self._prior(variant).median_ns))
        memory = self.config.memory
        of_model = state.models.setdefault(variant.model, Correction(learned_at=at))
        of_model.learn(log_ratio, at, self._trust(of_model, at), memory)
        of_variant = state.variants.setdefault(variant.label, Correction(learned_at=at))
        of_variant.learn(log_ratio, at, self._trust(of_variant, at), memory)
        if of_model.n < 16 or of_model.n % 8 == 0:
            state.offsets[variant.model] = self._learned_offsets(variant.model, ring)
        self._cache.pop(variant.model, None)
        state.version += 1
        return state.version

    def state(self) -> bytes:
        return msgspec.msgpack.encode(self._state)

    def restore(self, state: bytes) -> None:
        try:
            decoded = msgspec.msgpack.decode(state, type=State)
        except msgspec.MsgspecError as error:
            raise ValueError(f"the learned state cannot be read: {error}") from error
        if decoded.format != STATE_FORMAT:
            raise ValueError(
                f"the learned state has format {decoded.format}, this version reads {STATE_FORMAT}"
            )
        self._state = decoded
        self._cache.clear()

    # --- inside ---------------------------------------------------------------------------------------

    def _trust(self, correction: Correction, at: int) -> float:
        idle_s = max(0, at - correction.learned_at) / NS_PER_S
        return float(0.5 ** (max(0.0, idle_s - 1.0) / self.config.half_life_s))

    def _prior(self, variant: Variant) -> _Prior:
        prior = self._priors.get(variant)
        if prior is None:
            prior = self._priors[variant] = self._make_prior(variant)
        return prior

    def _make_prior(self, variant: Variant) -> _Prior:
        spec = self.profiles.spec(variant.model)
        levels = (*LEVELS, spec.slo_percentile)
        try:
            profile = self.profiles.solo(variant)
        except KeyError:
            return _Prior(self._unprofiled(spec, variant), tuple(_normal_offset(p, 0.2) for p in levels))
        sigma = min(0.5, max(0.03, profile.spread_ns / profile.median_ns))
        return _Prior(profile.median_ns, tuple(_normal_offset(level, sigma) for level in levels))

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

    def _learned_offsets(self, model: str, ring: list[float]) -> tuple[float, ...]:
        """Log offsets of the quantiles from the last residuals, the profile's spread counted in."""
        spec = self.profiles.spec(model)
        levels = (*LEVELS, spec.slo_percentile)
        prior = self._prior(spec.variants()[0]).offsets
        weight = len(ring) / (len(ring) + PRIOR_WEIGHT)
        ordered = sorted(ring)
        offsets = [
            max(0.0, weight * _quantile(ordered, level) + (1.0 - weight) * before)
            for level, before in zip(levels, prior, strict=True)
        ]
        return (0.0, *offsets[1:])


def _monotone(spans: list[int]) -> list[int]:
    """Make the fixed levels non-descending (the last column keeps its own level)."""
    fixed = spans[:-1]
    for i in range(1, len(fixed)):
        fixed[i] = max(fixed[i], fixed[i - 1])
    return [*fixed, max(spans[-1], fixed[0])]


def _quantile(ordered: list[float], level: float) -> float:
    """Empirical quantile with the conservative rank ceil(level * (n + 1))."""
    rank = math.ceil(level * (len(ordered) + 1)) - 1
    return ordered[min(len(ordered) - 1, max(0, rank))]


def _normal_offset(level: float, sigma: float) -> float:
    """Log offset of a log-normal quantile (Acklam-free: a few fixed levels by bisection of erf)."""
    low, high = -8.0, 8.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        if 0.5 * (1.0 + math.erf(middle / math.sqrt(2.0))) < level:
            low = middle
        else:
            high = middle
    return sigma * low

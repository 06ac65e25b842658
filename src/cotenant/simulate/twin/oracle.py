"""The predictor that asks the twin itself: the bound of what any model of slowdown can reach, on a twin.

It knows the true state of the device and the law, but not the noise of kernels that have not begun, nor who
will come. What that leaves open it learns as the others do: log offsets around its median from the same
calibrator, by model and number of co-runners (`margins` off: the spread of the noise alone, as if nobody ever
joined; so it answers too where a snapshot says nothing of the load: nobody else will join). `screen` answers
`solo`, which policies plan with whatever will run beside; without it that is the span alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec

from cotenant.domain import (
    LEVELS,
    Candidate,
    InFlight,
    ModelSpec,
    Observation,
    Snapshot,
    SoloProfile,
    Variant,
)
from cotenant.ports import Forecast
from cotenant.predict.calibrate import Calibrator, CalibratorState, Offsets
from cotenant.predict.quantiles import standard_normal
from cotenant.predict.solo import SoloPredictor
from cotenant.predict.zoo.margins import finish, remaining
from cotenant.simulate.twin.executor import TwinDevice
from cotenant.simulate.twin.what_if import HANDOVER_NS

DEFAULT_LEVEL = 0.99

Rows = list[list[int]]
"""Quantiles of ends (ns): a row per run."""


class _State(msgspec.Struct):
    """All that is learned, as it is stored."""

    version: int
    calibrator: CalibratorState
    screen: bytes


class TwinOracle:
    """Implements the `Predictor` and `Learner` ports. Good for the executor that it was made with, at the
    present instant only."""

    name = "oracle"

    def __init__(
        self,
        device: TwinDevice,
        specs: Sequence[ModelSpec],
        *,
        margins: bool = True,
        screen: SoloPredictor | None = None,
    ) -> None:
        self._device, self._margins, self._screen = device, margins, screen
        self.screens = screen is not None
        """Whether `solo` is what the screen says."""
        self._levels: dict[str, float] = {}
        self._sigma = device.noise.run_sigma + 0.1 * device.noise.kernel_sigma
        self._noises: dict[str, Offsets] = {}
        self._alone: dict[Variant, tuple[int, ...]] = {}
        self._calibrator = Calibrator()
        self._version = 0
        for spec in specs:
            self._declare(spec.name, spec.slo_percentile)

    @property
    def version(self) -> int:
        return self._version

    # --- Predictor ------------------------------------------------------------------------------------

    def solo(self, variant: Variant, at: int) -> Sequence[int]:
        if self.screens and self._screen is not None:
            return self._screen.solo(variant, at)
        spans = self._alone.get(variant)
        if spans is None:
            span = HANDOVER_NS + self.prior(variant)
            spans = tuple(int(span * math.exp(offset)) for offset in self._noise(variant.model))
            self._alone[variant] = spans
        return spans

    def prior(self, variant: Variant) -> int:
        return int(self._device.programs.of[variant].solo_ns)

    def predict(self, snapshot: Snapshot, candidates: Sequence[Candidate]) -> Forecast:
        found = self._device.truth(candidates, snapshot.in_flight)
        flights, at = snapshot.in_flight, snapshot.at
        spans = [max(1.0, end - at) for end in found.candidate_end_at]
        n, known = len(flights), snapshot.load is None
        return Forecast(
            finish_at=[
                finish(at, span, self._offsets(candidate.variant.model, n, at, known))
                for candidate, span in zip(candidates, spans, strict=True)
            ],
            in_flight_finish_at=[self._rows(flights, ends, at, known) for ends in found.beside],
            baseline_finish_at=self._rows(flights, found.baseline, at, known),
            version=self._version,
            features=[(span,) for span in spans],
        )

    def _rows(
        self, flights: Sequence[InFlight], ends: Mapping[int, float], at: int, known: bool
    ) -> list[list[int]]:
        n = len(flights) - 1
        return [
            remaining(
                at,
                max(0.0, ends[flight.dispatch_id] - at),
                at - flight.decided_at,
                self._offsets(flight.variant.model, n, at, known),
            )
            for flight in flights
        ]

    def _offsets(self, model: str, n_beside: int, at: int, known: bool) -> Offsets:
        if known or not self._margins:
            return self._noise(model)
        if model not in self._levels:
            self._declare(model, DEFAULT_LEVEL)
        return self._calibrator.offsets((model, n_beside), at)

    def _noise(self, model: str) -> Offsets:
        """Log quantiles of the noise of a run."""
        found = self._noises.get(model)
        if found is None:
            levels = (*LEVELS, self._levels.get(model, DEFAULT_LEVEL))
            a, b, c, d, e = (self._sigma * standard_normal(level) for level in levels)
            found = self._noises[model] = a, b, c, d, e
        return found

    def _declare(self, model: str, level: float) -> None:
        self._levels[model] = level
        self._noises.pop(model, None)
        self._alone.clear()
        self._calibrator.declare(model, max(0.01, self._sigma), level)

    # --- Learner --------------------------------------------------------------------------------------

    def learn(self, observation: Observation) -> int | None:
        if self._screen is not None:
            self._screen.learn(observation)
        done = len(observation.segment_ended_at)
        if not self._margins or not observation.predictions:
            return None
        if 0 < done < observation.end_segment - observation.first_segment:
            return None  # preempted: what was issued was about the whole
        issued = observation.predictions[0]
        if len(issued.features) != 1 or observation.ended_at <= issued.issued_at:
            return None
        base = issued.features[0]
        a, b, c, d, e = (math.log(max(1.0, end - issued.issued_at) / base) for end in issued.finish_at)
        actual = math.log((observation.ended_at - issued.issued_at) / base)
        model = observation.variant.model
        self._calibrator.learn((model, issued.corunners), actual, (a, b, c, d, e), observation.ended_at)
        self._version += 1
        return self._version

    def loaded(self, spec: ModelSpec, profiles: Sequence[SoloProfile]) -> None:
        if self._screen is not None:
            self._screen.loaded(spec, profiles)
        self._calibrator.forget(spec.name)
        self._declare(spec.name, spec.slo_percentile)

    def state(self) -> bytes:
        screen = b"" if self._screen is None else self._screen.state()
        return msgspec.json.encode(_State(self._version, self._calibrator.state(), screen))

    def restore(self, state: bytes) -> None:
        try:
            found = msgspec.json.decode(state, type=_State)
        except msgspec.MsgspecError as error:
            raise ValueError(f"not a state of the oracle: {error}") from error
        self._calibrator.restore(found.calibrator)
        if self._screen is not None and found.screen:
            self._screen.restore(found.screen)
        self._version = found.version

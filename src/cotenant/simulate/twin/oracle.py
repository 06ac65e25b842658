"""The predictor that asks the twin itself: what any predictor of the present could reach, on a twin.

It knows the true state of the device and the law, and the spread of the noise, but not the noise of kernels
that have not begun, nor who will come. Upper quantiles are those of the noise of a run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

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
from cotenant.predict.quantiles import standard_normal
from cotenant.simulate.twin.executor import TwinDevice
from cotenant.simulate.twin.what_if import HANDOVER_NS

DEFAULT_LEVEL = 0.99


class TwinOracle:
    """Implements the `Predictor` and `Learner` ports; learns nothing. Good for the executor that it was made
    with, at the present instant only."""

    name = "oracle"

    def __init__(self, device: TwinDevice, specs: Sequence[ModelSpec]) -> None:
        self._device = device
        self._levels = {spec.name: spec.slo_percentile for spec in specs}
        self._sigma = device.noise.run_sigma + 0.1 * device.noise.kernel_sigma
        self._factors: dict[float, tuple[float, ...]] = {}

    @property
    def version(self) -> int:
        return 0

    # --- Predictor ------------------------------------------------------------------------------------

    def solo(self, variant: Variant, at: int) -> Sequence[int]:
        span = HANDOVER_NS + self.prior(variant)
        return [int(span * factor) for factor in self._quantiles(variant)]

    def prior(self, variant: Variant) -> int:
        return int(self._device.programs.of[variant].solo_ns)

    def predict(self, snapshot: Snapshot, candidates: Sequence[Candidate]) -> Forecast:
        found = self._device.truth(candidates, snapshot.in_flight)
        flights = snapshot.in_flight
        return Forecast(
            finish_at=[
                self._row(candidate.variant, max(snapshot.at, candidate.start_at), end)
                for candidate, end in zip(candidates, found.candidate_end_at, strict=True)
            ],
            in_flight_finish_at=[self._rows(flights, ends, snapshot.at) for ends in found.beside],
            baseline_finish_at=self._rows(flights, found.baseline, snapshot.at),
            version=0,
        )

    def _rows(self, flights: Sequence[InFlight], ends: Mapping[int, float], at: int) -> list[list[int]]:
        return [self._row(flight.variant, at, ends[flight.dispatch_id]) for flight in flights]

    def _row(self, variant: Variant, at: int, end: float) -> list[int]:
        """Quantiles of an end that is expected at `end`: what is left from `at` on is uncertain."""
        left = max(0.0, end - at)
        return [at + math.ceil(left * factor) for factor in self._quantiles(variant)]

    def _quantiles(self, variant: Variant) -> tuple[float, ...]:
        level = self._levels.get(variant.model, DEFAULT_LEVEL)
        found = self._factors.get(level)
        if found is None:
            found = self._factors[level] = tuple(
                math.exp(self._sigma * standard_normal(one)) for one in (*LEVELS, level)
            )
        return found

    # --- Learner --------------------------------------------------------------------------------------

    def learn(self, observation: Observation) -> int | None:
        return None

    def loaded(self, spec: ModelSpec, profiles: Sequence[SoloProfile]) -> None:
        self._levels[spec.name] = spec.slo_percentile
        self._factors.clear()

    def state(self) -> bytes:
        return b"{}"

    def restore(self, state: bytes) -> None:
        if state != b"{}":
            raise ValueError("the oracle has no learned state; expected what its own `state` gave")

"""Quantiles of the baselines, in one place: the calibrator around their median, hand-over included.

Baselines publish points; so that they are not judged by a margin nobody tuned, each gets the same adaptive
offsets as the fluid predictor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from cotenant.domain import Observation
from cotenant.predict.calibrate import Calibrator, CalibratorState, Offsets
from cotenant.predict.handover import Handover

SIGMA = 0.2
"""Spread (log) of spans before anything was seen."""
LEVEL = 0.99
"""The fifth level."""


class MarginsState(msgspec.Struct):
    """All that is learned, as it is stored."""

    calibrator: CalibratorState
    handover: Handover


class Margins:
    """Log offsets by (model, number beside it), and how long a dispatch waits for its start."""

    def __init__(self) -> None:
        self._calibrator, self._handover = Calibrator(), Handover()
        self._declared: set[str] = set()

    def handover_ns(self, at: int) -> float:
        """Median wait between decision and start on an idle lane (ns)."""
        return self._handover.at(at)

    def offsets(self, model: str, n_beside: int, at: int) -> Offsets:
        """Log offsets of the median, ascending in the level."""
        self._declare(model)
        return self._calibrator.offsets((model, max(0, n_beside)), at)

    def _declare(self, model: str) -> None:
        if model not in self._declared:
            self._declared.add(model)
            self._calibrator.declare(model, SIGMA, LEVEL)

    def learn(self, observation: Observation, scale: float = 1.0) -> None:
        """Take in a finished run and what was issued for it; `scale`: its relative spread, by which logs are
        divided."""
        if not observation.staged:
            self._handover.learn(observation.started_at - observation.decided_at, observation.ended_at)
        if not observation.predictions or not observation.predictions[0].features:
            return
        issued = observation.predictions[0]
        base = issued.features[0]
        if base <= 0:
            return
        a, b, c, d, e = (
            math.log(max(1.0, finish_at - issued.issued_at) / base) / scale for finish_at in issued.finish_at
        )
        actual = math.log(max(1.0, float(observation.ended_at - issued.issued_at)) / base) / scale
        model = observation.variant.model
        self._declare(model)
        group = (model, issued.corunners)
        self._calibrator.learn(group, actual, (a, b, c, d, e), observation.ended_at)

    def state(self) -> MarginsState:
        """A copy of what is learned."""
        return MarginsState(self._calibrator.state(), msgspec.structs.replace(self._handover))

    def restore(self, state: MarginsState) -> None:
        """Take over a stored state. Raises ValueError when it cannot be used."""
        self._calibrator.restore(state.calibrator)
        self._handover = msgspec.structs.replace(state.handover)


def finish(at: int, span: float, offsets: Sequence[float]) -> list[int]:
    """Quantiles of the finish of what begins now."""
    return [at + max(1, int(span * math.exp(offset))) for offset in offsets]


def remaining(at: int, span: float, elapsed: int, offsets: Sequence[float]) -> list[int]:
    """Quantiles of the finish of what is in flight, `span` ns from now in the median. Its whole span has the
    spread that the offsets say; of a sum of independent parts the rest has the square root of its share."""
    spread = math.sqrt(max(0.0, span * (span + max(0, elapsed))))
    return [at + max(1, int(span + spread * math.expm1(offset))) for offset in offsets]

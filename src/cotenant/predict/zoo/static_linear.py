"""gpulet's regression as a predictor to schedule by: fitted once, before the run, and never again.

How this works. Slowdown = c . (own demand, others' demand summed) + constant, at least 1, of whole models
(`linear.py`), by least squares on co-runs that were measured on the device beforehand; who is beside a run at
an instant counts as if there to its end (`at_dispatch.py`). That is the median. Upper
quantiles are those of the fit's own residuals, in proportion: a fixed margin, the same for every model that
has anybody beside it; alone, what the profile says holds. Nothing is learned, and nobody is expected to join.

Choose it to see what prediction as published is worth to a scheduler (Choi et al., ATC 2022, and what is
built on it). Fails as `linear` does, and ages: what it was not fitted on it never gets to know. Integrated
over the overlap (`in_fluid.py`) the same fit is the worse to schedule by where slowdowns are large: what it
underrates then counts in part only, where counting it in full makes up for some of that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from cotenant.domain import LEVELS, ModelSpec, Observation, SoloProfile, Variant
from cotenant.ports import LaneInfo, ProfileTable
from cotenant.predict.calibrate import Offsets
from cotenant.predict.quantiles import standard_normal
from cotenant.predict.solo import SoloConfig, SoloPredictor, possible
from cotenant.predict.zoo.at_dispatch import AtDispatch
from cotenant.predict.zoo.linear import Linear
from cotenant.predict.zoo.margins import LEVEL, Margins
from cotenant.predict.zoo.seam import Array, Row, Stored, array_of, decoded, presence, stored
from cotenant.profile.features import FeatureTable

FORMAT = 1
SIGMA = 0.2
"""Spread (log) of co-runs before anything was fitted, and of runs alone where no profile tells."""


class _State(msgspec.Struct):
    """All that was fitted, as it is stored."""

    format: int
    name: str
    version: int
    weights: bytes
    errors: Stored
    handover_ns: float


class FixedMargins(Margins):
    """`errors`: log(measured / fitted) of the co-runs of the fit, ascending (n); `handover`: median wait for
    a start (ns). `profiles` tells the spread of what runs alone, and the models' own levels."""

    def __init__(self, profiles: ProfileTable | None) -> None:
        super().__init__()
        self._profiles = profiles
        self._alone = None if profiles is None else SoloPredictor(profiles, SoloConfig(learns=False))
        self.errors: Array = np.zeros(0)
        self.handover = 0.0
        self._known: dict[tuple[str, bool], Offsets] = {}

    def take(self, errors: Array, handover: float) -> None:
        """From now on these."""
        self.errors, self.handover = errors, handover
        self._known.clear()

    def handover_ns(self, at: int) -> float:
        return self.handover

    def offsets(self, model: str, n_beside: int, at: int) -> Offsets:
        key = model, n_beside > 0
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._beside(model) if n_beside > 0 else self._by_profile(model)
        return found

    def solo(self, variant: Variant) -> tuple[int, ...] | None:
        """Quantiles of the span alone (ns), without hand-over; None where there are no profiles."""
        return None if self._alone is None else self._alone.solo(variant, 0)

    def _levels(self, model: str) -> tuple[float, ...]:
        own = LEVEL if self._profiles is None else self._profiles.spec(model).slo_percentile
        return (*LEVELS, own)

    def _beside(self, model: str) -> Offsets:
        def offset(level: float) -> float:
            if not len(self.errors):
                return SIGMA * standard_normal(level)
            return max(0.0, float(np.quantile(self.errors, level)))

        _, b, c, d, e = map(offset, self._levels(model))
        return 0.0, b, c, d, e

    def _by_profile(self, model: str) -> Offsets:
        if self._profiles is None:
            a, b, c, d, e = (SIGMA * standard_normal(level) for level in self._levels(model))
            return a, b, c, d, e
        spans = self.solo(self._profiles.spec(model).variants()[0])
        assert spans is not None
        a, b, c, d, e = (math.log(max(1, span) / max(1, spans[0])) for span in spans)
        return a, b, c, d, e

    def loaded(self, spec: ModelSpec, profiles: Sequence[SoloProfile]) -> None:
        """A model was loaded anew."""
        if self._alone is not None:
            self._alone.loaded(spec, profiles)
        self._known.clear()


class StaticLinear(AtDispatch):
    """Implements the `Predictor` and `Learner` ports, and `StudyPredictor`. `fit` before it is asked; what it
    is taught later changes nothing."""

    def __init__(
        self,
        features: FeatureTable,
        lanes: Sequence[LaneInfo],
        profiles: ProfileTable | None = None,
    ) -> None:
        super().__init__("static_linear", features, lanes, lambda table: Linear(table, everything=True))
        self.features = features
        self._fixed = FixedMargins(profiles)
        self.margins = self._fixed

    # --- Predictor ------------------------------------------------------------------------------------

    def prior(self, variant: Variant) -> int:
        """See `ports.Predictor.prior`."""
        return int(self.features.of(variant).solo_ns)

    def solo(self, variant: Variant, at: int) -> tuple[int, ...]:
        """See `ports.Predictor.solo`: by profile, and the hand-over."""
        handover, spans = self._fixed.handover, self._fixed.solo(variant)
        if spans is None:
            median = self.features.of(variant).solo_ns
            offsets = self._fixed.offsets(variant.model, 0, at)
            return tuple(int(median * math.exp(offset) + handover) for offset in offsets)
        return tuple(int(span + handover) for span in spans)

    # --- fitting ----------------------------------------------------------------------------------------

    def fit(self, observations: Sequence[Observation]) -> None:
        """See `StudyPredictor.fit`."""
        super().fit(observations)
        rows = [row for o in observations if possible(o) and (row := self.workloads.row(o)) is not None]
        errors = [self._error(row) for row in rows if presence(row.others) > 0]
        waits = [o.started_at - o.decided_at for o in observations if not o.staged]
        self._fixed.take(np.sort(np.array(errors, np.float64)), float(np.median(waits)) if waits else 0.0)

    def _error(self, row: Row) -> float:
        return math.log(row.slowdown / self._model.slowdown(row.victim, row.others))

    # --- Learner --------------------------------------------------------------------------------------

    def learn(self, observation: Observation) -> None:
        """Nothing, ever."""
        if not possible(observation):
            self.n_refused += 1

    def loaded(self, spec: ModelSpec, profiles: Sequence[SoloProfile]) -> None:
        """See `ports.Learner.loaded`: until it is fitted anew the model has no demand."""
        self._fixed.loaded(spec, profiles)
        self.features.drop(spec.name)
        for profile in profiles:
            self.features.add(self.features.bare(profile.variant, float(profile.median_ns), profile.share))
        self.workloads.forget(spec.name)
        self._changed()

    def state(self) -> bytes:
        """See `ports.Learner.state`."""
        weights, errors = self._model.state(), stored(self._fixed.errors)
        found = _State(FORMAT, self.name, self.version, weights, errors, self._fixed.handover)
        return msgspec.msgpack.encode(found)

    def copied(self) -> Callable[[], bytes]:
        """The state; there is nothing in it that changes."""
        state = self.state()
        return lambda: state

    def restore(self, state: bytes, moved_ns: int = 0) -> None:
        """See `ports.Learner.restore`. `moved_ns`: there are no instants in it to be moved."""
        found = decoded(state, _State)
        if (found.format, found.name) != (FORMAT, self.name):
            raise ValueError(
                f"the learned state is of {found.name!r}, format {found.format}; expected {self.name!r}, "
                f"format {FORMAT}"
            )
        errors = array_of(found.errors)
        self._model.restore(found.weights)
        self._fixed.take(errors, found.handover_ns)
        self._changed()
        self.version = found.version

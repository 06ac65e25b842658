"""What is believed of how workloads slow each other down, and how a finished run changes it.

How this works. A workload (variant and share) beside another has

    log(slowdown - FLOOR) = bias + scale theta.phi(pair) + terms

phi are features of the pair (`pair_map.py`: a reduced Gaussian process over measured features); the terms
are scalars for the victim's model, the aggressor's, both together, the two workloads, and how their lanes
lie. Features carry what was never seen together; terms learn quickly what was. Excesses over 1 of several
co-runners add up, times a term for how many there are. A run's own pace has two more terms, of its model
and of the workload.

A run is credited to the sets that it really overlapped: the gradient of its log span is the mean of those
of the sets, weighted by the solo work done beside each. One step of an extended Kalman filter follows
(`estimator_kernels`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Protocol

import numpy as np

from cotenant.domain import Variant
from cotenant.ports import LaneInfo
from cotenant.predict import estimator_kernels as compiled
from cotenant.predict.estimator_kernels import RESIDUAL, SPREAD, Beliefs, Places
from cotenant.predict.overlap_kernels import MAX_CROWD, MAX_SEGMENTS
from cotenant.predict.overlap_kernels import pace as compiled_pace
from cotenant.predict.pair_rows import PairRows
from cotenant.predict.row_kernels import Array
from cotenant.predict.terms import Terms
from cotenant.predict.workloads import Known, WorkloadTables, merged
from cotenant.profile.features import FeatureTable, WorkloadFeatures

LOOSENED = 1.1
"""Factor on theta's standard deviations after a drift alarm; they never grow beyond the prior's, all in
all."""
UNKNOWN, ALONE, SHARED = range(3)
"""Relations of two lanes: not known, without and with common compute units; above, one for each pair of
lanes."""


class PairMap(Protocol):
    """Features of a pair of workloads, of a fixed number."""

    n_features: int
    bias: float
    scale: float
    noise: float
    """Variance of a log span that no feature explains."""

    def features(self, victim: WorkloadFeatures, aggressor: WorkloadFeatures) -> tuple[Array, float]:
        """phi (n_features), and the prior variance of theta.phi that they leave out."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimatorConfig:
    """How fast the estimator learns and how far from its prior it may go."""

    memory: float = 0.9995
    """Weight (0..1) that theta's evidence keeps at each step, in the direction seen."""
    least_noise: float = 0.02**2
    """Smallest variance of log spans that is believed."""
    clip_sigmas: float = 4.0
    """Innovations beyond so many standard deviations are cut to it, and counted."""
    pace_sigma: float = 0.15
    """Prior standard deviation of a model's pace (log); of a workload's, half of it."""
    pace_half_life_s: float = 10.0
    """Seconds after which half of a learned pace is forgotten when nothing is seen."""
    pair_sigma: float = 0.25
    """Prior standard deviation of the terms of a pair (log excess)."""
    pair_half_life_s: float = 120.0
    """Seconds after which half of a learned pair term is forgotten when it is not seen."""
    crowd_sigma: float = 0.3
    """Prior standard deviation of the log factor for two and more others."""
    modulation_sigma: float = 1.0
    """Prior standard deviation of the weight by which a pair's excess grows with the product of the two
    segments' demands for a resource, beyond that of their means."""
    shared_units: float = 1.2
    """Prior shift of the log excess of two runs on the same compute units, where lanes have units of their
    own."""


@dataclass(frozen=True, slots=True)
class Overlapped:
    """Who was beside a run: `n` entries from `first` on of `who` and `times`, as in `estimator_kernels`."""

    who: Array
    times: Array
    first: int
    n: int


@dataclass(slots=True)
class Estimator:
    """See the module's head. Deterministic in the calls that learn; asking changes nothing that is
    believed."""

    table: FeatureTable
    pair_map: PairMap
    lanes: Sequence[LaneInfo] = ()
    config: EstimatorConfig = field(default_factory=EstimatorConfig)
    version: int = 0
    n_clipped: int = 0
    noise: float = field(init=False)
    theta: Array = field(init=False)
    root: Array = field(init=False)
    terms: Terms = field(default_factory=Terms)
    tables: WorkloadTables = field(init=False)
    rows: PairRows = field(init=False)
    relations: Array = field(init=False)
    """Relation of any two lanes, one more of each for a lane that is not known (the last one)."""
    _known: dict[tuple[Variant, float], Known] = field(default_factory=dict)
    _by_index: list[Known] = field(default_factory=list)
    _crowd_slots: Array = field(init=False)
    _weight_slots: Array = field(init=False)
    _n_steps: int = 0
    _out: Array = field(default_factory=lambda: np.zeros(4))

    def __post_init__(self) -> None:
        n, config = self.pair_map.n_features, self.config
        self.theta, self.root = np.zeros(n), np.eye(n)
        self.noise = max(config.least_noise, self.pair_map.noise)
        self.tables = WorkloadTables(len(self.table.resources))
        self.rows = PairRows(n, self._fill_row)
        self.relations = self._relate(len(self.lanes))
        self._crowd_slots = np.full(MAX_CROWD + 1, -1, np.int64)
        for k in range(2, MAX_CROWD + 1):
            self._crowd_slots[k] = self.terms.slot(("crowd", k), config.crowd_sigma)
        names = self.table.resources
        self._weight_slots = np.array(
            [self.terms.slot(("modulation", name), config.modulation_sigma) for name in names], np.int64
        )

    # --- what is known of workloads and pairs -----------------------------------------------------------

    def workload(self, variant: Variant, share: float) -> Known:
        """What is kept of a workload. Raises KeyError for an unknown model."""
        known = self._known.get((variant, share))
        if known is None:
            known = self._known[variant, share] = self._make(self.table.of(variant, share))
            self._by_index.append(known)
        return known

    def _make(self, features: WorkloadFeatures) -> Known:
        n_resources = len(self.table.resources)
        parts = merged(features.segments, MAX_SEGMENTS)
        demand = np.nan_to_num(np.array([u for _, u in parts], np.float64).reshape(len(parts), n_resources))
        weights = np.array([weight for weight, _ in parts])
        config, model, label = self.config, features.variant.model, features.variant.label
        half_life = config.pace_half_life_s
        own = [
            self.terms.slot(("pace", model), config.pace_sigma, half_life),
            self.terms.slot(("pace", label, features.share), config.pace_sigma / 2, half_life),
        ]
        known = Known(
            index=len(self._by_index),
            features=features,
            label=label,
            n_segments=len(parts),
            segment_ns=weights * features.solo_ns,
            own=np.array(own, np.int64),
        )
        self.tables.put(known, demand)
        return known

    def get_ready(self) -> None:
        """Know every measured workload, and all pairs on different lanes as long as they are few, before
        anything waits for it. Believes nothing new."""
        known = [self.workload(entry.variant, entry.share) for entry in list(self.table)]
        for workload in known:
            self.pair_map.features(workload.features, workload.features)  # keeps what it needs of each side
        n, here = len(self.lanes), self.relations
        relations = {int(here[a, b]) for a in range(n) for b in range(n) if a != b}
        if len(known) ** 2 * len(relations) > self.rows.capacity // 4:
            return
        for relation in sorted(relations):
            for victim in known:
                self.rows.make([(relation, victim.index, aggressor.index) for aggressor in known])

    def lane(self, lane: int) -> int:
        """The lane, known to `relations` from now on."""
        if lane >= len(self.relations) - 1:
            self.relations = self._relate(lane + 1)
        return lane

    def _relate(self, n: int) -> Array:
        """Relations of `n` lanes."""
        found = np.zeros((n + 1, n + 1), np.int64)
        for a in range(n):
            for b in range(n):
                found[a, b] = self._relation(min(a, b), max(a, b))
        return found

    def _relation(self, lane: int, other: int) -> int:
        if other < len(self.lanes):
            units = set(self.lanes[lane].units), set(self.lanes[other].units)
            if all(units):
                return SHARED if units[0] & units[1] else ALONE
        return SHARED + 1 + 64 * min(lane, 63) + min(other, 63)

    def _fill_row(self, row: int, relation: int, victim: int, aggressor: int) -> None:
        v, a = self._by_index[victim], self._by_index[aggressor]
        rows, terms, config = self.rows, self.terms, self.config
        rows.phi[row], rows.rest[row] = self.pair_map.features(v.features, a.features)
        mine, theirs = v.features.variant.model, a.features.variant.model
        sigma, half_life = config.pair_sigma, config.pair_half_life_s
        workloads = ("workloads", v.label, v.features.share, a.label, a.features.share, relation)
        rows.slots[row] = (
            terms.slot(("victim", mine), sigma, half_life),
            terms.slot(("aggressor", theirs), sigma, half_life),
            terms.slot(("models", mine, theirs, relation), sigma, half_life),
            terms.slot(workloads, sigma / 2, half_life),
            terms.slot(("relation", relation), 2 * sigma, mean=self._prior_of(relation)),
        )

    def _prior_of(self, relation: int) -> float:
        return self.config.shared_units if relation == SHARED and self._has_own_units() else 0.0

    def _has_own_units(self) -> bool:
        return any(
            set(a.units).isdisjoint(b.units) for a in self.lanes for b in self.lanes if a.index != b.index
        )

    # --- what is believed ---------------------------------------------------------------------------------

    def pace(self, known: Known, at: int) -> float:
        """Factor on the solo span of a workload, whatever runs beside it."""
        return float(compiled_pace(self.terms.level, known.own, float(at)))

    @property
    def spread(self) -> float:
        """Standard deviation (log) that a run is believed to have around what is expected of it, given who
        was beside it."""
        return math.sqrt(self.noise)

    def step(self) -> float:
        """The number of a compiled step: within one, what pairs and terms say is computed once."""
        self._n_steps += 1
        return float(self._n_steps)

    @property
    def places(self) -> Places:
        """As compiled steps take it."""
        return self.rows.index, self.relations, self.rows.missing

    @property
    def beliefs(self) -> Beliefs:
        """As compiled steps take them."""
        rows, terms = self.rows, self.terms
        return (
            rows.phi, rows.rest, rows.slots, terms.level, self.theta, rows.notes, terms.notes,
            self._crowd_slots, self._weight_slots,
        )  # fmt: skip

    def work_done(
        self, known: Known, lane: int, beside: Overlapped, begin: int, until: int, at: int, first: int = 0
    ) -> tuple[float, float]:
        """Solo work (ns) that is expected to be done from `begin` to `until` beside others, from segment
        `first` on; and the variance of the log span that comes of not knowing what features say of them. The
        estimate with the least mean relative error lies below the median by as much, the spread being
        log-normal."""
        gradient, out = np.empty(len(self.theta)), self._out
        for n_before in count():
            n_missing = compiled.work_done(
                float(at), float(begin), float(until), known.index, self.lane(lane), first, beside.who,
                beside.times, beside.first, beside.n, self.tables.all, self.places, self.beliefs,
                self.pair_map.bias, self.pair_map.scale, self.step(), gradient, out,
            )  # fmt: skip
            if not n_missing:
                break
            self.rows.fill(n_missing, n_before)
        seen = gradient @ self.root
        return float(out[0]), float(seen @ seen + out[1])

    def begin_with(self, theta: Array, covariance: Array) -> None:
        """Start from what a fit has said."""
        self.theta = theta.copy()
        values, vectors = np.linalg.eigh(covariance)
        self.root = np.ascontiguousarray(vectors * np.sqrt(np.maximum(values, 1e-12)))
        self.version += 1

    # --- learning -----------------------------------------------------------------------------------------

    def learn(
        self, known: Known, lane: int, beside: Overlapped, begin: int, until: int, work: float, first: int = 0
    ) -> tuple[float, float]:
        """Take in a run of `work` solo ns, from segment `first` on, that took from `begin` to `until` beside
        others. Returns (log(measured / predicted given the overlap), its standard deviation as believed
        before)."""
        config, out = self.config, self._out
        for n_before in count():
            n_missing = compiled.learn(
                float(until), work, float(begin), float(until), known.index, self.lane(lane), first,
                beside.who, beside.times, beside.first, beside.n, self.tables.all, self.places, self.beliefs,
                self.root, self.pair_map.bias, self.pair_map.scale, self.step(), config.memory, self.noise,
                config.clip_sigmas, out,
            )  # fmt: skip
            if not n_missing:
                break
            self.rows.fill(n_missing, n_before)
        residual, spread = float(out[RESIDUAL]), float(out[SPREAD])
        limit = config.clip_sigmas * spread
        self.n_clipped += abs(residual) > limit
        kept = min(limit, abs(residual))
        self.noise += 0.005 * (1.2 * kept**2 - self.noise)
        self.noise = min(0.25, max(config.least_noise, self.noise))
        self.version += 1
        return residual, spread

    def forget(self, model: str) -> None:
        """A model was loaded anew: what was learned of it is its prior again."""
        self._known = {key: known for key, known in self._known.items() if key[0].model != model}
        self.rows.clear()
        self.terms.forget(model)
        self.version += 1

    def loosen(self, model: str) -> None:
        """The model's behaviour has changed: what was learned of it counts as little as at first, and so does
        what features say in general, by a part."""
        self.terms.loosen(model)
        trace = float((self.root**2).sum())
        self.root *= min(LOOSENED, max(1.0, math.sqrt(len(self.theta) / trace)))

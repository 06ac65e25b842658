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
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from cotenant.domain import NS_PER_S, Variant
from cotenant.ports import LaneInfo
from cotenant.predict import estimator_kernels as compiled
from cotenant.predict.estimator_kernels import (
    MAX_CROWD,
    MAX_SEGMENTS,
    MEAN,
    PRIOR_MEAN,
    PRIOR_VARIANCE,
    RESIDUAL,
    SPREAD,
    VARIANCE,
    Array,
)
from cotenant.profile.features import FeatureTable, WorkloadFeatures

MOST_ROWS = 4096
"""Pairs whose features are kept; beyond it they are made anew."""
TERMS_OF_PAIR = 5
LOOSENED = 1.1
"""Factor on theta's standard deviations after a drift alarm; they never grow beyond the prior's, all in
all."""
TERMS_OF_RUN = 2


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


@dataclass(slots=True)
class Known:
    """A workload as the estimator keeps it. `rows`: of the pairs in which it is the victim, by
    `relation << 32 | aggressor`."""

    index: int
    features: WorkloadFeatures
    n_segments: int
    segment_ns: Array
    own: Array
    rows: dict[int, int] = field(default_factory=dict)


class Tables:
    """Of all workloads, by index: segments (n x MAX_SEGMENTS solo spans, ns), demands (n x MAX_SEGMENTS x
    n_resources, NaN as 0) and their means, numbers of segments, terms of the pace."""

    def __init__(self, n_resources: int) -> None:
        self.segments = np.zeros((16, MAX_SEGMENTS))
        self.demands = np.zeros((16, MAX_SEGMENTS, n_resources))
        self.means = np.zeros((16, n_resources))
        self.n_segments = np.zeros(16, np.int64)
        self.own = np.zeros((16, TERMS_OF_RUN), np.int64)

    @property
    def all(self) -> tuple[Array, Array, Array, Array, Array]:
        """As compiled steps take them."""
        return self.segments, self.demands, self.means, self.n_segments, self.own

    def put(self, known: Known, demand: Array) -> None:
        """Fill the row of a workload."""
        i, n = known.index, known.n_segments
        if i >= len(self.segments):
            for name in ("segments", "demands", "means", "n_segments", "own"):
                setattr(self, name, _doubled(getattr(self, name)))
        self.segments[i, :n], self.demands[i, :n] = known.segment_ns, demand
        self.means[i] = known.segment_ns / known.segment_ns.sum() @ demand
        self.n_segments[i], self.own[i] = n, known.own


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
    level: Array = field(init=False)
    phi: Array = field(init=False)
    rest: Array = field(init=False)
    slots: Array = field(init=False)
    crowd_slots: Array = field(init=False)
    weight_slots: Array = field(init=False)
    _keys: dict[tuple[Hashable, ...], int] = field(default_factory=dict)
    _known: dict[tuple[Variant, float], Known] = field(default_factory=dict)
    _by_index: list[Known] = field(default_factory=list)
    tables: Tables = field(init=False)
    relations: list[int] = field(init=False)
    """Every relation that two lanes can have."""
    lane_relations: Array = field(init=False)
    """n_lanes x n_lanes: which of them."""
    n_rows: int = 0
    epoch: int = 0
    """Grows when the rows of pairs are made anew."""
    _relations: dict[tuple[int, int], int] = field(default_factory=dict)
    _names: list[tuple[Hashable, ...]] = field(default_factory=list)
    _out: Array = field(default_factory=lambda: np.zeros(4))

    def __post_init__(self) -> None:
        n = self.pair_map.n_features
        self.theta, self.root = np.zeros(n), np.eye(n)
        self.noise = max(self.config.least_noise, self.pair_map.noise)
        self.tables = Tables(len(self.table.resources))
        between = [[self.relation(a.index, b.index) for b in self.lanes] for a in self.lanes]
        self.relations = sorted({relation for row in between for relation in row})
        columns = [[self.relations.index(relation) for relation in row] for row in between]
        self.lane_relations = np.array(columns, np.int64).reshape(len(self.lanes), len(self.lanes))
        self.level = np.zeros((64, 6))
        self.phi, self.rest = np.zeros((64, n)), np.zeros(64)
        self.slots = np.zeros((64, TERMS_OF_PAIR), np.int64)
        self.crowd_slots = np.full(MAX_CROWD + 1, -1, np.int64)
        for k in range(2, MAX_CROWD + 1):
            slot = self._slot(("crowd", k), 0.0, self.config.crowd_sigma, math.inf)
            self.crowd_slots[k] = slot
        self.weight_slots = np.array(
            [
                self._slot(("modulation", name), 0.0, self.config.modulation_sigma, math.inf)
                for name in self.table.resources
            ],
            np.int64,
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
        config, model = self.config, features.variant.model
        pace = (config.pace_sigma, config.pace_half_life_s)
        own = [
            self._slot(("pace", model), 0.0, *pace),
            self._slot(("pace", features.variant.label, features.share), 0.0, pace[0] / 2, pace[1]),
        ]
        known = Known(
            index=len(self._by_index),
            features=features,
            n_segments=len(parts),
            segment_ns=weights * features.solo_ns,
            own=np.array(own, np.int64),
        )
        self.tables.put(known, demand)
        return known

    def relation(self, lane: int, other: int) -> int:
        """A number for how two lanes lie: 0 unknown, 1 apart, 2 on common units, else the pair of lanes."""
        key = (lane, other) if lane <= other else (other, lane)
        found = self._relations.get(key)
        if found is None:
            found = self._relations[key] = self._relate(*key)
        return found

    def _relate(self, lane: int, other: int) -> int:
        if lane < 0:
            return 0
        if max(lane, other) < len(self.lanes):
            units = set(self.lanes[lane].units), set(self.lanes[other].units)
            if all(units):
                return 1 + bool(units[0] & units[1])
        return 3 + 64 * min(lane, 63) + min(other, 63)

    def row(self, victim: Known, aggressor: Known, relation: int) -> int:
        """The row of a pair in `phi`, `rest` and `slots`."""
        key = relation << 32 | aggressor.index
        row = victim.rows.get(key)
        return self._new_row(key, victim, aggressor, relation) if row is None else row

    def _new_row(self, key: int, victim: Known, aggressor: Known, relation: int) -> int:
        if self.n_rows >= MOST_ROWS:
            self._clear_rows()
        row = victim.rows[key] = self.n_rows
        self.n_rows += 1
        if row >= len(self.phi):
            self.phi, self.rest, self.slots = (_doubled(a) for a in (self.phi, self.rest, self.slots))
        self.phi[row], self.rest[row] = self.pair_map.features(victim.features, aggressor.features)
        v, a = victim.features, aggressor.features
        models = (v.variant.model, a.variant.model)
        sigma, half_life = self.config.pair_sigma, self.config.pair_half_life_s
        self.slots[row] = [
            self._slot(("victim", models[0]), 0.0, sigma, half_life),
            self._slot(("aggressor", models[1]), 0.0, sigma, half_life),
            self._slot(("models", *models, relation), 0.0, sigma, half_life),
            self._slot(
                ("workloads", v.variant.label, v.share, a.variant.label, a.share, relation),
                0.0,
                sigma / 2,
                half_life,
            ),
            self._slot(("relation", relation), self._prior_of(relation), 2 * sigma, math.inf),
        ]
        return row

    def _clear_rows(self) -> None:
        for known in self._by_index:
            known.rows.clear()
        self.n_rows = 0
        self.epoch += 1

    def _prior_of(self, relation: int) -> float:
        return self.config.shared_units if relation == 2 and self._has_own_units() else 0.0

    def _has_own_units(self) -> bool:
        return any(
            set(a.units).isdisjoint(b.units) for a in self.lanes for b in self.lanes if a.index != b.index
        )

    def _slot(self, key: tuple[Hashable, ...], mean: float, sigma: float, half_life_s: float) -> int:
        slot = self._keys.get(key)
        if slot is None:
            slot = self._keys[key] = len(self._names)
            self._names.append(key)
            if slot >= len(self.level):
                self.level = _doubled(self.level)
            half_life = half_life_s * NS_PER_S if math.isfinite(half_life_s) else 1e30
            self.level[slot] = (mean, sigma**2, mean, sigma**2, 0.0, half_life)
        return slot

    # --- what is believed ---------------------------------------------------------------------------------

    def pace(self, known: Known, at: int) -> float:
        """Factor on the solo span of a workload, whatever runs beside it."""
        return float(compiled.pace(self.level, known.own, float(at)))

    def beliefs(self) -> tuple[Any, ...]:
        """What compiled steps take of it."""
        return self.phi, self.slots, self.level, self.theta, self.pair_map.bias, self.pair_map.scale

    def work_done(
        self, known: Known, who: Array, times: Array, span: float, at: int, first: int = 0
    ) -> tuple[float, float]:
        """Solo work (ns) that is expected to be done in `span` ns beside others (`who` and `times` as in
        `estimator_kernels.work_done`); and the variance of the log span that comes of not knowing what
        features say of them. The estimate with the least mean relative error lies below the median by as
        much, the spread being log-normal."""
        gradient = np.empty(len(self.theta))
        done, unseen = compiled.work_done(
            float(at), span, known.index, first, who, times, self.tables.all, self.crowd_slots,
            self.weight_slots, self.phi, self.rest, self.slots, self.level, self.theta,
            self.pair_map.bias, self.pair_map.scale,
            gradient,
        )  # fmt: skip
        seen = gradient @ self.root
        return float(done), float(seen @ seen + unseen)

    def begin_with(self, theta: Array, covariance: Array) -> None:
        """Start from what a fit has said."""
        self.theta = theta.copy()
        values, vectors = np.linalg.eigh(covariance)
        self.root = np.ascontiguousarray(vectors * np.sqrt(np.maximum(values, 1e-12)))
        self.version += 1

    # --- learning -----------------------------------------------------------------------------------------

    def learn(
        self, known: Known, who: Array, times: Array, span: float, work: float, at: int, first: int = 0
    ) -> tuple[float, float]:
        """Take in a run of `work` solo ns, from segment `first` on, that took `span` ns beside others
        (`who`, `times` as in `estimator_kernels.work_done`). Returns (log(measured / predicted given the
        overlap), its standard deviation as believed before)."""
        config, out = self.config, self._out
        compiled.learn(
            float(at), work, span, known.index, first, who, times, self.tables.all, self.crowd_slots,
            self.weight_slots, self.phi, self.rest, self.slots, self.level, self.theta, self.root,
            self.pair_map.bias, self.pair_map.scale, config.memory, self.noise, config.clip_sigmas, out,
        )  # fmt: skip
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
        self._clear_rows()
        labels = (f"{model}[",)
        for key, slot in self._keys.items():
            if any(part == model or (isinstance(part, str) and part.startswith(labels)) for part in key[1:]):
                self.level[slot, MEAN] = self.level[slot, PRIOR_MEAN]
                self.level[slot, VARIANCE] = self.level[slot, PRIOR_VARIANCE]
        self.version += 1

    def loosen(self, model: str) -> None:
        """The model's behaviour has changed: what was learned of it counts as little as at first, and so does
        what features say in general, by a part."""
        for key, slot in self._keys.items():
            if model in key[1:]:
                self.level[slot, VARIANCE] = self.level[slot, PRIOR_VARIANCE]
        trace = float((self.root**2).sum())
        self.root *= min(LOOSENED, max(1.0, math.sqrt(len(self.theta) / trace)))

    def terms(self) -> tuple[Sequence[tuple[Hashable, ...]], Array]:
        """Every scalar term: names, and a copy of their rows of `level`. Names are only ever added, behind
        these; the sequence is the estimator's own, so there may be more of them later."""
        return self._names, self.level[: len(self._names)].copy()

    def take_terms(self, names: Sequence[tuple[Hashable, ...]], level: Array) -> None:
        """Take over terms that were stored; every other one is its prior again."""
        self.level[:, MEAN] = self.level[:, PRIOR_MEAN]
        self.level[:, VARIANCE] = self.level[:, PRIOR_VARIANCE]
        for name, values in zip(names, level, strict=True):
            slot = self._slot(name, 0.0, 1.0, math.inf)
            self.level[slot] = values


def merged(
    segments: Sequence[tuple[float, tuple[float, ...]]], most: int
) -> list[tuple[float, tuple[float, ...]]]:
    """At most `most` segments: the shortest neighbours are put together, demands weighted by span."""
    parts = list(segments)
    while len(parts) > most:
        k = min(range(len(parts) - 1), key=lambda i: parts[i][0] + parts[i + 1][0])
        (a, u), (b, v) = parts[k], parts[k + 1]
        parts[k : k + 2] = [(a + b, tuple((a * x + b * y) / (a + b) for x, y in zip(u, v, strict=True)))]
    return parts


def _doubled(array: Array) -> Array:
    grown = np.zeros((2 * len(array), *array.shape[1:]), array.dtype)
    grown[: len(array)] = array
    return grown

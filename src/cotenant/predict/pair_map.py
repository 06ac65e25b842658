"""Features of pairs: the Gaussian process of `pair_kernel.py` reduced to a fixed number of them.

How this works. A dictionary of pairs is chosen by pivoted Cholesky (the pair that the ones chosen so far
explain least comes next); a pair's features are its covariances with the dictionary, whitened. So the
process becomes theta.phi with theta ~ N(0, 1): Nystroem's approximation, exact on the dictionary
(Quinonero-Candela & Rasmussen 2005). With labels (`fit_pairs`) the scales follow from them, and theta with
its covariance is solved for at once; without, scales are those of the prior, and theta is learned online.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from cotenant.domain import Variant
from cotenant.predict.pair_kernel import (
    PRIOR,
    PRIOR_LATENT,
    Array,
    Encoder,
    Pieces,
    Scales,
    Side,
    amplitudes,
    diagonal,
    fit_scales,
    in_common,
    kernel,
    pieces,
    prior_scales,
)
from cotenant.predict.row_kernels import FLOOR, pair_features
from cotenant.profile.features import FeatureTable, WorkloadFeatures

N_FEATURES = 128
LEAST = 0.02
"""Least slowdown - FLOOR that is taken from data."""
FIT_ROWS = 260
"""Rows that the marginal likelihood is computed from."""
REFERENCES = 30
"""Workloads over which latent sensitivities and pressures are averaged."""
POOL = 400
"""Pairs of known workloads among which a dictionary without labels is chosen."""
FEWEST_LABELS = 4
UNSEEN_BIAS, UNSEEN_SCALE = math.log(1.3 - FLOOR), 0.7
"""Mean and standard deviation of the target where there are no labels."""

Pair = tuple[WorkloadFeatures, WorkloadFeatures]
Ident = tuple[str, float]


@dataclass(frozen=True, slots=True)
class _Stage:
    """The first fit: its scales, pairs, weights and inverse covariance, and the workloads averaged over."""

    scales: Scales
    pairs: list[Pair]
    alpha: Array
    inverse: Array
    victims: list[WorkloadFeatures]
    aggressors: list[WorkloadFeatures]

    def kernel(self, own: Pieces, other: Pieces, column: int) -> Array:
        """With the workload in question as the victim (0) or as the aggressor (1)."""
        return kernel(own, other, self.scales) if column == 0 else kernel(other, own, self.scales)


@dataclass(slots=True)
class ReducedMap:
    """Implements `estimator.PairMap`. `theta, covariance`: what labels said, zero and one without."""

    table: FeatureTable
    n_features: int = N_FEATURES
    seed: int = 0
    bias: float = UNSEEN_BIAS
    scale: float = UNSEEN_SCALE
    noise: float = 0.0
    theta: Array = field(init=False)
    covariance: Array = field(init=False)
    _encoder: Encoder = field(init=False)
    _scales: Scales = field(default_factory=dict)
    _identities: dict[Ident, int] = field(default_factory=dict)
    _names: dict[str, int] = field(default_factory=dict)
    _encoded: dict[Ident, Array] = field(default_factory=dict)
    _latent: dict[Ident, Array] = field(default_factory=dict)
    _stage: _Stage | None = None
    _middle: Array = field(default_factory=lambda: np.zeros(2))
    _width: Array = field(default_factory=lambda: np.ones(2))
    _victims: Side = field(init=False)
    _aggressors: Side = field(init=False)
    _whiten: Array = field(init=False)
    _in_common: dict[tuple[Variant, float, int], tuple[Array, Array]] = field(default_factory=dict)

    def features(self, victim: WorkloadFeatures, aggressor: WorkloadFeatures) -> tuple[Array, float]:
        """The same as `rows`, for one pair in microseconds: what each side has in common with the dictionary
        is kept."""
        phi = np.empty(self.n_features)
        (of_victim, alone_v), (of_aggressor, alone_a) = self._common(victim, 0), self._common(aggressor, 1)
        return phi, pair_features(of_victim, of_aggressor, alone_v, alone_a, self._whiten, phi)

    def _common(self, workload: WorkloadFeatures, role: int) -> tuple[Array, Array]:
        """With the victims (0) or the aggressors (1) of the dictionary; the victims' have the amplitudes."""
        key = workload.variant, workload.share, role
        found = self._in_common.get(key)
        if found is None:
            side, others = self._side([workload], role), (self._victims, self._aggressors)[role]
            found = in_common(side, others, self._scales, "va"[role])
            if role == 0:
                weights = amplitudes(self._scales)
                found = weights.T @ found[0], weights.T @ found[1]
            self._in_common[key] = found
        return found

    def rows(self, pairs: Sequence[Pair]) -> tuple[Array, Array]:
        """phi (n x n_features) and the prior variances that they leave out (n), in units of the target's."""
        v, a = self._sides(pairs)
        phi = np.zeros((len(pairs), self.n_features))
        k = kernel(pieces(v, self._victims), pieces(a, self._aggressors), self._scales)
        phi[:, : self._whiten.shape[1]] = k @ self._whiten
        return phi, np.maximum(diagonal(v, a, self._scales) - (phi**2).sum(1), 0.0)

    # --- making it ------------------------------------------------------------------------------------

    def begin(self) -> ReducedMap:
        """Without labels."""
        rng = np.random.default_rng(self.seed)
        self._encoder = Encoder(self.table, list(self.table))
        self._scales = prior_scales(PRIOR)
        self._reduce([], rng)
        self.theta, self.covariance = np.zeros(self.n_features), np.eye(self.n_features)
        self.noise = self._scales["noise"] * self.scale**2
        return self

    def fit(self, pairs: Sequence[Pair], slowdowns: Array) -> ReducedMap:
        """From steady slowdowns of pairs (n). With fewer than `FEWEST_LABELS` as without."""
        if len(pairs) < FEWEST_LABELS:
            return self.begin()
        rng = np.random.default_rng(self.seed)
        used = {_ident(w): w for pair in pairs for w in pair}
        self._encoder = Encoder(self.table, [used[key] for key in sorted(used)])
        target = np.log(np.maximum(slowdowns - FLOOR, LEAST))
        self.bias, self.scale = float(target.mean()), float(target.std()) + 1e-6
        target = (target - self.bias) / self.scale
        some = np.sort(rng.permutation(len(target))[:FIT_ROWS])
        v, a = self._sides(pairs)
        self._scales = fit_scales(v.take(some), a.take(some), target[some], PRIOR)
        self._find_latent(list(pairs), target, rng)
        v, a = self._sides(pairs)
        self._scales = fit_scales(v.take(some), a.take(some), target[some], PRIOR | PRIOR_LATENT)
        self._reduce(pairs, rng)
        phi, rest = self.rows(pairs)
        weights = 1.0 / (self._scales["noise"] + rest)
        self.covariance = np.linalg.inv(np.eye(self.n_features) + (phi * weights[:, None]).T @ phi)
        self.theta = self.covariance @ (phi.T @ (weights * target))
        self.noise = self._scales["noise"] * self.scale**2
        return self

    def _sides(self, pairs: Sequence[Pair]) -> tuple[Side, Side]:
        return self._side([v for v, _ in pairs], 0), self._side([a for _, a in pairs], 1)

    def _side(self, workloads: Sequence[WorkloadFeatures], latent: int | None) -> Side:
        """`latent`: 0 for sensitivity, 1 for pressure."""
        z = np.array([self._encode(w) for w in workloads]) if workloads else np.zeros((0, 1))
        identity = np.array(
            [self._identities.setdefault(_ident(w), len(self._identities)) for w in workloads]
        )
        name = np.array([self._names.setdefault(w.variant.model, len(self._names)) for w in workloads])
        if self._stage is None or latent is None:
            return Side(z, identity, name)
        self._know_latent(workloads)
        known = np.array([self._latent[_ident(w)] for w in workloads])
        return Side(z, identity, name, known[:, latent], known[:, 2 + latent])

    def _encode(self, workload: WorkloadFeatures) -> Array:
        key = _ident(workload)
        found = self._encoded.get(key)
        if found is None:
            found = self._encoded[key] = self._encoder(workload)
        return found

    # --- latent sensitivity and pressure ----------------------------------------------------------------

    def _find_latent(self, pairs: list[Pair], target: Array, rng: np.random.Generator) -> None:
        v, a = self._sides(pairs)
        k = kernel(pieces(v, v), pieces(a, a), self._scales)
        inverse = np.linalg.inv(k + (self._scales["noise"] + 1e-6) * np.eye(len(target)))

        def some(side: int) -> list[WorkloadFeatures]:
            seen = {_ident(pair[side]): pair[side] for pair in pairs}
            keys = sorted(seen)
            return [seen[keys[n]] for n in rng.permutation(len(keys))[:REFERENCES]]

        self._stage = _Stage(self._scales, pairs, inverse @ target, inverse, some(0), some(1))
        workloads = list({_ident(w): w for pair in pairs for w in pair}.values())
        raw = dict(zip(map(_ident, workloads), self._raw_latent(workloads), strict=True))
        rows = np.array([[raw[_ident(v)][0], raw[_ident(a)][1]] for v, a in pairs])
        self._middle, self._width = rows.mean(0), rows.std(0) + 1e-9
        self._know_latent(workloads)

    def _raw_latent(self, workloads: Sequence[WorkloadFeatures]) -> Array:
        """For each workload the mean target beside reference aggressors, and of reference victims beside it;
        and the variances of the two (n x 4)."""
        stage = self._stage
        assert stage is not None
        seen = [self._side([pair[k] for pair in stage.pairs], None) for k in (0, 1)]
        these = self._side(workloads, None)
        itself = pieces(these, these)
        out = np.zeros((len(workloads), 4))
        for column, references in ((0, stage.aggressors), (1, stage.victims)):
            others = self._side(references, None)
            own, theirs = pieces(these, seen[column]), pieces(others, seen[1 - column])
            mean = np.zeros((len(workloads), len(stage.pairs)))
            for n in range(len(references)):
                one = {key: np.broadcast_to(m[n], mean.shape) for key, m in theirs.items()}
                mean += stage.kernel(own, one, column) / len(references)
            among = pieces(others, others)
            for n in range(len(workloads)):
                alike = {key: np.full(among["distance"].shape, m[n, n]) for key, m in itself.items()}
                out[n, 2 + column] = stage.kernel(alike, among, column).mean()
            out[:, column] = mean @ stage.alpha
            out[:, 2 + column] = np.maximum(out[:, 2 + column] - ((mean @ stage.inverse) * mean).sum(1), 0.0)
        return out

    def _know_latent(self, workloads: Sequence[WorkloadFeatures]) -> None:
        fresh = list({_ident(w): w for w in workloads if _ident(w) not in self._latent}.values())
        if fresh:
            for workload, raw in zip(fresh, self._raw_latent(fresh), strict=True):
                known = np.concatenate([(raw[:2] - self._middle) / self._width, raw[2:] / self._width**2])
                self._latent[_ident(workload)] = known

    # --- the dictionary ---------------------------------------------------------------------------------

    def _reduce(self, pairs: Sequence[Pair], rng: np.random.Generator) -> None:
        """Pairs with labels first, then pairs of known workloads fill what is left."""
        chosen = [pairs[n] for n in self._pivots(pairs, self.n_features)] if pairs else []
        known = sorted(self.table, key=_ident)
        if len(chosen) < self.n_features and known:
            pool = [(v, a) for v in known for a in known]
            if len(pool) > POOL:
                pool = [pool[n] for n in rng.permutation(len(pool))[:POOL]]
            both = [*chosen, *pool]
            chosen = [both[n] for n in self._pivots(both, self.n_features, n_first=len(chosen))]
        self._victims, self._aggressors = self._sides(chosen)
        k = kernel(
            pieces(self._victims, self._victims), pieces(self._aggressors, self._aggressors), self._scales
        )
        low = np.linalg.cholesky(k + 1e-6 * np.eye(len(chosen)))
        self._whiten = np.ascontiguousarray(np.linalg.solve(low, np.eye(len(chosen))).T)
        self._in_common.clear()

    def _pivots(self, pairs: Sequence[Pair], most: int, n_first: int = 0) -> list[int]:
        """Indices of at most `most` pairs; the first `n_first` in any case."""
        v, a = self._sides(pairs)
        left = diagonal(v, a, self._scales)
        whole = left.max()
        chosen: list[int] = []
        rows = np.zeros((min(most, len(pairs)), len(pairs)))
        while len(chosen) < len(rows):
            m = len(chosen)
            n = m if m < n_first else int(np.argmax(left))
            if m >= n_first and left[n] < 1e-5 * whole:
                break
            one = np.array([n])
            column = kernel(pieces(v.take(one), v), pieces(a.take(one), a), self._scales)[0]
            rows[m] = (column - rows[:m, n] @ rows[:m]) / math.sqrt(max(left[n], 1e-9))
            left = np.maximum(left - rows[m] ** 2, 0.0)
            chosen.append(n)
        return chosen


def _ident(workload: WorkloadFeatures) -> Ident:
    return workload.variant.label, workload.share

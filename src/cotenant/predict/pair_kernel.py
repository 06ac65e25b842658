"""The prior of pair slowdowns: a Gaussian process over (victim, aggressor), every term a product of the two.

How this works. The target eta = log(slowdown - FLOOR) of a pair is a sum of terms: what the victim brings,
what the aggressor brings, and their product; each side is known by
standardised measured features (a radial and a linear kernel), by its identity, and by its model's name
(other batches and shares of the same model are alike). Once there are labels, a first fit yields for each
workload its mean sensitivity and pressure; these two numbers are then features of a second fit (latent
terms below): a workload's behaviour beside known ones says more of it than its counters. Scales are set by
penalised marginal likelihood (Rasmussen & Williams 2006, eq. 5.8), the penalties being log-normal priors,
so that few data cannot push them far.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cotenant.profile.features import FeatureTable, WorkloadFeatures

Array = np.ndarray[Any, Any]
Scales = dict[str, float]
FARTHEST = 6.0
"""Standardised features are cut to this."""
LARGEST_SCALE, SMALLEST_SCALE = 5.0, -9.0
FIRST_STEP, LARGEST_STEP, SMALLEST_STEP = 0.3, 0.6, 4e-3

PRIOR: dict[str, tuple[float, float]] = {
    "const": (-1.0, 1.0),
    "victim": (-1.0, 1.5), "aggressor": (-1.0, 1.5), "product": (-1.0, 1.5),
    "len_v": (0.5, 0.6), "len_a": (0.5, 0.6),
    "id_v": (-2.0, 1.5), "id_a": (-2.0, 1.5), "name_v": (-2.0, 1.5), "name_a": (-2.0, 1.5),
    "lin_v": (-2.0, 1.5), "lin_a": (-2.0, 1.5),
    "noise": (-3.0, 1.5),
}  # fmt: skip
"""Scale -> mean and standard deviation of its logarithm. Amplitudes are variances in units of the
target's."""
PRIOR_LATENT: dict[str, tuple[float, float]] = {
    "S": (-1.0, 1.5), "P": (-1.0, 1.5), "SP": (-2.0, 1.5), "v_P": (-2.0, 1.5), "a_S": (-2.0, 1.5),
    "rS_rP": (-2.0, 1.5), "v_rP": (-2.0, 1.5), "a_rS": (-2.0, 1.5), "len_S": (0.3, 0.5), "len_P": (0.3, 0.5),
}  # fmt: skip
"""The same for the latent sensitivity S of the victim and pressure P of the aggressor."""


class Encoder:
    """Standardised features of a workload (n_columns); unknown, constant or missing ones are neutral (0)."""

    def __init__(self, table: FeatureTable, used: Sequence[WorkloadFeatures]) -> None:
        self._names = (*(f"demand_{n}" for n in table.resources), *(f"feature_{n}" for n in table.statics))
        raw = [self._raw(entry) for entry in used]
        rows = np.array(raw, np.float64).reshape(len(raw), len(self._columns))
        positive = np.nanmin(np.where(np.isfinite(rows), rows, np.inf), axis=0, initial=np.inf) > 0
        self.logged = np.array(
            [name.startswith("feature_") and bool(p) for name, p in zip(self._columns, positive, strict=True)]
        )
        rows = self._log(rows)
        count = np.isfinite(rows).sum(axis=0)
        filled = np.where(np.isfinite(rows), rows, 0.0)
        mean = filled.sum(axis=0) / np.maximum(1, count)
        square = np.where(np.isfinite(rows), (rows - mean) ** 2, 0.0).sum(axis=0) / np.maximum(1, count)
        self.mean, self.deviation = mean, np.sqrt(square)
        varies = (count > 1) & (self.deviation > 1e-9)
        varies[-1] &= bool(varies[-3] or varies[-2])  # else it says the same as the solo span
        self.kept = np.flatnonzero(varies)

    @property
    def _columns(self) -> tuple[str, ...]:
        return (*self._names, "log_solo", "log_batch", "log_share", "log_item")

    def _raw(self, entry: WorkloadFeatures) -> list[float]:
        """The last one is device time per row: what is left of the model itself."""
        solo, rows = math.log(max(1.0, entry.solo_ns) / 1e6), math.log(entry.variant.rows)
        share = math.log(entry.share) if entry.share > 0 else 0.0
        return [*entry.demand, *entry.statics, solo, rows, share, solo + share - rows]

    def _log(self, rows: Array) -> Array:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(self.logged & (rows > 0), np.log(rows), np.where(self.logged, np.nan, rows))

    def __call__(self, entry: WorkloadFeatures) -> Array:
        row = self._log(np.array(self._raw(entry), np.float64))[self.kept]
        z = (row - self.mean[self.kept]) / self.deviation[self.kept]
        z = np.clip(np.nan_to_num(z, nan=0.0, posinf=0.0, neginf=0.0), -FARTHEST, FARTHEST)
        return z if len(z) else np.zeros(1)


@dataclass(frozen=True, slots=True)
class Side:
    """One side of some pairs: features (n x n_columns), identities, names, and where there are latent
    numbers their means and variances."""

    z: Array
    identity: Array
    name: Array
    latent: Array | None = None
    doubt: Array | None = None

    def take(self, index: Array) -> Side:
        """Some of them."""
        latent = None if self.latent is None else self.latent[index]
        doubt = None if self.doubt is None else self.doubt[index]
        return Side(self.z[index], self.identity[index], self.name[index], latent, doubt)


Pieces = dict[str, Array]


def pieces(a: Side, b: Side) -> Pieces:
    """Everything that kernels need of two lists of one side, each n_a x n_b."""
    n_columns = a.z.shape[1]
    dot = a.z @ b.z.T
    distance = np.maximum((a.z**2).sum(1)[:, None] + (b.z**2).sum(1)[None] - 2 * dot, 0.0) / n_columns
    found = {
        "distance": distance,
        "linear": dot / n_columns,
        "identity": (a.identity[:, None] == b.identity[None]).astype(np.float64),
        "name": (a.name[:, None] == b.name[None]).astype(np.float64),
    }
    if a.latent is not None and b.latent is not None and a.doubt is not None and b.doubt is not None:
        same = found["identity"]
        found["both"] = np.outer(a.latent, b.latent) + same * a.doubt[:, None]
        found["apart"] = (a.latent[:, None] - b.latent[None]) ** 2
        found["doubt"] = (1 - same) * (a.doubt[:, None] + b.doubt[None])
    return found


def _expected_radial(piece: Pieces, length: float) -> tuple[Array, Array]:
    """The radial kernel of latent numbers that are only known with a variance, and its squared length."""
    wide = length**2 + piece["doubt"]
    return length / np.sqrt(wide) * np.exp(-0.5 * piece["apart"] / wide), wide


def _mixed(piece: Pieces, p: Scales, role: str) -> tuple[Array, Array, float]:
    """The kernel of one side, its radial part, and the sum of its weights."""
    radial = np.exp(-0.5 * piece["distance"] / p["len_" + role] ** 2)
    total = 1.0 + p["id_" + role] + p["name_" + role] + p["lin_" + role]
    mixed = (
        radial
        + p["id_" + role] * piece["identity"]
        + p["name_" + role] * piece["name"]
        + p["lin_" + role] * piece["linear"]
    )
    return mixed / total, radial, total


def _terms(v: Pieces, a: Pieces, p: Scales) -> tuple[Pieces, dict[str, Any]]:
    """Every term of the kernel without its amplitude, and what its gradient needs."""
    kv, ka = _mixed(v, p, "v"), _mixed(a, p, "a")
    terms = {
        "const": np.ones_like(kv[0]),
        "victim": kv[0],
        "aggressor": ka[0],
        "product": kv[0] * ka[0],
    }
    if "both" in v and "both" in a and "S" in p:
        s, q = v["both"], a["both"]
        (rs, wide_s), (rq, wide_p) = _expected_radial(v, p["len_S"]), _expected_radial(a, p["len_P"])
        terms |= {
            "S": s, "P": q, "SP": s * q, "v_P": kv[0] * q, "a_S": ka[0] * s,
            "rS_rP": rs * rq, "v_rP": kv[0] * rq, "a_rS": ka[0] * rs,
        }  # fmt: skip
        return terms, {"v": kv, "a": ka, "rs": rs, "rq": rq, "wide_s": wide_s, "wide_p": wide_p}
    return terms, {"v": kv, "a": ka}


KINDS = ("const", "mixed", "both", "radial")
"""What a side of a pair can bring to a term of the kernel."""
_PRODUCTS = {
    "const": (0, 0), "victim": (1, 0), "aggressor": (0, 1), "product": (1, 1), "S": (2, 0), "P": (0, 2),
    "SP": (2, 2), "v_P": (1, 2), "a_S": (2, 1), "rS_rP": (3, 3), "v_rP": (1, 3), "a_rS": (3, 1),
}  # fmt: skip
"""Which kinds of the victim and of the aggressor each term multiplies."""


def amplitudes(p: Scales) -> Array:
    """n_kinds x n_kinds: with them, `kernel` is the sum over kinds of what `in_common` says of the two
    sides."""
    found = np.zeros((len(KINDS), len(KINDS)))
    for name, (of_victim, of_aggressor) in _PRODUCTS.items():
        found[of_victim, of_aggressor] = p.get(name, 0.0)
    return found


def in_common(side: Side, others: Side, p: Scales, role: str) -> tuple[Array, Array]:
    """What one workload shares with each of `others`, all victims (role "v") or aggressors ("a"): n_kinds x
    n_others; and with itself, n_kinds."""
    piece = pieces(side, others)
    mixed = _mixed(piece, p, role)[0][0]
    with_others, alone = np.zeros((len(KINDS), len(mixed))), np.zeros(len(KINDS))
    with_others[0], with_others[1] = 1.0, mixed
    alone[0], alone[1] = 1.0, _own(side, p, role)[0]
    if side.latent is not None and side.doubt is not None and "S" in p:
        length = p["len_S" if role == "v" else "len_P"]
        with_others[2], with_others[3] = piece["both"][0], _expected_radial(piece, length)[0][0]
        alone[2], alone[3] = side.latent[0] ** 2 + side.doubt[0], 1.0
    return with_others, alone


def kernel(v: Pieces, a: Pieces, p: Scales) -> Array:
    """Covariance of pairs, from the victims' pieces and the aggressors'."""
    terms, _ = _terms(v, a, p)
    total: Array = sum((p[name] * term for name, term in terms.items()), np.zeros_like(terms["const"]))
    return total


def _gradient(v: Pieces, a: Pieces, p: Scales, w: Array) -> Scales:
    """d/d log p of sum(w * kernel)."""
    terms, parts = _terms(v, a, p)
    g = {name: p[name] * float((w * term).sum()) for name, term in terms.items()}
    (kv, rv, tv), (ka, ra, ta) = parts["v"], parts["a"]
    dv, da = p["victim"] + p["product"] * ka, p["aggressor"] + p["product"] * kv
    if "rs" in parts:
        rs, rq = parts["rs"], parts["rq"]
        dv, da = dv + p["v_P"] * a["both"] + p["v_rP"] * rq, da + p["a_S"] * v["both"] + p["a_rS"] * rs
        by_s, by_p = p["rS_rP"] * rq + p["a_rS"] * ka, p["rS_rP"] * rs + p["v_rP"] * kv
        g["len_S"] = _length_slope(w * rs * by_s, v, parts["wide_s"], p["len_S"])
        g["len_P"] = _length_slope(w * rq * by_p, a, parts["wide_p"], p["len_P"])
    for role, piece, mixed, radial, total, outer in (
        ("v", v, kv, rv, tv, dv * w),
        ("a", a, ka, ra, ta, da * w),
    ):
        length = p["len_" + role] ** 2
        g["len_" + role] = float((outer * radial * piece["distance"]).sum()) / length / total
        for short, part in (("id", "identity"), ("name", "name"), ("lin", "linear")):
            weight = p[f"{short}_{role}"]
            g[f"{short}_{role}"] = weight / total * float((outer * (piece[part] - mixed)).sum())
    return g


def _length_slope(outer: Array, piece: Pieces, wide: Array, length: float) -> float:
    return float((outer * (piece["doubt"] / wide + piece["apart"] * length**2 / wide**2)).sum())


def diagonal(v: Side, a: Side, p: Scales) -> Array:
    """Prior variance of each pair."""
    kv, ka = _own(v, p, "v"), _own(a, p, "a")
    k = p["const"] + p["victim"] * kv + p["aggressor"] * ka + p["product"] * kv * ka
    if v.latent is not None and a.latent is not None and "S" in p:
        assert v.doubt is not None
        assert a.doubt is not None
        s, q = v.latent**2 + v.doubt, a.latent**2 + a.doubt
        k = k + p["S"] * s + p["P"] * q + p["SP"] * s * q + p["v_P"] * kv * q + p["a_S"] * ka * s
        k = k + p["rS_rP"] + p["v_rP"] * kv + p["a_rS"] * ka
    return np.asarray(k)


def _own(side: Side, p: Scales, role: str) -> Array:
    linear = (side.z**2).mean(1)
    total = 1 + p["id_" + role] + p["name_" + role] + p["lin_" + role]
    return np.asarray((total - p["lin_" + role] + p["lin_" + role] * linear) / total)


def prior_scales(prior: dict[str, tuple[float, float]]) -> Scales:
    """Scales where nothing was seen."""
    return {name: math.exp(mean) for name, (mean, _) in prior.items()}


def fit_scales(
    v: Side, a: Side, target: Array, prior: dict[str, tuple[float, float]], n_steps: int = 90
) -> Scales:
    """The most likely scales of standardised targets (n) under the priors, by iRprop- (Igel & Huesken 2003),
    which uses the signs of the gradient only. O(n^3) a step."""
    names = list(prior)
    middle, width = (np.array([prior[name][k] for name in names]) for k in (0, 1))
    pv, pa = pieces(v, v), pieces(a, a)
    x, step, last = middle.copy(), np.full(len(names), FIRST_STEP), np.zeros(len(names))
    best, best_x, eye = math.inf, middle.copy(), np.eye(len(target))
    for _ in range(n_steps):
        p = dict(zip(names, np.exp(x).tolist(), strict=True))
        try:
            low = np.linalg.cholesky(kernel(pv, pa, p) + (p["noise"] + 1e-6) * eye)
        except np.linalg.LinAlgError:
            x, step = best_x.copy(), step * 0.5
            continue
        inverse_low = np.linalg.solve(low, eye)
        inverse = inverse_low.T @ inverse_low
        alpha = inverse @ target
        loss = 0.5 * target @ alpha + np.log(np.diag(low)).sum() + 0.5 * (((x - middle) / width) ** 2).sum()
        if loss < best:
            best, best_x = float(loss), x.copy()
        w = 0.5 * (inverse - np.outer(alpha, alpha))
        slopes = _gradient(pv, pa, p, w)
        slopes["noise"] = p["noise"] * float(np.trace(w))
        slope = np.array([slopes[name] for name in names]) + (x - middle) / width**2
        turned = slope * last
        step = np.where(turned > 0, step * 1.2, np.where(turned < 0, step * 0.5, step))
        step = np.clip(step, 1e-3, LARGEST_STEP)
        slope = np.where(turned < 0, 0.0, slope)
        x = np.clip(x - np.sign(slope) * step, SMALLEST_SCALE, LARGEST_SCALE)
        last = slope
        if step.max() < SMALLEST_STEP:
            break
    return dict(zip(names, np.exp(best_x).tolist(), strict=True))

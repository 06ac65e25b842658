"""Runs of dispatches with known residuals, for the tests of the calibrator: late labels, a change midway."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cotenant.domain import LEVELS, NS_PER_S
from cotenant.predict.calibrate import Calibrator, Group, Offsets
from cotenant.predict.calibrate_kernels import (
    CLIP_SCALES,
    MAX_SURPRISE,
    MOVE_GAIN,
    MOVE_RUN,
    SHARES,
    SHIFT_SHARES,
)
from cotenant.predict.quantiles import standard_normal

SIGMAS = {"a": 0.05, "b": 0.08, "c": 0.05, "d": 0.12}
TRUE_SIGMAS = {"a": 0.06, "b": 0.08, "c": 0.10, "d": 0.05}
MODELS = sorted(SIGMAS)


@dataclass(frozen=True, kw_only=True)
class Half:
    """How residuals are in one half of a run: location + scale x true sigma x Student t (3 degrees)."""

    location: float = 0.0
    scale: float = 1.0
    per_corunner: float = 0.0
    mix: tuple[float, ...] = (0.25, 0.25, 0.25, 0.25)


def covered(halves: list[Half], seed: int, *, n_per_half: int = 3_000, mean_lag: int = 4) -> np.ndarray:
    """Whether each dispatch of a run ended within its offset at each of `LEVELS`: n x 4 of truth values.
    Labels arrive up to twice `mean_lag` dispatches later."""
    calibrator = Calibrator()
    for model, sigma in SIGMAS.items():
        calibrator.declare(model, sigma, 0.99)
    drawn, hits = _draw(halves, seed, n_per_half), []
    lags = np.random.default_rng(seed).integers(1, 2 * mean_lag + 2, len(drawn)).tolist()
    waiting: dict[int, list[tuple[Group, float, Offsets]]] = {}
    for i, (group, residual, at) in enumerate(drawn):
        for label in waiting.pop(i, []):
            assert calibrator.learn(*label, at)
        issued = calibrator.offsets(group, at)
        hits.append([residual <= bound for bound in issued[: len(LEVELS)]])
        waiting.setdefault(i + lags[i], []).append((group, residual, issued))
    return np.array(hits)


def _draw(halves: list[Half], seed: int, n_per_half: int) -> list[tuple[Group, float, int]]:
    """Group, residual and instant (ns) of every dispatch."""
    rng = np.random.default_rng(seed)
    at, drawn = 0.0, []
    for half in halves:
        models = [MODELS[m] for m in rng.choice(4, n_per_half, p=half.mix)]
        beside, noise = rng.integers(4, size=n_per_half), rng.standard_t(3, n_per_half) / 1.35
        scales = half.scale * np.array([TRUE_SIGMAS[model] for model in models])
        residuals = half.location + half.per_corunner * beside + scales * noise
        instants = at + np.cumsum(rng.exponential(NS_PER_S / 80, n_per_half))
        at = float(instants[-1])
        groups = zip(models, beside.tolist(), strict=True)
        drawn += zip(groups, residuals.tolist(), instants.astype(int).tolist(), strict=True)
    return drawn


class SlowCalibrator:
    """The equations at the head of `calibrate`, written out for one model without silence or bounds."""

    def __init__(self, sigma: float, slo_level: float) -> None:
        self.sigma = sigma
        self.levels = (*LEVELS, slo_level)
        self.z = [standard_normal(level) for level in self.levels]
        self.rates = [np.sqrt(2 * np.pi) / (np.exp(-0.5 * z * z) * 150.0) for z in self.z]
        self.terms: dict[str, dict[str, np.ndarray]] = {}
        self.runs: dict[int, int] = {}

    def path(self, n: int) -> list[dict[str, np.ndarray]]:
        keys = ("everyone", f"everyone {n}", "model", f"model {n}")
        empty = {"m": np.zeros(1), "h": np.zeros(1), "c": np.zeros(5), "n": np.zeros(1)}
        return [self.terms.setdefault(k, {name: v.copy() for name, v in empty.items()}) for k in keys]

    def offsets(self, n: int) -> list[float]:
        location = sum(term["m"][0] for term in self.path(n))
        scale = self.sigma * np.exp(sum(term["h"][0] for term in self.path(n)))
        shifts = sum(term["c"] for term in self.path(n))
        values = [location + scale * (z + c) for z, c in zip(self.z, shifts, strict=True)]
        order = np.argsort(self.levels, kind="stable")
        highest = np.maximum.accumulate(np.array(values)[order])
        return [float(highest[list(order).index(i)]) for i in range(5)]

    def learn(self, n: int, residual: float, issued: list[float]) -> None:
        path = self.path(n)
        scale = self.sigma * np.exp(sum(term["h"][0] for term in path))
        innovation = residual - sum(term["m"][0] for term in path)
        clipped = float(np.clip(innovation, -CLIP_SCALES * scale, CLIP_SCALES * scale))
        side = int(np.sign(innovation))
        run = self.runs.get(n, 0)
        self.runs[n] = 0 if clipped == innovation else run + side if run * side > 0 else side
        for term, share, shift_share in zip(path, SHARES, SHIFT_SHARES, strict=True):
            seen = term["n"][0]
            if abs(self.runs[n]) >= MOVE_RUN:
                term["m"] += share * MOVE_GAIN * innovation
                continue
            term["m"] += share * clipped / (1 + min(seen, 8))
            term["h"] += share * min(MAX_SURPRISE, 1.25 * abs(clipped) / scale - 1) / (1 + min(seen, 16))
            for i, (level, bound) in enumerate(zip(self.levels, issued, strict=True)):
                step = level if residual > bound else level - 1
                term["c"][i] += shift_share * (1 + 4 / (1 + seen / 100)) * self.rates[i] * step
            term["n"] += 1

"""What `calibration.py` compares: runs of known residuals that change midway, and ways to bound them."""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from cotenant.domain import LEVELS, NS_PER_S
from cotenant.predict.calibrate import Calibrator, Group
from cotenant.predict.drift import DriftDetector
from cotenant.predict.quantiles import standard_normal

N_PER_HALF = 3_000
PER_S = 80.0
MODELS = ("a", "b", "c", "d")
SIGMAS = (0.05, 0.08, 0.05, 0.12)
"""What the profiles say of each model's spread (log), and what it is:"""
TRUE_SIGMAS = (0.06, 0.08, 0.10, 0.05)
EVEN = (0.25, 0.25, 0.25, 0.25)
Floats = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class Half:
    """Of one half of a run: location of the log residuals and what each co-runner adds to it, factor on the
    true spread and what each co-runner adds to that, mix of models and of 0 to 3 co-runners."""

    location: float = 0.0
    per_corunner: float = 0.0
    scale: float = 1.0
    scale_per_corunner: float = 0.0
    models: tuple[float, ...] = EVEN
    corunners: tuple[float, ...] = EVEN


@dataclass(frozen=True, kw_only=True)
class Case:
    """A run. `noise`: normal, t3 (Student, heavy), skew (lognormal). Labels come on average `lag` dispatches
    late. `wander`: standard deviation of a slow random walk (100 dispatches) of the location."""

    name: str
    noise: str = "normal"
    first: Half = Half()
    second: Half = Half()
    lag: int = 4
    wander: float = 0.0


UNEVEN = Half(scale_per_corunner=0.4, models=(0.6, 0.3, 0.05, 0.05), corunners=(0.55, 0.25, 0.15, 0.05))
CASES = (
    Case(name="stationary, normal"),
    Case(
        name="stationary, heavy, spread by co-runners",
        noise="t3",
        first=Half(scale_per_corunner=0.4),
        second=Half(scale_per_corunner=0.4),
    ),
    Case(name="stationary, skewed", noise="skew"),
    Case(name="spread doubles", noise="t3", second=Half(scale=2.0)),
    Case(name="spread halves", noise="t3", first=Half(scale=2.0)),
    Case(name="all become 1.22 times slower", noise="t3", second=Half(location=0.2)),
    Case(name="all become 2.7 times slower", noise="t3", second=Half(location=1.0)),
    Case(
        name="load: more co-runners, each costs more",
        noise="skew",
        first=Half(scale_per_corunner=0.3, corunners=(0.55, 0.25, 0.15, 0.05)),
        second=Half(per_corunner=0.1, scale=1.5, scale_per_corunner=0.3, corunners=(0.1, 0.2, 0.3, 0.4)),
    ),
    Case(
        name="mix of models and co-runners turns over",
        noise="t3",
        first=UNEVEN,
        second=Half(scale_per_corunner=0.4, models=(0.05, 0.05, 0.3, 0.6), corunners=(0.1, 0.2, 0.3, 0.4)),
    ),
    Case(name="labels 20 late, spread doubles", noise="t3", second=Half(location=0.1, scale=2.0), lag=20),
    Case(name="slow wander", noise="t3", wander=0.1),
)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A drawn run: per dispatch the model, co-runners, residual, instant (ns), when its label comes (as a
    number of dispatches), and the true quantiles of its residual (n x len(LEVELS))."""

    models: Floats
    corunners: Floats
    residuals: Floats
    at: Floats
    labelled: Floats
    true: Floats

    def groups(self) -> list[Group]:
        return [(MODELS[m], n) for m, n in zip(self.models.tolist(), self.corunners.tolist(), strict=True)]


def noise(kind: str, rng: np.random.Generator, n: int) -> Floats:
    if kind == "t3":
        return rng.standard_t(3, n) / 1.35
    plain = rng.standard_normal(n)
    return plain if kind == "normal" else (np.exp(0.6 * plain) - 1.0) / 0.6


def draw(case: Case, seed: int) -> Run:
    rng = np.random.default_rng(seed)
    models = np.concatenate([rng.choice(4, N_PER_HALF, p=half.models) for half in (case.first, case.second)])
    beside = np.concatenate(
        [rng.choice(4, N_PER_HALF, p=half.corunners) for half in (case.first, case.second)]
    )
    n = len(models)
    columns = [
        np.repeat([getattr(case.first, name), getattr(case.second, name)], N_PER_HALF)
        for name in ("location", "per_corunner", "scale", "scale_per_corunner")
    ]
    location = columns[0] + columns[1] * beside
    scale = np.array(TRUE_SIGMAS)[models] * columns[2] * (1.0 + columns[3] * beside)
    if case.wander:
        steps, walk = rng.standard_normal(n) * case.wander * math.sqrt(1.0 - 0.99**2), np.zeros(n)
        for i in range(1, n):
            walk[i] = 0.99 * walk[i - 1] + steps[i]
        location = location + walk
    quantiles = np.quantile(noise(case.noise, np.random.default_rng(0), 400_000), LEVELS)
    return Run(
        models=models,
        corunners=beside,
        residuals=location + scale * noise(case.noise, rng, n),
        at=np.cumsum(rng.exponential(NS_PER_S / PER_S, n)).astype(int),
        labelled=np.arange(n) + 1 + rng.integers(2 * case.lag + 1, size=n),
        true=location[:, None] + scale[:, None] * quantiles,
    )


class Method(Protocol):
    """A way to bound residuals: the part of `Calibrator` that is compared."""

    def offsets(self, group: Group, at: int) -> tuple[float, ...]: ...

    def learn(self, group: Group, residual: float, issued: Any, at: int) -> object: ...


def bounds(method: Method, run: Run) -> Floats:
    """The offsets issued to each dispatch, labels learned when they come: n x len(LEVELS)."""
    groups, residuals, at = run.groups(), run.residuals.tolist(), run.at.tolist()
    labelled, issued = run.labelled.tolist(), []
    waiting: list[tuple[int, int]] = []
    for i, group in enumerate(groups):
        while waiting and waiting[0][0] <= i:
            _, j = heapq.heappop(waiting)
            method.learn(groups[j], residuals[j], issued[j], at[i])
        issued.append(method.offsets(group, at[i]))
        heapq.heappush(waiting, (labelled[i], i))
    return np.array(issued)[:, : len(LEVELS)]


def ours() -> Calibrator:
    calibrator = Calibrator()
    for model, sigma in zip(MODELS, SIGMAS, strict=True):
        calibrator.declare(model, sigma, 0.99)
    return calibrator


class WithAlarm:
    """Ours, widened when the drift detector raises an alarm."""

    def __init__(self) -> None:
        self.calibrator, self.detector = ours(), DriftDetector()
        self.offsets = self.calibrator.offsets

    def learn(self, group: Group, residual: float, issued: Any, at: int) -> None:
        self.calibrator.learn(group, residual, issued, at)
        if self.detector.learn(group[0], residual):
            self.calibrator.widen(at, group[0])


class Windows:
    """Quantiles of the last residuals of the group, shrunk to those of the model and the prior, at a level
    that follows misses (adaptive conformal inference, Gibbs & Candes 2021, eq. 2). Window and step are those
    with the best mean coverage on these cases, of windows of 50 to 500 and steps of 0.005 to 0.05."""

    WINDOW, STEP, OWN, PRIOR = 100, 0.02, 50.0, 12.0

    def __init__(self) -> None:
        self.windows: dict[object, tuple[deque[float], list[float]]] = {}
        self.levels: dict[Group, list[float]] = {}

    def offsets(self, group: Group, at: int) -> tuple[float, ...]:
        sigma = SIGMAS[MODELS.index(group[0])]
        values = []
        for level in self.levels.setdefault(group, list(LEVELS)):
            at_level = min(0.999, max(0.001, round(level, 3)))
            value = sigma * standard_normal(at_level)
            for key, weight in ((group[0], self.PRIOR), (group, self.OWN)):
                ordered = self.windows.get(key, (None, []))[1]
                if ordered:
                    trust = len(ordered) / (len(ordered) + weight)
                    index = min(len(ordered) - 1, int(at_level * (len(ordered) + 1)))
                    value += trust * (ordered[index] - value)
            values.append(max(value, values[-1]) if values else value)
        return tuple(values)

    def learn(self, group: Group, residual: float, issued: Any, at: int) -> None:
        for key in (group, group[0]):
            latest, ordered = self.windows.setdefault(key, (deque(), []))
            latest.append(residual)
            insort(ordered, residual)
            if len(latest) > self.WINDOW:
                del ordered[bisect_left(ordered, latest.popleft())]
        self.levels[group] = [
            min(1.0, max(0.0, now + self.STEP * (level - (residual <= bound))))
            for now, level, bound in zip(self.levels[group], LEVELS, issued, strict=True)
        ]


class Tracking:
    """Quantile tracking of each group by itself, no location, no scale, no pooling (Angelopoulos, Candes &
    Tibshirani 2023): ours without what it adds. The memory is the one
    with the best coverage on these cases, of 5 to 150."""

    MEMORY = 5.0

    def __init__(self) -> None:
        self.bounds: dict[Group, list[float]] = {}
        z = [standard_normal(level) for level in LEVELS]
        self.z, self.rates = z, [math.sqrt(2 * math.pi) * math.exp(0.5 * v * v) / self.MEMORY for v in z]

    def offsets(self, group: Group, at: int) -> tuple[float, ...]:
        sigma = SIGMAS[MODELS.index(group[0])]
        own = self.bounds.setdefault(group, [sigma * value for value in self.z])
        return tuple(np.maximum.accumulate(own).tolist())

    def learn(self, group: Group, residual: float, issued: Any, at: int) -> None:
        sigma = SIGMAS[MODELS.index(group[0])]
        self.bounds[group] = [
            now + sigma * rate * (level - (residual <= bound))
            for now, rate, level, bound in zip(self.bounds[group], self.rates, LEVELS, issued, strict=True)
        ]


METHODS = {"ours": ours, "ours + alarm": WithAlarm, "windows + ACI": Windows, "tracking alone": Tracking}

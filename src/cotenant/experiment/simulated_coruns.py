"""Simulated free overlap with a known truth: a data set to study predictors on, and the rates behind it.

How this works. Workloads have segments with demands for four resources. A device with `n_lanes` lanes takes
requests as they come (Poisson) from one queue. What is active slows down by bottleneck sharing, which is not
of any predictor's form: where the summed demand for a resource comes near or beyond 1 (a smooth maximum),
its users are stretched in proportion; a run's stretch is the smooth maximum over the resources it uses; and
what others leave of the cache costs extra memory time. Halfway, rate, mix and the number of lanes in use
change. Profiles are measured with noise, runs have noise of their own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from cotenant.domain import Variant
from cotenant.experiment.datasets import CoRun, Dataset
from cotenant.predict.zoo.oracle import Active
from cotenant.profile.features import FeatureTable, WorkloadFeatures

RESOURCES = ("compute", "bandwidth", "cache", "launch")
CACHE, BANDWIDTH = 2, 1
SHARPNESS = 12.0
"""Of the smooth maximum of 1 and a resource's load."""
NORM = 6.0
"""Of the smooth maximum over resources."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedConfig:
    """What is simulated."""

    n_workloads: int = 8
    """Workloads."""
    n_runs: int = 3000
    """Completed runs."""
    n_lanes: tuple[int, int] = (3, 4)
    """Lanes in use before and after the change."""
    load: tuple[float, float] = (0.2, 0.35)
    """Offered solo work per second and lane, before and after; co-running slows it down."""
    solo_ms: tuple[float, float] = (2.0, 25.0)
    """Least and greatest solo span (ms)."""
    profile_noise: float = 0.03
    """Relative error (standard deviation) of measured demands; a third of it for spans."""
    run_noise: float = 0.02
    """Standard deviation (log) of a run's own pace."""
    cache_miss: float = 0.6
    """Most that memory time grows when others have taken the cache."""
    handover_ms: float = 0.03
    """From decision to start (ms)."""
    seed: int = 0
    """Of everything."""


@dataclass(frozen=True, slots=True)
class TrueRates:
    """`oracle.Truth`: slowdown of a segment beside others in theirs. `segments`: (share of the solo span,
    demand) by workload."""

    segments: dict[tuple[Variant, float], tuple[tuple[float, tuple[float, ...]], ...]]
    cache_miss: float
    _demands: dict[Active, tuple[float, ...]] = field(default_factory=dict)

    def __call__(self, victim: Active, others: Sequence[Active]) -> float:
        own = self.demand(victim)
        return self.stretch(own, [self.demand(other) for other in others]) / self.stretch(own, [])

    def demand(self, active: Active) -> tuple[float, ...]:
        """Of a segment; its mean over the course where the segment is not known."""
        found = self._demands.get(active)
        if found is None:
            parts = self.segments[active[0], active[1]]
            if active[2] is None:
                found = tuple(sum(share * u[r] for share, u in parts) for r in range(len(RESOURCES)))
            else:
                found = parts[min(active[2], len(parts) - 1)][1]
            self._demands[active] = found
        return found

    def stretch(self, own: tuple[float, ...], others: Sequence[tuple[float, ...]]) -> float:
        """How long (relative) a unit of work takes: the smooth maximum over the resources that it uses."""
        busiest = max(own)
        crowding = sum(sorted(u[CACHE] for u in others))
        squeezed = own[CACHE] * max(0.0, own[CACHE] + crowding - 1.0)
        total = 0.0
        for r, use in enumerate(own):
            load = use + sum(sorted(u[r] for u in others))
            shared = 1.0 + math.log1p(math.exp(SHARPNESS * (load - 1.0))) / SHARPNESS
            if r == BANDWIDTH:
                shared *= 1.0 + self.cache_miss * math.tanh(squeezed)
            total += (use / busiest * shared) ** NORM
        return float(total ** (1.0 / NORM))


@dataclass(slots=True, kw_only=True)
class Simulated:
    """A data set, the rates behind it, and the number of the first run after the change."""

    dataset: Dataset
    truth: TrueRates
    changed_from: int


def simulate_coruns(config: SimulatedConfig | None = None) -> Simulated:
    """Same config, same data set."""
    config = config or SimulatedConfig()
    rng = np.random.default_rng(config.seed)
    true = [_workload(config, k, rng) for k in range(config.n_workloads)]
    features = FeatureTable(RESOURCES)
    for workload in true:
        features.add(_measured(workload, config, rng))
    truth = TrueRates({(w.variant, w.share): w.segments for w in true}, config.cache_miss)
    rows, changed_from = _Device(config, true, truth, rng).run()
    dataset = Dataset(name=f"simulated-{config.seed}", features=features, runs={"0": rows})
    return Simulated(dataset=dataset, truth=truth, changed_from=changed_from)


def _workload(config: SimulatedConfig, k: int, rng: np.random.Generator) -> WorkloadFeatures:
    """Segments around a bent of its own: bound by compute, by bandwidth, or by launches."""
    n = int(rng.integers(2, 9))
    low, high = map(math.log, config.solo_ms)
    solo_ns = math.exp(rng.uniform(low, high)) * 1e6
    shares = rng.dirichlet(np.full(n, 3.0))
    bent = rng.dirichlet(np.full(len(RESOURCES), 0.8))
    demand = []
    for _ in range(n):
        raw = 0.15 + bent / bent.max() + rng.normal(0.0, 0.15, len(RESOURCES))
        demand.append(tuple(np.clip(raw * rng.uniform(0.45, 0.9), 0.02, 0.95).tolist()))
    return WorkloadFeatures(
        variant=Variant(f"w{k}", 1),
        share=1.0,
        solo_ns=solo_ns,
        demand=_mean(shares.tolist(), demand),
        segment_ns=tuple((shares * solo_ns).tolist()),
        segment_demand=tuple(demand),
    )


def _mean(shares: Sequence[float], demand: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
    return tuple(sum(s * u[r] for s, u in zip(shares, demand, strict=True)) for r in range(len(RESOURCES)))


def _measured(true: WorkloadFeatures, config: SimulatedConfig, rng: np.random.Generator) -> WorkloadFeatures:
    span = math.exp(rng.normal(0.0, config.profile_noise / 3.0))

    def off(demand: tuple[float, ...]) -> tuple[float, ...]:
        error = np.exp(rng.normal(0.0, config.profile_noise, len(demand)))
        return tuple(np.clip(np.array(demand) * error, 0.0, 1.0).tolist())

    demand = tuple(off(u) for u in true.segment_demand)
    shares = [share for share, _ in true.segments]
    return WorkloadFeatures(
        variant=true.variant,
        share=true.share,
        solo_ns=true.solo_ns * span,
        demand=_mean(shares, demand),
        segment_ns=tuple(ns * span for ns in true.segment_ns),
        segment_demand=demand,
    )


@dataclass(slots=True)
class _Run:
    workload: WorkloadFeatures
    lane: int
    dispatched_ns: float
    start_ns: float
    pace: float
    k: int = 0
    left: float = 0.0
    ends_ms: list[float] = field(default_factory=list)


class _Device:
    """One queue, first come first served on the first free lane; what is active advances between events."""

    def __init__(
        self,
        config: SimulatedConfig,
        workloads: Sequence[WorkloadFeatures],
        truth: TrueRates,
        rng: np.random.Generator,
    ) -> None:
        self._config, self._workloads, self._truth, self._rng = config, workloads, truth, rng
        self._active: list[_Run] = []
        self._queue: list[WorkloadFeatures] = []
        self._rows: list[CoRun] = []
        self._now = 0.0

    def run(self) -> tuple[list[CoRun], int]:
        """The rows in order of their dispatch, and the number of the first one after the change."""
        half, changed_at = self._config.n_runs // 2, math.inf
        for part in (0, 1):
            self._part(part, half * (1 + part) if part == 0 else self._config.n_runs)
            changed_at = min(changed_at, self._now)
        rows = sorted(self._rows, key=lambda row: row.dispatched_ms or 0.0)
        return rows, sum((row.dispatched_ms or 0.0) < changed_at / 1e6 for row in rows)

    def _part(self, part: int, until_n: int) -> None:
        mix = self._rng.dirichlet(np.full(len(self._workloads), 2.0))
        n_lanes, load = self._config.n_lanes[part], self._config.load[part]
        solo_ns = float(mix @ [w.solo_ns for w in self._workloads])
        gap_ns = solo_ns / (load * n_lanes)
        arrives = self._now + self._rng.exponential(gap_ns)
        while len(self._rows) < until_n:
            ends = self._until_next()
            if arrives <= ends:
                self._advance(arrives)
                if len(self._queue) < 4:
                    self._queue.append(self._workloads[int(self._rng.choice(len(mix), p=mix))])
                arrives = self._now + self._rng.exponential(gap_ns)
            else:
                self._advance(ends)
            self._dispatch(n_lanes)

    def _slowdown(self, run: _Run) -> float:
        others = [_active(other) for other in self._active if other is not run and self._started(other)]
        return self._truth(_active(run), others) * run.pace

    def _started(self, run: _Run) -> bool:
        return run.start_ns <= self._now

    def _until_next(self) -> float:
        """The next instant at which a segment ends or a run starts."""
        instants = [math.inf]
        for run in self._active:
            left = run.left * self._slowdown(run) if self._started(run) else run.start_ns - self._now
            instants.append(self._now + max(1.0, left))
        return min(instants)

    def _advance(self, to: float) -> None:
        span = to - self._now
        done = [(run, span / self._slowdown(run)) for run in self._active if self._started(run)]
        self._now = to
        for run, work in done:
            run.left -= work
            if run.left <= 1.0:
                run.ends_ms.append(to / 1e6)
                run.k += 1
                if run.k < len(run.workload.segment_ns):
                    run.left = run.workload.segment_ns[run.k]
                else:
                    self._end(run)

    def _end(self, run: _Run) -> None:
        self._active.remove(run)
        self._rows.append(
            CoRun(
                run="0",
                variant=run.workload.variant,
                share=run.workload.share,
                dispatched_ms=run.dispatched_ns / 1e6,
                start_ms=run.start_ns / 1e6,
                end_ms=self._now / 1e6,
                lane=run.lane,
                queue_n=len(self._active),
                segment_ends_ms=tuple(run.ends_ms),
            )
        )

    def _dispatch(self, n_lanes: int) -> None:
        taken = {run.lane for run in self._active}
        free = [lane for lane in range(n_lanes) if lane not in taken]
        while free and self._queue:
            workload = self._queue.pop(0)
            handover = self._config.handover_ms * 1e6 * self._rng.uniform(0.7, 1.3)
            pace = math.exp(self._rng.normal(0.0, self._config.run_noise))
            run = _Run(workload, free.pop(0), self._now, self._now + handover, pace)
            run.left = workload.segment_ns[0]
            self._active.append(run)


def _active(run: _Run) -> Active:
    return run.workload.variant, run.workload.share, run.k

"""What a prediction, a learning step and a calibration step cost, beside scikit-learn's regressors.

    python benchmarks/prediction_cost.py [--repeats 5] [--steps 10000000] [--json FILE]

Measures calls from Python, in one process on one thread, best median of interleaved repeats: the fluid
integration of 4 co-runners and a candidate with 16 segments each, on arrays that are laid out already; the
same from a snapshot to quantiles, everything included; one learning step of the estimator; one step of the
calibrator; and one prediction of the Gaussian process and the gradient boosting of the zoo. Then a fuzz of
the learning step, compiled, with outliers, stalls and constant inputs, that must end finite and bounded.
Does not measure how well any of them predicts: `cotenant study predictors` does.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from common import Row, arguments, finish, table
from cotenant.domain import (
    Candidate,
    InFlight,
    LaneUse,
    LoadEstimate,
    Observation,
    Overlap,
    Prediction,
    Snapshot,
    Variant,
)
from cotenant.ports import LaneInfo
from cotenant.predict.estimator import Overlapped
from cotenant.predict.fluid import FluidPredictor
from cotenant.predict.kernel import (
    AFTER,
    LANE,
    LEFT,
    N_COLUMNS,
    N_SEGMENTS,
    PACE,
    integrate,
)
from cotenant.predict.overlap_kernels import MAX_CROWD, MAX_SEGMENTS
from cotenant.predict.pair_map import ReducedMap
from cotenant.profile.features import FeatureTable, WorkloadFeatures

RESOURCES = ("compute", "bandwidth", "cache", "core")
BATCHES = (1, 2, 4, 8)
N_MODELS, N_BESIDE, N_LANES = 8, 4, 8
NOW = 10**12
MS = 10**6
CALLS = 2000


def features() -> FeatureTable:
    """Eight models at four batches, 16 segments each."""
    rng = np.random.default_rng(0)
    table = FeatureTable(RESOURCES, ("gflop", "mb"))
    for m in range(N_MODELS):
        for rows in BATCHES:
            spans = tuple((rng.exponential(1.0, MAX_SEGMENTS) * MS).tolist())
            demand = tuple(tuple(row) for row in rng.random((MAX_SEGMENTS, len(RESOURCES))).tolist())
            table.add(
                WorkloadFeatures(
                    variant=Variant(f"m{m}", rows), share=1.0, solo_ns=sum(spans), demand=demand[0],
                    statics=(float(rows), 2.0 * m + 1), segment_ns=spans, segment_demand=demand,
                )
            )  # fmt: skip
    return table


def snapshot() -> Snapshot:
    """Four runs in flight that have overlapped, and a busy load."""

    def flight(i: int) -> InFlight:
        others = [k for k in range(N_BESIDE) if k != i]
        return InFlight(
            dispatch_id=i, variant=Variant(f"m{i}", 4), lane=i, share=1.0, decided_at=NOW - 4 * MS,
            started_at=NOW - 3 * MS, segment=0, end_segment=1, boundary_at=None,
            overlaps=tuple(Overlap(k, Variant(f"m{k}", 4), NOW - 2 * MS, None, k) for k in others),
        )  # fmt: skip

    mix = tuple((Variant(f"m{k}", 1), 1 / N_MODELS) for k in range(N_MODELS))
    uses = tuple(LaneUse(lane=i, fill_per_s=50.0, refill=0.8) for i in range(N_LANES))
    load = LoadEstimate(
        models={}, refill=0.8, busy=0.5, fill_per_s=50.0, span_ns=1e7, variants=mix, lanes=uses
    )
    return Snapshot(at=NOW, in_flight=tuple(flight(i) for i in range(N_BESIDE)), load=load)


def integration(table: FeatureTable) -> Callable[[], Any]:
    """The integration alone."""
    rng = np.random.default_rng(1)
    n = N_BESIDE + 1
    chosen = [table.of(Variant(f"m{k}", 4)) for k in range(n)]
    runs, finish = np.zeros((n, N_COLUMNS)), np.zeros(n)
    runs[:, [PACE, LEFT]], runs[:, AFTER], runs[:, N_SEGMENTS] = 1.0, -1, MAX_SEGMENTS
    runs[:, LANE] = np.arange(n)
    segments = np.array([w.segment_ns for w in chosen])
    demands = np.array([w.segment_demand for w in chosen])
    arrays = (
        runs, segments, demands, demands.mean(axis=1), rng.random((n, n)), np.full(len(RESOURCES), 0.5),
        np.ones(MAX_CROWD + 1), np.tile([0.5, 1e7, 0.8, 0.0], (N_LANES, 1)), rng.random((n, N_LANES)) / 4,
    )  # fmt: skip
    members = np.arange(n)
    return lambda: integrate(members, *arrays, finish)


def observation(issued: Prediction) -> Observation:
    beside = tuple(
        Overlap(k, Variant(f"m{k}", 4), NOW - (15 - k) * MS, NOW - (5 - k) * MS, k)
        for k in range(1, N_BESIDE + 1)
    )
    return Observation(
        dispatch_id=1, variant=Variant("m0", 4), rows=4, lane=0, share=1.0, decided_at=NOW - 16 * MS,
        started_at=NOW - 16 * MS, ended_at=NOW, first_segment=0, end_segment=1, segment_ended_at=(),
        predictions=(issued,), overlaps=beside,
    )  # fmt: skip


def baselines(table: FeatureTable, lanes: list[LaneInfo]) -> dict[str, Callable[[], Any]]:
    """A prediction of each, fitted on a few hundred runs."""
    from cotenant.predict.zoo import ZOO

    rng = np.random.default_rng(2)
    known = list(table)
    runs = []
    for n in range(400):
        victim, other = (known[int(k)] for k in rng.integers(len(known), size=2))
        span = round(victim.solo_ns * math.exp(0.3 * rng.random()))
        runs.append(
            Observation(
                dispatch_id=n, variant=victim.variant, rows=1, lane=0, share=1.0, decided_at=NOW,
                started_at=NOW, ended_at=NOW + span, first_segment=0, end_segment=1, segment_ended_at=(),
                predictions=(), overlaps=(Overlap(-1, other.variant, NOW, None, 1),),
            )
        )  # fmt: skip
    found = {}
    for name in ("gaussian-process", "boosting"):
        made = ZOO[name](table, lanes)
        made.fit(runs)
        candidate = Candidate(variant=Variant("m7", 2), lane=N_BESIDE, start_at=NOW)
        found[name] = lambda made=made, candidate=candidate: made.predict(snapshot(), [candidate])
    return found


def microseconds(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median over repeats, taken in turn."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            n = max(20, CALLS // 40) if name in ("gaussian-process", "boosting") else CALLS
            call()
            began = time.perf_counter()
            for _ in range(n):
                call()
            found[name].append((time.perf_counter() - began) / n * 1e6)
    return {name: statistics.median(spans) for name, spans in found.items()}


def fuzz(predictor: FluidPredictor, issued: Prediction, n_steps: int) -> dict[str, Any]:
    """Learning steps of any kind; returns what is left of the estimator."""
    rng = np.random.default_rng(4)
    template = observation(issued)
    estimator = predictor.estimator
    known = estimator.workload(template.variant, 1.0)
    seen = predictor._courses.beside(known, template)
    entries = slice(seen.first, seen.first + seen.n)
    who, times = seen.who[entries].copy(), seen.times[entries] - template.started_at
    others, nobody = Overlapped(who, times.copy(), 0, len(who)), Overlapped(who, times, 0, 0)
    at, done = NOW, 0
    began = time.perf_counter()
    while done < n_steps:
        kinds = rng.random(100_000)
        factors = np.exp(rng.standard_t(2, 100_000).clip(-9, 9))
        for kind, factor in zip(kinds.tolist(), factors.tolist(), strict=True):
            span = 16.0 * MS if kind < 0.3 else 16.0 * MS * factor
            at += 10 * MS if kind < 0.95 else 3_000 * MS
            others.times[:] = times + (at - span)
            beside = nobody if 0.3 < kind < 0.5 else others
            estimator.learn(known, 0, beside, at - span, at, known.features.solo_ns)
        done += len(kinds)
    finite = bool(np.isfinite(estimator.theta).all() and np.isfinite(estimator.root).all())
    return {
        "steps": done,
        "finite": finite and bool(np.isfinite(estimator.terms.level).all()),
        "largest_weight": float(np.abs(estimator.theta).max()),
        "trace_over_prior": float((estimator.root**2).sum() / len(estimator.theta)),
        "clipped": estimator.n_clipped,
        "us_per_step": (time.perf_counter() - began) / done * 1e6,
    }


def main() -> int:
    options = arguments(__doc__, repeats=5, steps=10_000_000)
    table_of = features()
    lanes = [LaneInfo(index=i, units=(0,)) for i in range(N_LANES)]
    predictor = FluidPredictor(table_of, ReducedMap(table_of).begin(), lanes=lanes)
    seen, candidate = snapshot(), Candidate(variant=Variant("m7", 2), lane=N_BESIDE, start_at=NOW)
    forecast = predictor.predict(seen, [candidate])
    issued = Prediction(
        issued_at=NOW - 16 * MS, finish_at=tuple(forecast.finish_at[0]), slo_level=0.99, version=1,
        corunners=3, features=forecast.features[0],
    )  # fmt: skip
    run = observation(issued)
    known = predictor.estimator.workload(run.variant, 1.0)
    beside = predictor._courses.beside(known, run)
    offsets = issued.features[1:]
    spent = microseconds(
        {
            "integration, 4 co-runners x 16 segments": integration(table_of),
            "prediction, snapshot to quantiles": lambda: predictor.predict(seen, [candidate]),
            "learning step of the estimator": lambda: predictor.estimator.learn(
                known, 0, beside, run.started_at, NOW, known.features.solo_ns
            ),
            "learning from an observation, all in all": lambda: predictor.learn(run),
            "calibration step": lambda: predictor.calibrator.learn(("m0", 3), 0.01, offsets, NOW),
            **baselines(table_of, lanes),
        },
        options.repeats,
    )
    targets = {
        "integration, 4 co-runners x 16 segments": 10.0,
        "learning step of the estimator": 20.0,
        "calibration step": 5.0,
    }
    fuzzed = fuzz(predictor, issued, options.steps)
    rows = []
    for name, us in spent.items():
        target = targets.get(name)
        shown = "" if target is None else f"{target:.0f} us"
        rows.append(Row(name, f"{us:.1f} us", shown, None if target is None else us <= target))
    bounded = fuzzed["finite"] and fuzzed["largest_weight"] < 50 and fuzzed["trace_over_prior"] < 2
    end = "finite, bounded" if bounded else "not finite or not bounded"
    rows.append(Row(f"fuzz, {fuzzed['steps']:,} steps", end, "finite, bounded", bounded))
    table("cost of a prediction", rows)
    return finish(options, {"microseconds": spent, "fuzz": fuzzed}, rows)


if __name__ == "__main__":
    raise SystemExit(main())

"""What one request costs the thread that decides, by part: 64 models, 8 lanes, the server's predictor.

How this works. As in `decision_time.py` the real scheduler is driven through virtual time by the simulator,
here with the predictor that the server runs, observers as it has them (metrics, checkpoints), models of
several segments and lanes that slow each other. A first run measures whole decisions; a second one has the
parts below wrapped in stopwatches, each of which counts what it does itself and not what it calls that is a
part of its own (what a stopwatch costs is measured and taken off). Whole decisions are CPU time of the thread
that decides, parts real time of the same. Then single calls: a prediction of 1 and of 4 candidates beside 4
dispatches of 16 segments. `--before` takes the JSON of an earlier run and shows its figures beside these.
Does not measure the interpreting of actions by real lanes, nor a machine whose caches a model has just
emptied: there everything takes two to three times as long.

    python benchmarks/decision_cost.py [--requests 6000] [--models 64] [--lanes 8] [--load 0.5]
                                       [--repeats 3] [--before FILE] [--json FILE]
"""

from __future__ import annotations

import gc
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import prediction_cost
from common import Row, arguments, finish, note, table
from cotenant.assemble import make_scheduler
from cotenant.clock import VirtualClock, thread_cpu_ns
from cotenant.domain import LEVELS, Candidate, Observation, Outcome, Variant
from cotenant.drive import Drive
from cotenant.engine import GC_THRESHOLDS
from cotenant.execute.lanes import lane_layout
from cotenant.learned import Learned, StateFile
from cotenant.ports import LaneInfo
from cotenant.predict.calibrate import Calibrator
from cotenant.predict.drift import DriftDetector
from cotenant.predict.estimator import Estimator
from cotenant.predict.fluid import FluidPredictor
from cotenant.predict.pair_map import ReducedMap
from cotenant.predict.solo import SoloPredictor
from cotenant.predictors import make_fluid
from cotenant.profile.features import FeatureTable, WorkloadFeatures
from cotenant.profile.records import StoredProfiles
from cotenant.schedule import scheduler as scheduler_module
from cotenant.schedule.policies import make_policy
from cotenant.schedule.scheduler import Scheduler
from cotenant.schedule.view import Flight, View
from cotenant.simulate.cpu import CpuTruth, SimulatedCpu
from cotenant.simulate.driver import Simulation, VirtualTimers
from cotenant.telemetry.checkpoint import Checkpointer
from cotenant.telemetry.metrics import Metrics
from cotenant.workload.characterise import OnlineLoadMeter
from decision_time import arrivals, synthetic

RESOURCES = ("compute", "bandwidth", "cache", "core")
N_SEGMENTS = 6
TARGET_P99_US = 200.0


class Kept:
    """An `Observer` that keeps decision times only."""

    def __init__(self) -> None:
        self.decision_ns: list[int] = []
        self.n_ended = 0
        self.n_runs = 0

    def settled(self, outcome: Outcome) -> None:
        self.n_ended += 1

    def observed(self, observation: Observation) -> None:
        self.n_runs += 1

    def decided(self, spent_ns: int, at: int) -> None:
        self.decision_ns.append(spent_ns)


class ThreadClock:
    """CPU time of this thread: what other processes do to a decision does not count."""

    now = staticmethod(thread_cpu_ns)


class Split:
    """Stopwatches around functions, by part. Time in a part nested in another counts for the inner one."""

    def __init__(self) -> None:
        self.spent: dict[str, int] = {}
        self.calls: dict[str, int] = {}
        self._inside: list[int] = []
        self._undo: list[Callable[[], None]] = []

    def wrap(self, owner: Any, name: str, part: str) -> None:
        """Measure `owner.name` from now on."""
        function = getattr(owner, name)
        inside, spent, calls, now = self._inside, self.spent, self.calls, time.perf_counter_ns
        spent.setdefault(part, 0)
        calls.setdefault(part, 0)

        def measured(*args: Any, **more: Any) -> Any:
            inside.append(0)
            began = now()
            try:
                return function(*args, **more)
            finally:
                whole = now() - began
                spent[part] += whole - inside.pop()
                calls[part] += 1
                if inside:
                    inside[-1] += whole

        setattr(owner, name, measured)
        self._undo.append(partial(setattr, owner, name, function))

    def undo(self) -> None:
        for put_back in reversed(self._undo):
            put_back()

    def own_cost(self) -> tuple[float, float]:
        """What a stopwatch adds (ns): to its own part, and to whoever calls it."""

        class Empty:
            def call(self) -> None: ...

        plain, n = Empty(), 20_000
        began = time.perf_counter_ns()
        for _ in range(n):
            plain.call()
        bare = (time.perf_counter_ns() - began) / n
        split = Split()
        split.wrap(Empty, "call", "inner")
        began = time.perf_counter_ns()
        for _ in range(n):
            plain.call()
        whole = (time.perf_counter_ns() - began) / n
        split.undo()
        inner = split.spent["inner"] / n
        return inner, whole - inner - bare


PARTS: list[tuple[Any, str, str]] = [
    (FluidPredictor, "predict", "predict"),
    (SoloPredictor, "learn", "learn: screen"),
    (Estimator, "learn", "learn: estimator"),
    (Calibrator, "learn", "learn: calibrator"),
    (DriftDetector, "learn", "learn: drift"),
    (FluidPredictor, "learn", "learn: rest"),
    (FluidPredictor, "solo", "solo look-ups"),
    (OnlineLoadMeter, "arrived", "load meter"),
    (OnlineLoadMeter, "dispatched", "load meter"),
    (OnlineLoadMeter, "freed", "load meter"),
    (OnlineLoadMeter, "lanes_busy", "load meter"),
    (OnlineLoadMeter, "estimate", "load meter"),
    (View, "snapshot", "snapshot"),
    (scheduler_module, "overlap_begins", "overlaps"),
    (scheduler_module, "overlap_ends", "overlaps"),
    (Flight, "observation", "settle, observe"),
    (Scheduler, "_settle", "settle, observe"),
    (Scheduler, "_expire", "expire"),
    (Scheduler, "handle", "scheduler, rest"),
    (Scheduler, "next_wakeup", "next wake-up"),
    (Metrics, "settled", "metrics"),
    (Metrics, "observed", "metrics"),
    (Metrics, "decided", "metrics"),
    (Checkpointer, "observed", "checkpoint"),
    (Drive, "post", "drive"),
]
"""Where stopwatches go; the policy's two calls and the simulated device come besides."""


def features(profiles: StoredProfiles, seed: int) -> FeatureTable:
    """Segments and demands of every variant."""
    rng = np.random.default_rng(seed)
    found = FeatureTable(RESOURCES, ("gflop", "mb"))
    for record in profiles.records:
        solo = float(record.profile.median_ns)
        spans = rng.exponential(1.0, N_SEGMENTS) + 0.1
        spans *= solo / spans.sum()
        demand = rng.random((N_SEGMENTS, len(RESOURCES)))
        found.add(
            WorkloadFeatures(
                variant=record.profile.variant, share=1.0, solo_ns=solo,
                demand=tuple((spans @ demand / solo).tolist()), statics=(solo / 1e6, float(rng.random() + 1)),
                segment_ns=tuple(spans.tolist()), segment_demand=tuple(map(tuple, demand.tolist())),
            )
        )  # fmt: skip
    return found


class Run:
    """A simulated run, ready to go."""

    def __init__(self, n_models: int, n_lanes: int, load: float, n_requests: int, folder: str) -> None:
        profiles = synthetic(n_models, 0)
        specs = [profiles.spec(f"m{i}") for i in range(n_models)]
        lanes = lane_layout(n_lanes, n_lanes)
        clock = VirtualClock()
        timers = VirtualTimers(clock)
        names = [spec.name for spec in specs]
        rng = np.random.default_rng(7)
        slowdown = {(a, b): float(1.0 + 0.1 * rng.random()) for a in names for b in names}
        self.predictor = make_fluid(profiles, features(profiles, 3), lanes)
        self.kept = Kept()
        learned: Learned = self.predictor
        self.checkpointer = Checkpointer(learned, StateFile(_path(folder), "device"), timers)
        self.executor = SimulatedCpu(
            CpuTruth(samples=profiles.samples(), slowdown=slowdown), lanes, timers, seed=0
        )
        self.policy = make_policy("default", lanes)
        self.simulation = Simulation(
            scheduler=make_scheduler(self.policy, self.predictor, lanes, specs),
            executor=self.executor,
            learner=self.predictor,
            clock=clock,
            timers=timers,
            on_settled=lambda outcome: None,
            observers=[Metrics(), self.checkpointer, self.kept],
            stopwatch=ThreadClock(),
        )
        self.requests = arrivals(profiles, specs, n_requests, 0, n_lanes=n_lanes, load=load)

    def go(self) -> float:
        """Runs to the end; CPU seconds of this thread."""
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        began = thread_cpu_ns()
        self.simulation.run(self.requests)
        spent = (thread_cpu_ns() - began) / 1e9
        gc.unfreeze()
        self.checkpointer.close()
        return spent


def _path(folder: str) -> Path:
    return Path(folder) / "learned"


def whole(run: Run) -> dict[str, float]:
    """Decisions, without stopwatches inside; the first tenth left out."""
    cpu_s = run.go()
    spent = np.array(run.kept.decision_ns[len(run.kept.decision_ns) // 10 :]) / 1000
    return {
        "us_per_request": 1e6 * cpu_s / run.kept.n_ended,
        "decisions_per_request": len(run.kept.decision_ns) / run.kept.n_ended,
        "dispatches_per_request": run.kept.n_runs / run.kept.n_ended,
        "p50_us": float(np.percentile(spent, 50)),
        "p99_us": float(np.percentile(spent, 99)),
        "mean_us": float(spent.mean()),
    }


def by_part(run: Run) -> dict[str, float]:
    """us per request of each part."""
    split = Split()
    own, callers = split.own_cost()
    for owner, name, part in PARTS:
        split.wrap(owner, name, part)
    split.wrap(type(run.policy), "plan", "policy: plan")
    split.wrap(type(run.policy), "admit", "policy: admit")
    split.wrap(SimulatedCpu, "start", "(simulated device)")
    split.wrap(SimulatedCpu, "_ended", "(simulated device)")
    split.wrap(Kept, "decided", "(benchmark)")
    try:
        run.go()
    finally:
        split.undo()
    n = run.kept.n_ended
    return {
        part: (spent - own * split.calls[part]) / n / 1000 for part, spent in sorted(split.spent.items())
    } | {"(stopwatches)": callers * sum(split.calls.values()) / n / 1000}


def single_calls(repeats: int) -> dict[str, float]:
    """us of a prediction with 1 and with 4 candidates, 4 in flight, 16 segments each."""
    known = prediction_cost.features()
    lanes = [LaneInfo(index=i, units=(0,)) for i in range(prediction_cost.N_LANES)]
    predictor = FluidPredictor(known, ReducedMap(known).begin(), lanes=lanes)
    seen = prediction_cost.snapshot()
    beside = prediction_cost.N_BESIDE
    many = [
        Candidate(variant=Variant(f"m{4 + k}", 2), lane=beside + k, start_at=prediction_cost.NOW)
        for k in range(4)
    ]
    calls: dict[str, Callable[[], Any]] = {
        "prediction, 1 candidate": lambda: predictor.predict(seen, many[:1]),
        "prediction, 4 candidates": lambda: predictor.predict(seen, many),
    }
    assert len(predictor.predict(seen, many).finish_at[0]) == len(LEVELS) + 1
    return prediction_cost.microseconds(calls, repeats)


def main() -> int:
    options = arguments(__doc__, requests=6000, models=64, lanes=8, load=0.5, repeats=3, before="")
    wholes, splits = [], []
    for repeat in range(options.repeats):
        note(f"repeat {repeat + 1} of {options.repeats}")
        size = (options.models, options.lanes, options.load, options.requests)
        with TemporaryDirectory() as folder:
            wholes.append(whole(Run(*size, folder)))
            splits.append(by_part(Run(*size, folder)))
    facts = {
        "parts_us": {key: statistics.median(found[key] for found in splits) for key in splits[0]},
        "whole": {key: statistics.median(found[key] for found in wholes) for key in wholes[0]},
        "calls_us": single_calls(max(3, options.repeats)),
    }
    before = json.loads(Path(options.before).read_text()) if options.before else {}
    rows = [
        Row(key, _shown(key, value, before.get(kind, {}).get(key)), *_target(key, value))
        for kind in facts
        for key, value in sorted(facts[kind].items(), key=lambda item: -item[1])
    ]
    table(f"us per request, {options.models} models, {options.lanes} lanes, load {options.load}", rows)
    settings = {key: getattr(options, key) for key in ("requests", "models", "lanes", "load", "repeats")}
    return finish(options, {**facts, "settings": settings}, rows)


def _shown(name: str, value: float, before: float | None) -> str:
    unit = "" if "per_request" in name and not name.startswith("us") else " us"
    return f"{value:.1f}{unit}" if before is None else f"{before:.1f} -> {value:.1f}{unit}"


def _target(name: str, value: float) -> tuple[str, bool | None]:
    return ("<= 200 us", value <= TARGET_P99_US) if name == "p99_us" else ("", None)


if __name__ == "__main__":
    raise SystemExit(main())

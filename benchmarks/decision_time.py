"""How long one decision of the scheduler takes, at 8 and at 64 models on 8 lanes.

How this works. The real scheduler and the load meter are driven through virtual time by the simulator, in two
ways. The default policy with the solo predictor: synthetic models of 3 to 60 ms on lanes of a core each, SLO
5 times the solo median, Poisson arrivals at 0.9 of what the lanes complete. And `ours` with the fluid
predictor, learning: the twin of an H100 with models of the kernel traces in turn, Zipf popularity, 800
requests/s, so that most of the lanes are busy all the time. Timed is what the deciding thread does between an
event and the actions that follow from it (`Scheduler.handle`), in real time, of the default policy after the
first tenth of the run: one decision may start several batches. It does not measure the interpreting of
actions, HTTP, or a machine whose caches a model has just emptied.

    python benchmarks/decision_time.py [--requests 8000] [--repeats 3] [--json FILE]
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from common import Row, arguments, finish, note, table
from cotenant.catalogue import places
from cotenant.clock import MonotonicClock, VirtualClock
from cotenant.config import load_scenario
from cotenant.domain import NS_PER_MS, NS_PER_S, ModelSpec, Request, SoloProfile, Variant
from cotenant.execute.lanes import lane_layout
from cotenant.experiment.recorder import Recorder
from cotenant.experiment.simulated import device_of, simulate
from cotenant.predict.solo import SoloPredictor
from cotenant.profile.records import SoloRecord, StoredProfiles
from cotenant.schedule.policies import make_policy
from cotenant.schedule.scheduler import Scheduler
from cotenant.simulate.cpu import CpuTruth, SimulatedCpu
from cotenant.simulate.driver import Simulation, VirtualTimers
from cotenant.workload.characterise import OnlineLoadMeter

N_LANES = 8
TWIN_PER_S = 800.0
KERNELS = Path(__file__).resolve().parent.parent / "examples" / "kernels" / "v100_forward.csv"
TRACES = ("mobilenetv2", "efficientnet", "resnet50", "transformer", "resnet101", "bert")
LOAD = 0.9
TARGET_P99_US = 200.0


def synthetic(n_models: int, seed: int) -> StoredProfiles:
    """Models of 3 to 60 ms; a batch of n rows takes 1 + 0.7 (n - 1) times as long as one row."""
    rng = np.random.default_rng(seed)
    specs, records = [], []
    for i, solo_ms in enumerate(np.geomspace(3.0, 60.0, n_models)):
        name = f"m{i}"
        slo_ns = int(5 * solo_ms * NS_PER_MS)
        spec = ModelSpec(name=name, slo_ns=slo_ns, max_batch=8, row_buckets=(1, 2, 4, 8))
        specs.append(spec)
        for rows in spec.row_buckets:
            median = solo_ms * (1 + 0.7 * (rows - 1)) * NS_PER_MS
            samples = np.sort(median * rng.lognormal(0.0, 0.03, 32)).astype(int).tolist()
            profile = SoloProfile(
                variant=Variant(name, rows),
                share=1.0,
                median_ns=int(median),
                spread_ns=int(0.03 * median),
                n_samples=32,
            )
            records.append(SoloRecord(source=name, profile=profile, samples_ns=tuple(samples)))
    return StoredProfiles(specs, records)


def arrivals(
    profiles: StoredProfiles,
    specs: list[ModelSpec],
    n: int,
    seed: int,
    *,
    n_lanes: int = N_LANES,
    load: float = LOAD,
) -> list[Request]:
    """Poisson arrivals at `load` of the lanes, rates in inverse proportion to the solo time."""
    rng = np.random.default_rng(seed)
    solo_s = np.array([profiles.solo(Variant(spec.name, 1)).median_ns / NS_PER_S for spec in specs])
    share = (1 / solo_s) / (1 / solo_s).sum()
    rate = load * n_lanes / float((share * solo_s).sum())
    at = np.cumsum(rng.exponential(1 / rate, n) * NS_PER_S).astype(int)
    which = rng.choice(len(specs), n, p=share)
    return [
        Request(
            id=f"r{i}",
            model=specs[k].name,
            arrived_at=instant,
            deadline_at=instant + (specs[k].slo_ns or 0),
            job_class=specs[k].job_class,
        )
        for i, (instant, k) in enumerate(zip(at.tolist(), which.tolist(), strict=True))
    ]


def measure(n_models: int, n_requests: int, seed: int) -> list[float]:
    """Real time of every decision (us), the first tenth left out."""
    profiles = synthetic(n_models, seed)
    specs = [profiles.spec(f"m{i}") for i in range(n_models)]
    lanes = lane_layout(N_LANES, N_LANES)
    clock = VirtualClock()
    timers = VirtualTimers(clock)
    predictor = SoloPredictor(profiles)
    recorder = Recorder(lanes)
    simulation = Simulation(
        scheduler=Scheduler(
            policy=make_policy("deferred_edf"),
            predictor=predictor,
            load=OnlineLoadMeter(),
            lanes=lanes,
            specs=specs,
        ),
        executor=SimulatedCpu(CpuTruth(samples=profiles.samples(), slowdown={}), lanes, timers, seed),
        learner=predictor,
        clock=clock,
        timers=timers,
        on_settled=lambda outcome: None,
        observers=[recorder],
        stopwatch=MonotonicClock(),
    )
    simulation.run(arrivals(profiles, specs, n_requests, seed))
    spent = recorder.decision_ns[len(recorder.decision_ns) // 10 :]
    return [ns / 1000 for ns in spent]


def on_a_twin(n_models: int, n_requests: int, seed: int, folder: Path) -> list[float]:
    """The same of `ours` on the twin of a GPU."""
    lines = [
        f"[load]\nduration_s = {n_requests / TWIN_PER_S}\nseed = {seed}\npopularity = 'zipf'",
        f"zipf_alpha = 0.9\nrate_per_s = {TWIN_PER_S}",
        f"[device]\nkind = 'twin'\nspec = 'h100'\nlanes = {N_LANES}",
    ]
    for i in range(n_models):
        trace = TRACES[i % len(TRACES)]
        lines.append(
            f"[[model]]\nname = '{trace}-{i}'\nsource = 'kernels:{KERNELS}#{trace}'\n"
            f"slo_scale = {(20, 8)[i % 2]}\nmax_batch = 16"
        )
    path = folder / f"twin_{n_models}.toml"
    path.write_text("\n".join(lines))
    scenario = load_scenario(path)
    device = device_of(scenario, places(folder))
    report = simulate(scenario, device, "ours")
    return [float(report["decision_us"][key]) for key in ("p50", "p99")]


def main() -> int:
    options = arguments(__doc__, requests=8000, repeats=3)
    facts: dict[str, Any] = {}
    rows: list[Row] = []
    kinds = ("deferred_edf", "ours")
    runs: dict[tuple[str, int], list[tuple[float, float]]] = {(k, n): [] for n in (8, 64) for k in kinds}
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(options.repeats):
            for (policy, n_models), found in runs.items():
                note(f"repeat {repeat + 1} of {options.repeats}: {policy}, {n_models} models")
                if policy == "ours":
                    p50, p99 = on_a_twin(n_models, options.requests, repeat + 1, Path(folder))
                else:
                    p50, p99 = np.percentile(measure(n_models, options.requests, seed=repeat), [50, 99])
                found.append((float(p50), float(p99)))
    for (policy, n_models), found in runs.items():
        p50, p99 = (statistics.median(run[i] for run in found) for i in (0, 1))
        facts[f"{policy} {n_models}"] = {"p50_us": p50, "p99_us": p99}
        met = p99 <= TARGET_P99_US
        rows.append(
            Row(f"{policy}, {n_models} models: p99", f"{p99:.0f} us (p50 {p50:.0f})", "<= 200 us", met)
        )
    table(f"scheduler decision time, {N_LANES} lanes", rows)
    return finish(options, {"runs": facts, "load": LOAD, "lanes": N_LANES}, rows)


if __name__ == "__main__":
    raise SystemExit(main())

"""Records what a device does: outputs, solo times, stressors, co-runs under random arrivals, noise, costs.

How this works. The torch zoo is loaded by the very executor that serves, and dispatches are started on its
lanes directly, without a scheduler: what is recorded is the device, not a policy. The phases below share the
time after loading as `PLAN` says, so that the whole fits into `--minutes`. The simple policies come last, on
a server of their own. Results are written even when a later phase fails.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import device
import numpy as np
import policies
import stress
import torch
from counters import Counters
from dataset import Recorded, write
from driver import Driver, Ended
from episodes import Stage
from subjects import INPUTS, SEED, load_stressors, load_zoo, say
from timeline import kernels

from cotenant.clock import MonotonicClock
from cotenant.cores import available_cores
from cotenant.domain import NS_PER_S, Variant
from cotenant.execute.torch.executor import TorchExecutor, cuda_lanes
from cotenant.execute.torch.stressors import PREFIX
from cotenant.ports import LaneInfo

ROOT = Path(__file__).resolve().parents[2]
N_LANES = 4
PLAN = {
    "solo": 0.08, "counters": 0.05, "correct": 0.08, "stress": 0.10, "partitions": 0.05, "noise": 0.07,
    "pairs": 0.09, "corun": 0.36, "policies": 0.12,
}  # fmt: skip
"""Shares of the time after loading."""
FEWEST_SOLO = 5
COUNTED_S = 0.15
"""Span of runs back to back from which counters are read (s); NVML wants 100 ms."""
GAPS = 400
FEWEST_CHECKED, FEWEST_DISPATCHES = 10_000, 50_000
"""On a GPU: co-located batches compared, and dispatches of the recording; they may take twice their time."""
LIMIT_S = 8.5 * 60
"""All in all, loading twice included (s)."""
CLOSE_ENOUGH = 0.05
"""Relative error (norm) allowed against the fp32 reference on the CPU: half precision through many layers."""


@dataclass
class Session:
    """One recording under way."""

    executor: TorchExecutor
    driver: Driver
    recorded: Recorded
    budget_s: float
    cuda: bool
    facts: dict[str, Any] = field(default_factory=dict)

    def phase(self, name: str, what: str, do: Callable[[float], Any]) -> None:
        """One phase, told; its facts, if it gives any, are kept under its name."""
        say(what)
        began = self.driver.clock.now()
        found = do(PLAN.get(name, 0.0) * self.budget_s)
        if found is not None:
            self.facts[name] = found
        self.facts.setdefault("phase_s", {})[name] = (self.driver.clock.now() - began) / NS_PER_S


def reference(session: Session, seconds: float) -> dict[str, Any]:
    """Each model's outputs against the same weights in fp32 on the CPU: largest relative error (norm)."""
    from cotenant.execute.torch.zoo import blueprint

    worst: dict[str, float] = {}
    for name, subject in session.recorded.subjects.items():
        model, variant, inputs = subject.work(subject.variants[0])
        (found,) = session.driver.outputs(model, variant, inputs)
        plain = blueprint(name, small=not session.cuda, seed=SEED, dtype=torch.float32).module
        with torch.inference_mode():
            expected = plain(*[torch.from_numpy(inputs[spec.name]) for spec in model.metadata.inputs])
        errors = []
        for spec, wanted in zip(model.metadata.outputs, expected, strict=True):
            right = wanted.numpy()
            errors.append(float(np.linalg.norm(found[spec.name] - right) / max(1e-30, np.linalg.norm(right))))
        worst[name] = max(errors)
    return {"relative_error": worst, "within": CLOSE_ENOUGH, "ok": max(worst.values()) <= CLOSE_ENOUGH}


def solo(session: Session, seconds: float) -> None:
    """Each variant alone on each share, in rounds over all, until the time is over."""
    clock, driver = session.driver.clock, session.driver
    found: dict[tuple[Variant, float], list[Ended]] = {
        (v, share): []
        for s in session.recorded.subjects.values()
        for v in s.variants
        for share in session.executor.lanes[0].shares
    }
    until = clock.now() + int(seconds * NS_PER_S)
    while clock.now() < until or min(map(len, found.values())) < FEWEST_SOLO:
        for (variant, share), runs in found.items():
            runs.append(driver.run(*session.recorded.subjects[variant.model].work(variant), share))
    session.recorded.alone = found


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing on standard error: some builds of torch print when a profiler starts and stops."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def count(session: Session, seconds: float) -> None:
    """Counters of each variant alone, as far as time allows, and kernels of the smallest and largest."""
    clock, driver = session.driver.clock, session.driver
    until = clock.now() + int(seconds * NS_PER_S)
    for subject in session.recorded.subjects.values():
        for variant in dict.fromkeys((subject.variants[0], subject.variants[-1])):
            with quiet():
                session.recorded.kernels += kernels(subject, variant)
        for variant in subject.variants:
            mark = session.recorded.counters.begin()
            if mark is None or clock.now() > until:
                continue
            stop_at = clock.now() + int(COUNTED_S * NS_PER_S)
            while clock.now() < stop_at:
                driver.run(*subject.work(variant))
            session.recorded.used[variant] = session.recorded.counters.end(mark)


def correct(session: Session, seconds: float) -> dict[str, Any]:
    """Outputs of co-located batches against the same batches alone: bit for bit."""
    driver, subjects = session.driver, session.recorded.subjects
    alone = {
        (variant, i): driver.outputs(*subject.work(variant, i))
        for subject in subjects.values()
        for variant in subject.variants
        for i in range(INPUTS)
    }
    rng = np.random.default_rng(SEED + 1)
    everything = [(s, v) for s in subjects.values() for v in s.variants]
    n = n_different = 0
    under_way: dict[int, tuple[Variant, int]] = {}
    goes_on = patience(session, seconds, FEWEST_CHECKED)
    while goes_on(n) or under_way:
        while len(under_way) < len(driver.executor.lanes) and goes_on(n):
            subject, variant = everything[int(rng.integers(len(everything)))]
            i = int(rng.integers(INPUTS))
            number = driver.start(driver.free_lane(), *subject.work(variant, i))
            under_way[number] = (variant, i)
        ended = driver.wait()
        found = driver.executor.take_results(ended.dispatch_id)
        n += 1
        n_different += not same(found, alone[under_way.pop(ended.dispatch_id)])
    return {"batches": n, "different": n_different}


def patience(session: Session, seconds: float, fewest: int) -> Callable[[int], bool]:
    """Whether to go on with so many done: until the time is over; on a GPU until also the fewest are done,
    but not for more than twice the time."""
    clock = session.driver.clock
    began = clock.now()

    def goes_on(n: int) -> bool:
        spent_s = (clock.now() - began) / NS_PER_S
        return spent_s < seconds or (session.cuda and n < fewest and spent_s < 2 * seconds)

    return goes_on


def same(found: Any, expected: Any) -> bool:
    pairs = zip(found or (), expected, strict=True)
    return bool(found) and all(np.array_equal(a[key], b[key]) for a, b in pairs for key in b)


def pairs(session: Session, seconds: float) -> list[dict[str, Any]]:
    """Every model beside every other, both back to back: medians over solo medians."""
    solo_ns = session.recorded.solo_ns
    subjects = session.recorded.subjects
    names = sorted(subjects)
    work = [(a, b) for i, a in enumerate(names) for b in names[i:]]
    rows = []
    for a, b in work:
        first, second = subjects[a], subjects[b]
        spans = session.driver.beside(
            first.work(first.middle), second.work(second.middle, 1), int(seconds * NS_PER_S / len(work))
        )
        ways = [(a, b, first.middle, spans[0]), (b, a, second.middle, spans[1])]
        for victim, aggressor, variant, found in ways[: 1 if a == b else 2]:
            slowdown = statistics.median(found) / solo_ns[variant, 1.0]
            rows.append(
                {
                    "victim": victim,
                    "aggressor": aggressor,
                    "batch": variant.rows,
                    "slowdown": slowdown,
                    "n": len(found),
                }
            )
    return rows


def coruns(session: Session, seconds: float) -> None:
    """The co-run recording, and what the device holds before and after it."""
    recorded = session.recorded
    stage = Stage(session.driver, recorded.subjects, recorded.solo_ns, session.executor.lanes[0].shares)
    before = device.memory_mib()
    n = 0
    goes_on = patience(session, seconds, FEWEST_DISPATCHES)
    for number, ended in stage.coruns():
        recorded.episodes.append((number, ended))
        n += len(ended)
        if number % 20 == 0:
            say(f"  {n} dispatches")
        if not goes_on(n):
            break
    session.facts["memory_mib"] = {"before": before, "after": device.memory_mib()}


def noise(session: Session, seconds: float) -> dict[str, Any]:
    return Stage(session.driver, session.recorded.subjects, session.recorded.solo_ns).noise(seconds)


def costs(session: Session, seconds: float) -> dict[str, float]:
    """Host time and idle gaps."""
    subjects = session.recorded.subjects
    shortest = min(subjects.values(), key=lambda s: session.recorded.solo_ns[s.middle, 1.0])
    gaps = session.driver.back_to_back(shortest.work(shortest.middle), GAPS)
    found = session.driver.host_facts()
    return found | {
        "gap_us": float(np.median(gaps)) / 1000,
        "gap_p90_us": float(np.percentile(gaps, 90)) / 1000,
    }


def record(session: Session) -> None:
    """Every phase that uses the recording's own executor."""
    clock = session.driver.clock
    stressors = load_stressors(session.executor)
    subjects = session.recorded.subjects
    phase = session.phase
    phase("reference", "outputs against fp32 on the CPU", lambda s: reference(session, s))
    phase("solo", "solo times", lambda s: solo(session, s))
    phase("counters", "kernels and counters", lambda s: count(session, s))
    phase("transfers", "transfers", lambda s: device.transfers(clock, cuda=session.cuda))
    phase("correct", "co-located outputs against those alone", lambda s: correct(session, s))

    def stressed(seconds: float) -> None:
        session.recorded.stressed = stress.measure(session.driver, subjects, stressors, seconds)

    phase("stress", "stressors", stressed)
    for name in stressors:
        session.executor.unload(PREFIX + name)
    phase(
        "partitions",
        "partitions",
        lambda s: device.partitions(session.driver, session.executor, subjects, session.recorded.solo_ns, s),
    )
    phase("noise", "noise: the same episodes again", lambda s: noise(session, s))
    phase("pairs", "pairs", lambda s: pairs(session, s))
    phase("host", "host costs", lambda s: costs(session, s))
    phase("corun", "co-runs", lambda s: coruns(session, s))


def make_executor(clock: MonotonicClock, *, cuda: bool) -> TorchExecutor:
    if cuda:
        return TorchExecutor(clock, cuda_lanes(N_LANES), device="cuda:0", partitions=True)
    n_cores = len(available_cores())
    return TorchExecutor(clock, [LaneInfo(index=i, units=(i % n_cores,), depth=1) for i in range(N_LANES)])


def folder_of(options: argparse.Namespace) -> Path:
    if options.out:
        return Path(options.out)
    if options.dry_run:
        return Path(tempfile.mkdtemp(prefix="cotenant-dry-run-"))
    name = torch.cuda.get_device_properties(0).name.lower().split()
    chip = next((word for word in name if word[-1:].isdigit()), name[-1])
    return ROOT / "data" / chip.partition("-")[0]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dry-run", action="store_true", help="small models on the CPU")
    parser.add_argument("--out", help="folder for the results")
    parser.add_argument(
        "--minutes", type=float, help="time after loading (0.7 in a dry run, else what 8.5 minutes leave)"
    )
    options = parser.parse_args()
    cuda = not options.dry_run
    if cuda and not torch.cuda.is_available():
        print("no CUDA device: use --dry-run to try the script on the CPU", file=sys.stderr)
        return 2
    out = folder_of(options)
    out.mkdir(parents=True, exist_ok=True)
    clock = MonotonicClock()
    began = clock.now()
    counters = Counters(clock, 0 if cuda else None)
    executor = make_executor(clock, cuda=cuda)
    try:
        subjects = load_zoo(executor, small=not cuda)
        session = Session(
            executor=executor,
            driver=Driver(executor, clock),
            recorded=Recorded(subjects, counters),
            budget_s=60 * (options.minutes or 0.7),
            cuda=cuda,
            facts={"device": device.describe(cuda=cuda), "lanes": N_LANES, "dry_run": not cuda},
        )
        load_s = session.facts["load_s"] = (clock.now() - began) / NS_PER_S
        if cuda and not options.minutes:
            session.budget_s = max(60.0, LIMIT_S - 2.5 * load_s)
        record(session)
    finally:
        executor.close()
        counters.close()
    recorded, facts = session.recorded, session.facts
    facts["counters"] = counters.facts()
    facts["dispatches"] = sum(len(ended) for _, ended in recorded.episodes)
    facts["slowdown"] = recorded.slowdowns()
    write(out, recorded, facts)
    session.phase(
        "policies",
        "simple policies, live",
        lambda s: policies.run(subjects, recorded.solo_ns, s, cuda=cuda),
    )
    facts["wall_s"] = (clock.now() - began) / NS_PER_S
    write(out, recorded, facts)
    shown = ("dispatches", "reference", "correct", "noise", "host", "memory_mib", "slowdown", "wall_s")
    print(json.dumps({key: facts[key] for key in shown}, indent=1))
    print(f"results in {out}")
    return 0 if facts["reference"]["ok"] and not facts["correct"]["different"] else 1


if __name__ == "__main__":
    raise SystemExit(main())

"""Records what a device does: outputs, solo times, stressors, co-runs under random arrivals, noise, costs.

How this works. The torch zoo is loaded by the very executor that serves, and dispatches are started on its
lanes directly, without a scheduler: what is recorded is the device, not a policy. Of the time that is left
each phase gets its share of what the remaining ones have in `PLAN`, so one that overruns shortens the later
ones, not the end. The simple policies come last, on a server of their own.

A machine with a GPU is lent for minutes, so nothing that was measured may be lost: a phase that fails is
noted and the next one begins, files are written after each of `WRITTEN_AFTER` and at the end, also when it
was interrupted (SIGINT, SIGTERM), and if the process hangs it says where and ends.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import signal
import statistics
import sys
import tempfile
import traceback
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
from subjects import INPUTS, SEED, Subject, load_stressors, load_zoo, say
from timeline import kernels

from cotenant.clock import MonotonicClock
from cotenant.cores import available_cores
from cotenant.domain import NS_PER_S, Variant
from cotenant.execute.torch.executor import TorchExecutor, cuda_lanes
from cotenant.execute.torch.stressors import PREFIX, Stressor
from cotenant.ports import LaneInfo

ROOT = Path(__file__).resolve().parents[2]
N_LANES = 4
PLAN = {
    "reference": 0.03, "solo": 0.08, "transfers": 0.01, "correct": 0.08, "stress": 0.10, "partitions": 0.05,
    "noise": 0.07, "pairs": 0.09, "host": 0.01, "corun": 0.32, "counters": 0.05, "policies": 0.11,
}  # fmt: skip
"""Shares of the time after loading. Counters come late: a profiler that was on may slow launches down."""
WRITTEN_AFTER = ("solo", "stress", "corun", "counters")
NEEDED = ("solo",)
"""Phases without which the later ones make no sense."""
FEWEST_SOLO = 5
COUNTED_S = 0.15
"""Span of runs back to back from which counters are read (s); NVML wants 100 ms."""
GAPS = 400
FEWEST_CHECKED, FEWEST_DISPATCHES = 10_000, 50_000
"""On a GPU: co-located batches compared, and dispatches of the recording; they may take twice their time."""
MOST_DISPATCHES = 90_000
"""Some 60 bytes each, packed: what is committed should stay under 10 MB."""
LIMIT_S = 8 * 60
"""All in all, loading twice included (s)."""
HUNG_AFTER_S = 60
"""After the limit (s)."""
SHORTEST_POLICIES_S, SHORTEST_DRY_S = 15, 3.0
"""For the policies: less says nothing on a GPU; a dry run goes through them all the same (s)."""
SWITCH_INTERVAL_S = 0.0005
"""After which one Python thread makes room for another: the pump must not wait 5 ms, Python's own, for it."""
CLOSE_ENOUGH = 0.05
"""Relative error (norm) allowed against the fp32 reference on the CPU: half precision through many layers."""


@dataclass
class Session:
    """One recording under way."""

    executor: TorchExecutor
    driver: Driver
    recorded: Recorded
    ends_at: int
    cuda: bool
    out: Path
    facts: dict[str, Any] = field(default_factory=dict)
    _done: set[str] = field(default_factory=set)

    def phase(self, name: str, what: str, do: Callable[[float], Any]) -> None:
        """One phase, told; its facts, if it gives any, are kept under its name, what made it fail under
        `failed`. Raises only for phases that are needed."""
        say(what)
        began = self.driver.clock.now()
        try:
            found = do(self._seconds(name))
            if found is not None:
                self.facts[name] = found
        except Exception as error:
            self.facts.setdefault("failed", {})[name] = f"{type(error).__name__}: {error}"
            traceback.print_exc()
            if name in NEEDED:
                raise
            self.driver.settle()
        finally:
            self._done.add(name)
            self.facts.setdefault("phase_s", {})[name] = (self.driver.clock.now() - began) / NS_PER_S
        if name in WRITTEN_AFTER:
            self.write(coruns=name == "corun")

    def _seconds(self, name: str) -> float:
        """The phase's share of the time that is left."""
        left_s = max(0.0, (self.ends_at - self.driver.clock.now()) / NS_PER_S)
        return left_s * PLAN[name] / sum(share for key, share in PLAN.items() if key not in self._done)

    def write(self, *, coruns: bool) -> None:
        """Everything so far; the large table of co-runs only when asked, packing it takes seconds."""
        self.facts["counters"] = self.recorded.counters.facts()
        self.facts["dispatches"] = sum(len(ended) for _, ended in self.recorded.episodes)
        self.facts["slowdown"] = self.recorded.slowdowns()
        write(self.out, self.recorded, self.facts, coruns=coruns)


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
            if clock.now() > until:
                break
            with quiet():
                session.recorded.kernels += kernels(subject, variant)
        for variant in subject.variants:
            mark = session.recorded.counters.begin() if clock.now() < until else None
            if mark is None:
                break
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
        ended = driver.next()
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
        if n >= MOST_DISPATCHES or not goes_on(n):
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


def own_kernels(executor: TorchExecutor) -> bool:
    """Whether the stressors are kernels; else they are operators of torch, which stress less purely."""
    modules = [
        module for segment in executor.models[PREFIX + "compute"].segments for module in segment.modules()
    ]
    return any(module.has_kernels for module in modules if isinstance(module, Stressor))


def record(session: Session) -> None:
    """Every phase that uses the recording's own executor."""
    clock = session.driver.clock
    stressors = load_stressors(session.executor)
    session.facts["stressor_kernels"] = own_kernels(session.executor)
    subjects = session.recorded.subjects
    phase = session.phase
    phase("reference", "outputs against fp32 on the CPU", lambda s: reference(session, s))
    phase("solo", "solo times", lambda s: solo(session, s))
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
    phase("counters", "kernels and counters", lambda s: count(session, s))


def load(clock: MonotonicClock, *, cuda: bool) -> tuple[TorchExecutor, dict[str, Subject]]:
    """The zoo on four lanes. Where models cannot be captured on partitions the device is used whole."""
    if not cuda:
        n_cores = len(available_cores())
        lanes = [LaneInfo(index=i, units=(i % n_cores,), depth=1) for i in range(N_LANES)]
        executor = TorchExecutor(clock, lanes)
        return executor, load_zoo(executor, small=True)
    executor = TorchExecutor(clock, cuda_lanes(N_LANES), device="cuda:0", partitions=True)
    try:
        return executor, load_zoo(executor, small=False)
    except ValueError as error:
        executor.close()
        if executor.ladder is None:
            raise
        reason = f"models could not be loaded on them: {error}"
    say(f"without partitions: {reason}")
    executor = TorchExecutor(clock, cuda_lanes(N_LANES), device="cuda:0")
    executor.why_whole = reason
    return executor, load_zoo(executor, small=False)


def folder_of(options: argparse.Namespace) -> Path:
    if options.out:
        return Path(options.out)
    if options.dry_run:
        return Path(tempfile.mkdtemp(prefix="cotenant-dry-run-"))
    name = torch.cuda.get_device_properties(0).name.lower().split()
    chip = next((word for word in name if word[-1:].isdigit()), name[-1])
    return ROOT / "data" / chip.partition("-")[0]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="run.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dry-run", action="store_true", help="small models on the CPU")
    parser.add_argument("--out", help="folder for the results")
    parser.add_argument(
        "--minutes", type=float, help="time after loading (0.7 in a dry run, else what 8 minutes leave)"
    )
    options = parser.parse_args()
    if options.minutes is not None and not options.minutes > 0:
        parser.error(f"--minutes {options.minutes:g}: expected more than 0")
    if options.dry_run and options.out and (ROOT / "data") in (Path(options.out).resolve() / "x").parents:
        parser.error(f"--out {options.out}: a dry run does not write under data/; name another folder")
    return options


def ready(folder: Path) -> bool:
    """Whether files can be written to the folder, which is made; else it is said."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError as error:
        print(f"--out {folder}: results cannot be written there ({error})", file=sys.stderr)
        return False


def interrupted(*_: Any) -> None:
    """SIGTERM like Ctrl-C: what there is so far is written."""
    raise KeyboardInterrupt


def main() -> int:
    options = parse()
    cuda = not options.dry_run
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")  # before CUDA starts; see torch_runtime
    if cuda and not torch.cuda.is_available():
        print("no CUDA device: use --dry-run to try the script on the CPU", file=sys.stderr)
        return 2
    out = folder_of(options)
    if not ready(out):
        return 2
    signal.signal(signal.SIGTERM, interrupted)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    if cuda and not options.minutes:
        faulthandler.dump_traceback_later(LIMIT_S + HUNG_AFTER_S, exit=True)
    clock = MonotonicClock()
    began = clock.now()
    counters = Counters(clock, 0 if cuda else None)
    try:
        executor, subjects = load(clock, cuda=cuda)
    except KeyboardInterrupt:
        print("interrupted while loading: nothing was measured", file=sys.stderr)
        return 130
    load_s = (clock.now() - began) / NS_PER_S
    if cuda and not options.minutes:  # the policies load once more
        ends_at = began + int(max(2 * load_s + 60, LIMIT_S - 1.5 * load_s) * NS_PER_S)
    else:
        ends_at = clock.now() + int(60 * (options.minutes or 0.7) * NS_PER_S)
    session = Session(
        executor=executor,
        driver=Driver(executor, clock),
        recorded=Recorded(subjects, counters),
        ends_at=ends_at,
        cuda=cuda,
        out=out,
        facts={
            "device": device.describe(cuda=cuda), "lanes": N_LANES, "dry_run": not cuda, "load_s": load_s
        },
    )  # fmt: skip
    status = run(session)
    session.facts["wall_s"] = (clock.now() - began) / NS_PER_S
    session.write(coruns=status != 0)
    shown = (
        "dispatches", "reference", "correct", "noise", "host", "memory_mib", "slowdown", "failed", "wall_s"
    )  # fmt: skip
    print(json.dumps({key: session.facts[key] for key in shown if key in session.facts}, indent=1))
    print(f"results in {out}", flush=True)
    return status


def run(session: Session) -> int:
    """All phases. The exit status: 0 when all went well and all outputs were right."""
    facts, recorded = session.facts, session.recorded
    try:
        try:
            record(session)
        finally:
            session.executor.close()
            recorded.counters.close()

        def live(seconds: float) -> dict[str, Any]:
            if session.cuda and seconds < SHORTEST_POLICIES_S:
                return {"skipped": f"{seconds:.0f} s were left"}
            seconds = max(seconds, SHORTEST_DRY_S)
            return policies.run(recorded.subjects, recorded.solo_ns, seconds, cuda=session.cuda)

        session.phase("policies", "simple policies, live", live)
    except KeyboardInterrupt:
        facts.setdefault("failed", {})["interrupted"] = "by a signal; what was measured before is kept"
        return 130
    except Exception as error:
        say(f"stopped: {error}")
        return 1
    right = facts.get("reference", {}).get("ok") and not facts.get("correct", {}).get("different", 1)
    return 0 if right and "failed" not in facts else 1


if __name__ == "__main__":
    raise SystemExit(main())

"""Records what a device does: correctness, solo times, co-runs under random arrivals, noise, host overheads.

How this works. The torch zoo is loaded by the very executor that serves, and dispatches are started on its
lanes directly, without a scheduler: what is recorded is the device, not a policy. Co-runs come in episodes:
1 to 4 lanes draw models and batch sizes from a mix of the episode's own and start them after random pauses;
each episode begins and ends with an idle device and is one `run` of the data set (DESIGN form: profiles,
segments, coruns). A few episodes are repeated exactly: their spread is the noise below which no prediction
can go. Time is divided up in advance by `PLAN`, so that the whole fits into `--minutes`.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dataset import Recorded, write
from driver import Driver, Ended

from cotenant.clock import MonotonicClock
from cotenant.domain import NS_PER_S, Variant
from cotenant.execute.lanes import available_cores
from cotenant.execute.model import ModelSettings, example_inputs
from cotenant.execute.torch.executor import TorchExecutor, cuda_lanes
from cotenant.execute.torch.model import TorchModel
from cotenant.execute.torch.zoo import ZOO, blueprint, default_buckets
from cotenant.ports import LaneInfo, Tensors

ROOT = Path(__file__).resolve().parents[2]
BATCHES = (1, 2, 4, 8, 16)
N_LANES = 4
SEED = 1
PLAN = {"solo": 0.12, "correct": 0.08, "noise": 0.1, "pairs": 0.15, "corun": 0.55}
"""Shares of the time after loading."""
EPISODE = 96
"""Dispatches of an episode."""
INPUTS = 4


@dataclass
class Subject:
    """A loaded model and ready inputs of its variants."""

    model: TorchModel
    variants: list[Variant]
    inputs: dict[Variant, list[Tensors]]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def load(executor: TorchExecutor, *, small: bool) -> dict[str, Subject]:
    """Every model of the zoo, at batches 1 to 16 (to 4 in a dry run)."""
    subjects: dict[str, Subject] = {}
    rng = np.random.default_rng(SEED)
    for name in sorted(ZOO):
        say(f"loading {name}")
        buckets = {axis: (sizes[-1],) for axis, sizes in default_buckets(name).items()}
        settings = ModelSettings(name=name, max_batch=4 if small else BATCHES[-1], buckets=buckets)
        executor.load(blueprint(name, small=small, seed=SEED), settings)
        model = executor.models[name]
        variants = list(model.metadata.spec.variants())
        inputs = {v: [example_inputs(model.metadata, v, rng) for _ in range(INPUTS)] for v in variants}
        subjects[name] = Subject(model, variants, inputs)
    return subjects


def solo(driver: Driver, subjects: dict[str, Subject], seconds: float) -> dict[Variant, list[Ended]]:
    """Each variant alone, in rounds over all, until the time is over; at least 5 runs."""
    found: dict[Variant, list[Ended]] = {v: [] for s in subjects.values() for v in s.variants}
    until = driver.clock.now() + int(seconds * NS_PER_S)
    while driver.clock.now() < until or min(len(runs) for runs in found.values()) < 5:
        for subject in subjects.values():
            for variant in subject.variants:
                found[variant].append(driver.run(subject.model, variant, subject.inputs[variant][0]))
    return found


def correct(driver: Driver, subjects: dict[str, Subject], seconds: float) -> dict[str, Any]:
    """Outputs of co-located batches against the same batches alone: bit for bit."""
    alone: dict[tuple[Variant, int], list[dict[str, Any]]] = {}
    for subject in subjects.values():
        for variant in subject.variants:
            for i, inputs in enumerate(subject.inputs[variant]):
                alone[variant, i] = driver.outputs(subject.model, variant, inputs)
    rng = np.random.default_rng(SEED + 1)
    everything = [(s, v) for s in subjects.values() for v in s.variants]
    n = n_different = 0
    until = driver.clock.now() + int(seconds * NS_PER_S)
    under_way: dict[int, tuple[Variant, int]] = {}
    while driver.clock.now() < until or under_way:
        while len(under_way) < len(driver.executor.lanes) and driver.clock.now() < until:
            subject, variant = everything[int(rng.integers(len(everything)))]
            i = int(rng.integers(INPUTS))
            under_way[
                driver.start(driver.free_lane(), subject.model, variant, subject.inputs[variant][i])
            ] = (
                variant,
                i,
            )
        ended = driver.wait()
        found = driver.executor.take_results(ended.dispatch_id)
        expected = alone[under_way.pop(ended.dispatch_id)]
        n += 1
        n_different += not same(found, expected)
    return {"batches": n, "different": n_different}


def same(found: Any, expected: Any) -> bool:
    pairs = zip(found or (), expected, strict=True)
    return bool(found) and all(np.array_equal(a[key], b[key]) for a, b in pairs for key in b)


@dataclass(frozen=True)
class Draw:
    """One dispatch of an episode: what, and how long its lane pauses before it (ns)."""

    lane: int
    model: str
    variant: Variant
    which: int
    pause_ns: int


def episode(
    subjects: dict[str, Subject], solo_ns: dict[Variant, float], seed: int, n: int, lanes: int
) -> list[Draw]:
    """Lanes, mix, batches and pauses, all from the seed. Pauses are exponential; their mean, 0 to 1 times
    the mean solo time of the mix, is the episode's own."""
    rng = np.random.default_rng((SEED, seed))
    names = sorted(subjects)
    mix = rng.dirichlet(np.full(len(names), 0.5))
    chosen = rng.choice(len(names), n, p=mix)
    favourite = rng.dirichlet(np.ones(len(next(iter(subjects.values())).variants)))
    variants = [
        subjects[names[k]].variants[
            int(rng.choice(len(favourite), p=favourite)) % len(subjects[names[k]].variants)
        ]
        for k in chosen
    ]
    mean = float(np.mean([solo_ns[variant] for variant in variants])) * float(rng.uniform(0, 1))
    return [
        Draw(
            lane=i % lanes,
            model=names[k],
            variant=variant,
            which=int(rng.integers(INPUTS)),
            pause_ns=int(rng.exponential(mean)) if mean else 0,
        )
        for i, (k, variant) in enumerate(zip(chosen, variants, strict=True))
    ]


def play(driver: Driver, subjects: dict[str, Subject], draws: list[Draw]) -> list[Ended]:
    """Run an episode: each lane does its draws in order, pausing before each."""
    waiting: dict[int, list[Draw]] = {}
    for draw in draws:
        waiting.setdefault(draw.lane, []).append(draw)
    now = driver.clock.now()
    due = {lane: now + line[0].pause_ns for lane, line in waiting.items()}
    ended: list[Ended] = []
    while len(ended) < len(draws):
        now = driver.clock.now()
        for lane, at in list(due.items()):
            if at <= now:
                draw = waiting[lane].pop(0)
                del due[lane]
                subject = subjects[draw.model]
                driver.start(lane, subject.model, draw.variant, subject.inputs[draw.variant][draw.which])
        wait_ns = min(due.values(), default=now + NS_PER_S) - driver.clock.now()
        found = driver.wait(max(0, wait_ns) / NS_PER_S)
        if found is not None:
            driver.executor.take_results(found.dispatch_id)
            ended.append(found)
            if waiting[found.lane]:
                due[found.lane] = found.seen_at + waiting[found.lane][0].pause_ns
    return ended


def noise(
    driver: Driver, subjects: dict[str, Subject], solo_ns: dict[Variant, float], seconds: float
) -> dict[str, Any]:
    """The same episodes again and again: spread of each dispatch's span, as a share of its median."""
    until = driver.clock.now() + int(seconds * NS_PER_S)
    n_lanes = len(driver.executor.lanes)
    plays: dict[int, list[list[float]]] = {}
    seed = 0
    while driver.clock.now() < until or seed < 4:
        lanes = 1 + seed % n_lanes
        draws = episode(subjects, solo_ns, 10_000 + lanes, 24, lanes)
        ended = {e.order: e.span_ns for e in play(driver, subjects, draws)}
        plays.setdefault(lanes, []).append([ended[k] for k in sorted(ended)])
        seed += 1
    spreads = {}
    for lanes, found in plays.items():
        if len(found) > 1:
            table = np.array(found)
            middle = np.median(table, axis=0)
            spreads[str(lanes)] = float(np.median(np.abs(table - middle) / middle))
    return {
        "median_relative_deviation_by_lanes": spreads,
        "plays": {str(k): len(v) for k, v in plays.items()},
    }


def pairs(
    driver: Driver, subjects: dict[str, Subject], solo_ns: dict[Variant, float], seconds: float
) -> list[dict[str, Any]]:
    """Every model beside every other, both back to back: the victim's median over its solo median."""
    names = sorted(subjects)
    each_ns = int(seconds * NS_PER_S / len(names) ** 2)
    rows = []
    for victim in names:
        for aggressor in names:
            v, a = subjects[victim], subjects[aggressor]
            middle = len(v.variants) // 2
            beside = driver.beside(
                (v.model, v.variants[middle], v.inputs[v.variants[middle]][0]),
                (a.model, a.variants[middle], a.inputs[a.variants[middle]][0]),
                each_ns,
            )
            rows.append(
                {
                    "victim": victim,
                    "aggressor": aggressor,
                    "batch": v.variants[middle].rows,
                    "slowdown": statistics.median(beside) / solo_ns[v.variants[middle]],
                    "n": len(beside),
                }
            )
    return rows


def coruns(
    driver: Driver, subjects: dict[str, Subject], solo_ns: dict[Variant, float], seconds: float
) -> Iterator[tuple[int, list[Ended]]]:
    """Episodes until the time is over, the number of lanes changing."""
    until = driver.clock.now() + int(seconds * NS_PER_S)
    number = 0
    n_lanes = len(driver.executor.lanes)
    while driver.clock.now() < until:
        lanes = 1 + number % n_lanes
        yield number, play(driver, subjects, episode(subjects, solo_ns, number, EPISODE, lanes))
        number += 1


def device_facts(*, cuda: bool) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cores": len(available_cores()),
        "seed": SEED,
    }
    if cuda:
        properties = torch.cuda.get_device_properties(0)
        facts |= {
            "name": properties.name,
            "sms": properties.multi_processor_count,
            "memory_mib": properties.total_memory >> 20,
            "cuda": torch.version.cuda,
        }
    return facts


def folder_of(options: argparse.Namespace) -> Path:
    if options.out:
        return Path(options.out)
    if options.dry_run:
        return Path(tempfile.mkdtemp(prefix="cotenant-dry-run-"))
    name = torch.cuda.get_device_properties(0).name.lower().split()
    return ROOT / "data" / name[-1].partition("-")[0]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dry-run", action="store_true", help="small models on the CPU")
    parser.add_argument("--out", help="folder for the results")
    parser.add_argument("--minutes", type=float, help="time after loading (6; 0.7 in a dry run)")
    options = parser.parse_args()
    if not options.dry_run and not torch.cuda.is_available():
        print("no CUDA device: use --dry-run to try the script on the CPU", file=sys.stderr)
        return 2
    out = folder_of(options)
    out.mkdir(parents=True, exist_ok=True)
    budget_s = 60 * (options.minutes or (0.7 if options.dry_run else 6.0))
    clock = MonotonicClock()
    began = clock.now()
    if options.dry_run:
        lanes = [LaneInfo(index=i, units=(i % len(available_cores()),), depth=1) for i in range(N_LANES)]
        executor = TorchExecutor(clock, lanes)
    else:
        executor = TorchExecutor(clock, cuda_lanes(N_LANES), device="cuda:0")
    try:
        subjects = load(executor, small=options.dry_run)
        driver = Driver(executor, clock)
        facts: dict[str, Any] = {"device": device_facts(cuda=not options.dry_run), "lanes": N_LANES}
        facts["load_s"] = (clock.now() - began) / NS_PER_S
        say("solo times")
        alone = solo(driver, subjects, PLAN["solo"] * budget_s)
        solo_ns = {v: statistics.median(e.span_ns for e in runs) for v, runs in alone.items()}
        say("co-located outputs against those alone")
        facts["correct"] = correct(driver, subjects, PLAN["correct"] * budget_s)
        say("noise: the same episodes again")
        facts["noise"] = noise(driver, subjects, solo_ns, PLAN["noise"] * budget_s)
        say("pairs")
        facts["pairs"] = pairs(driver, subjects, solo_ns, PLAN["pairs"] * budget_s)
        say("co-runs")
        episodes: list[tuple[int, list[Ended]]] = []
        for number, ended in coruns(driver, subjects, solo_ns, PLAN["corun"] * budget_s):
            episodes.append((number, ended))
            if number % 20 == 0:
                say(f"  {sum(len(e) for _, e in episodes)} dispatches")
        facts["host"] = driver.host_facts()
    finally:
        executor.close()
    recorded = Recorded(
        models={name: subject.model for name, subject in subjects.items()}, alone=alone, episodes=episodes
    )
    facts["dispatches"] = sum(len(ended) for _, ended in episodes)
    facts["slowdown"] = recorded.slowdowns(solo_ns)
    facts["wall_s"] = (clock.now() - began) / NS_PER_S
    write(out, recorded, facts)
    print(
        json.dumps(
            {key: facts[key] for key in ("dispatches", "correct", "noise", "host", "slowdown", "wall_s")},
            indent=1,
        )
    )
    print(f"results in {out}")
    return 1 if facts["correct"]["different"] else 0


if __name__ == "__main__":
    raise SystemExit(main())

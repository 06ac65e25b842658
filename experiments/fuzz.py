"""Fuzz every reader of bytes that somebody else wrote: executions per target, no crash, bounded memory.

    python experiments/fuzz.py --seconds 60 [--seed 1] [--only infer_body,config] [--json FILE]

Each target runs in a process of its own, whose address space may not grow by more than `--mib`, for its share
of the time: half of it on what hypothesis draws (which shrinks what it finds), half on seeds that are cut,
joined and overwritten as fast as the reader goes. A finding is printed as bytes that repeat it, and the
command ends with status 1.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import hypothesis
from fuzz_targets import Target, targets
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

NAMES = (
    "infer_body", "binary_tensor", "connection", "config", "keys", "trace", "arrivals", "kernels", "coruns",
    "profile", "state", "event_log",
)  # fmt: skip
EXAMPLES_AT_A_TIME = 200
LONGEST = 64 * 1024
HANG_S = 10.0
"""One execution that takes longer is a finding (the target's process is ended)."""


class Run:
    """One target under way."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.n = 0
        self.n_accepted = 0
        self.slowest_s = 0.0

    def __call__(self, data: bytes) -> None:
        """Execute once. Raises what the reader should not have raised."""
        began = time.perf_counter()
        try:
            self.target.run(data)
            self.n_accepted += 1
        except self.target.errors:
            pass
        finally:
            self.n += 1
            self.slowest_s = max(self.slowest_s, time.perf_counter() - began)
        if time.perf_counter() - began > HANG_S:
            raise TimeoutError(f"one execution took more than {HANG_S:g} s")


def mutated(data: bytes, target: Target, chance: random.Random) -> bytes:
    """`data` with a few stretches cut out, doubled, or overwritten by chance or by words of the format."""
    for _ in range(chance.choice((1, 1, 1, 2, 4, 16))):
        start = chance.randrange(len(data) + 1)
        end = min(len(data), start + chance.choice((0, 1, 1, 2, 8, 64)))
        match chance.randrange(5):
            case 0:
                middle = chance.randbytes(end - start)
            case 1 if target.words:
                middle = chance.choice(target.words)
            case 2:
                middle = data[start:end] * chance.choice((0, 2, 50))
            case 3:
                other = chance.choice(target.seeds)
                middle = other[chance.randrange(len(other) + 1) :]
            case _:
                middle = bytes([chance.choice((0, 1, 0x22, 0x2C, 0x5B, 0x7F, 0x80, 0xFF))])
        data = data[:start] + middle + data[end:]
    return data[:LONGEST]


def drawn(run: Run, until: float, seed: int) -> None:
    """Inputs that hypothesis draws, until the time is over."""
    target = run.target
    piece = st.binary(max_size=24) | (st.sampled_from(target.words) if target.words else st.nothing())
    free = st.lists(piece | st.sampled_from(target.seeds), max_size=12).map(b"".join)
    cuts = st.tuples(st.sampled_from(target.seeds), st.integers(0, 400), st.integers(0, 40), piece)
    cut = cuts.map(lambda c: c[0][: c[1]] + c[3] + c[0][c[1] + c[2] :])

    def execute(data: bytes) -> None:
        run(data[:LONGEST])

    while time.perf_counter() < until:
        seed += 1
        test = settings(
            max_examples=EXAMPLES_AT_A_TIME,
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        )(hypothesis.given(data=cut | free)(execute))
        hypothesis.seed(seed)(test)()


def fuzz(name: str, seconds: float, seed: int, mib: int, answers: Any) -> None:
    """Body of a target's process."""
    in_memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=in_memory) as folder:
        (target,) = (found for found in targets(Path(folder)) if found.name == name)
        run = Run(target)
        for data in target.seeds:
            run(data)
        before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        limit = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE") + (
            mib << 20
        )
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        began = time.perf_counter()
        last = b""
        finding: str | None = None
        try:
            drawn(run, began + seconds / 2, seed * 1_000_003)
            n_drawn = run.n
            chance = random.Random(f"{seed} {name}")
            while time.perf_counter() < began + seconds:
                last = mutated(chance.choice(target.seeds), target, chance)
                run(last)
        except BaseException as error:
            n_drawn = run.n
            notes = "\n".join(getattr(error, "__notes__", ()))
            finding = f"{traceback.format_exc()[-3000:]}\n{notes[-2000:]}\nlast bytes: {last[:2000]!r}"
        grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib
        answers.put(
            {
                "target": name,
                "executions": run.n,
                "drawn": n_drawn,
                "accepted": run.n_accepted,
                "seconds": round(time.perf_counter() - began, 1),
                "slowest_ms": round(run.slowest_s * 1000, 1),
                "grown_mib": round(grown_kib / 1024, 1),
                "finding": finding,
            }
        )


def one(name: str, seconds: float, seed: int, mib: int) -> dict[str, Any]:
    """Run a target in a process of its own, which is ended when it hangs."""
    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    process = context.Process(target=fuzz, args=(name, seconds, seed, mib, answers), daemon=True)
    process.start()
    process.join(seconds + 60 + HANG_S)
    if process.is_alive():
        process.kill()
        process.join()
        return {"target": name, "executions": 0, "finding": "it hung and was ended"}
    if answers.empty():
        return {"target": name, "executions": 0, "finding": f"its process ended with {process.exitcode}"}
    found: dict[str, Any] = answers.get()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60, help="of all targets together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--mib", type=int, default=256, help="by how much the address space may grow")
    parser.add_argument("--only", help="targets, separated by commas")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    names = options.only.split(",") if options.only else list(NAMES)
    if unknown := set(names) - set(NAMES):
        parser.error(f"there is no target {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    results = []
    for name in names:
        found = one(name, options.seconds / len(names), options.seed, options.mib)
        results.append(found)
        print(
            f"{name:14} {found['executions']:>9} executions, {found.get('accepted', 0):>8} accepted, slowest "
            f"{found.get('slowest_ms', 0):7.1f} ms, memory +{found.get('grown_mib', 0):.0f} MiB"
            + (f"\nFINDING in {name}:\n{found['finding']}" if found["finding"] else ""),
            flush=True,
        )
    n = sum(found["executions"] for found in results)
    n_findings = sum(found["finding"] is not None for found in results)
    print(f"{n} executions, {n_findings} findings")
    if options.json is not None:
        facts = {
            "command": f"python experiments/fuzz.py --seconds {options.seconds:g} --seed {options.seed}",
            "commit": _commit(),
            "executions": n,
            "findings": n_findings,
            "targets": results,
            "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
        }
        options.json.write_text(json.dumps(facts, indent=1) + "\n")
    return 1 if n_findings else 0


def _commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())

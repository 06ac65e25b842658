"""Goodput at many times the load a server can take, against what it gets at 1 times when the same excess
goes to a null sink on the same cores.

Measures whether refusing costs the requests that are answered: the same Poisson arrivals, 1 times the
measured capacity and the excess, go once both to the server, and once the excess to a process that reads and
refuses everything; generator, sink and server share the machine in both runs. Also: how long refused requests
were in the server (its own Server-Timing), and what 1,000 idle keep-alive connections cost. It does not
measure large bodies: inputs are 8 KB or less, as `overload.toml` says.

    python benchmarks/overload.py [--seconds 60] [--factor 10] [--repeats 1] [--json FILE]
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from common import ROOT, Row, arguments, finish, note, table
from cotenant.clock import MonotonicClock, process_cpu_s
from cotenant.config import load_scenario
from cotenant.domain import NS_PER_MS, NS_PER_S
from cotenant.experiment.bench import measure_capacity
from cotenant.experiment.http_load import Pool
from cotenant.experiment.targets import Target, find_targets

SCENARIO = ROOT / "benchmarks" / "overload.toml"
LEAST_RATIO = 0.9
LONGEST_REFUSAL_MS = 5.0
N_IDLE = 1000
MOST_IDLE_MB = 100.0
TICK_S = 1 / os.sysconf("SC_CLK_TCK")

SINK = """
import asyncio, sys, httptools, uvloop
ANSWER = b"HTTP/1.1 429 Too Many Requests\\r\\ncontent-length: 0\\r\\n\\r\\n"
class Sink(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport, self.parser = transport, httptools.HttpRequestParser(self)
    def data_received(self, data):
        self.parser.feed_data(data)
    def on_message_complete(self):
        self.transport.write(ANSWER)
async def main():
    server = await asyncio.get_running_loop().create_server(Sink, "127.0.0.1", 0)
    print("ready http://127.0.0.1:%d" % server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
uvloop.run(main())
"""


@dataclass
class Tally:
    """How the requests of one run ended; spans in ms."""

    seconds: float
    n_ok: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    refused_server_ms: list[float] = field(default_factory=list)
    refused_client_ms: list[float] = field(default_factory=list)
    late_ms: list[float] = field(default_factory=list)
    generator_cpu_s: float = 0.0
    server_cpu_s: float = 0.0

    @property
    def goodput_per_s(self) -> float:
        """Answered in time, per second."""
        return self.n_ok / self.seconds


@dataclass(frozen=True)
class Arrival:
    """One request to come: when (ns from the start), of which target, whether it is excess."""

    at: int
    target: int
    is_excess: bool


def draw(
    targets: list[Target], shares: list[float], per_s: float, factor: float, seconds: float, seed: int
) -> list[Arrival]:
    """Poisson arrivals: 1 times `per_s`, and the excess up to `factor` times."""
    random = np.random.default_rng(seed)
    found: list[Arrival] = []
    for is_excess, rate in ((False, per_s), (True, per_s * (factor - 1))):
        n = int(random.poisson(rate * seconds))
        at = (np.sort(random.random(n)) * seconds * NS_PER_S).astype(np.int64)
        which = random.choice(len(targets), size=n, p=np.asarray(shares) / sum(shares))
        found += [Arrival(int(a), int(t), is_excess) for a, t in zip(at, which, strict=True)]
    found.sort(key=lambda arrival: arrival.at)
    return found


async def offer(
    server: str, excess_to: str, targets: list[Target], load: list[Arrival], seconds: float
) -> Tally:
    """Send every request at its instant, excess ones to `excess_to`; wait for the last answers. What goes to
    a sink is not tallied."""
    pools = Pool(server, limit=1024), Pool(excess_to, limit=1024)
    clock, tally = MonotonicClock(), Tally(seconds)
    origin = clock.now() + 50 * NS_PER_MS
    n_open = 0
    cpu_before = process_cpu_s()

    def send(n: int, arrival: Arrival) -> None:
        nonlocal n_open
        target, intended_at = targets[arrival.target], origin + arrival.at
        assert target.slo_ns is not None
        deadline_at = intended_at + target.slo_ns
        n_open += 1

        def make() -> bytes:
            now = clock.now()
            tally.late_ms.append((now - intended_at) / NS_PER_MS)
            return target.request(n, (deadline_at - now) / NS_PER_MS)

        def answer(status: int, headers: Mapping[str, str]) -> None:
            nonlocal n_open
            n_open -= 1
            if arrival.is_excess and server != excess_to:
                return
            now = clock.now()
            tally.statuses[status] += 1
            if status == 200:
                tally.n_ok += now <= deadline_at
            elif status == 429:
                tally.refused_client_ms.append((now - intended_at) / NS_PER_MS)
                spent = headers.get("server-timing", "").partition("dur=")[2]
                tally.refused_server_ms.append(float(spent or "nan"))

        pools[arrival.is_excess].post(make, answer)

    for n, arrival in enumerate(load):
        wait_ns = origin + arrival.at - clock.now()
        if wait_ns > 0:
            await asyncio.sleep(wait_ns / NS_PER_S)
        elif n % 16 == 0:
            await asyncio.sleep(0)
        send(n, arrival)
    for _ in range(300):
        if n_open:
            await asyncio.sleep(0.02)
    tally.generator_cpu_s = process_cpu_s() - cpu_before
    for pool in pools:
        pool.close()
    return tally


# --- processes --------------------------------------------------------------------------------------------


@contextmanager
def started(command: list[str]) -> Iterator[tuple[str, int]]:
    """A process that prints `ready URL`: (its URL, its id). It is ended at the end."""
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        for line in child.stdout:
            if line.startswith("ready "):
                yield line.split()[1], child.pid
                break
        else:
            raise SystemExit(f"{command[0]} ended with {child.wait()} before it was ready")
    finally:
        child.terminate()
        child.wait(30)


def family(pid: int) -> list[int]:
    """The process and its children, theirs and so on."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    children = [child for task in tasks for child in (task / "children").read_text().split()]
    return [pid, *(other for child in children for other in family(int(child)))]


def cpu_s(pid: int) -> float:
    """CPU of the process and its children so far."""
    fields = [Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split() for one in family(pid)]
    return sum(int(f[11]) + int(f[12]) for f in fields) * TICK_S


def resident_mb(pid: int) -> float:
    """Memory of the process and its children that is their own (proportional set size)."""
    total = 0
    for one in family(pid):
        for line in Path(f"/proc/{one}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total / 1000


async def idle_cost_mb(server: str, pid: int) -> float:
    """Memory that idle keep-alive connections cost, each of which has had one answer."""
    host, port = server.removeprefix("http://").split(":")
    ask = f"GET /v2/health/live HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
    before = resident_mb(pid)
    writers = []
    for _ in range(N_IDLE):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(ask)
        assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 200")
        writers.append(writer)
    after = resident_mb(pid)
    for writer in writers:
        writer.close()
    return after - before


# --- the measurement --------------------------------------------------------------------------------------


async def measure(options: Any, server: str, pid: int, sink: str) -> tuple[dict[str, Any], list[Row]]:
    scenario = load_scenario(SCENARIO)
    targets = await find_targets(server, scenario)
    shares = [model.rate_per_s for model in scenario.models]
    largest = max(len(rest) for target in targets for ready in target.requests.values() for _, rest in ready)
    idle_mb = await idle_cost_mb(server, pid)
    capacity = await measure_capacity(server, scenario, seconds=min(8.0, options.seconds))
    note(f"capacity {capacity:.0f} requests/s, largest request {largest} bytes, idle {idle_mb:.1f} MB")
    runs: dict[str, list[Tally]] = {"null sink": [], "overload": []}
    for repeat in range(options.repeats):
        load = draw(targets, shares, capacity, options.factor, options.seconds, 1 + repeat)
        for name, other in (("null sink", sink), ("overload", server)):
            before = cpu_s(pid)
            tally = await offer(server, other, targets, load, options.seconds)
            tally.server_cpu_s = cpu_s(pid) - before
            runs[name].append(tally)
            note(
                f"{name:9} goodput {tally.goodput_per_s:7.1f}/s, {dict(tally.statuses)}, server CPU "
                f"{tally.server_cpu_s / options.seconds:.2f} cores, generator "
                f"{tally.generator_cpu_s / options.seconds:.2f}, p99 late by "
                f"{percentile(tally.late_ms, 99):.1f} ms"
            )
            await asyncio.sleep(2)
    goodput = {name: sum(t.goodput_per_s for t in found) / len(found) for name, found in runs.items()}
    server_ms = [span for tally in runs["overload"] for span in tally.refused_server_ms]
    client_ms = [span for tally in runs["overload"] for span in tally.refused_client_ms]
    ratio = goodput["overload"] / goodput["null sink"]
    p99 = percentile(server_ms, 99)
    facts = {
        "command": f"python benchmarks/overload.py --seconds {options.seconds:g} --factor {options.factor:g} "
        f"--repeats {options.repeats}",
        "capacity_per_s": capacity,
        "largest_request_bytes": largest,
        "goodput_per_s": goodput,
        "ratio": ratio,
        "refused": {
            "n": len(server_ms),
            "server_ms": {"p50": percentile(server_ms, 50), "p99": p99},
            "client_ms": {"p50": percentile(client_ms, 50), "p99": percentile(client_ms, 99)},
        },
        "idle_connections_mb": idle_mb,
        "statuses": {name: dict(sum((t.statuses for t in found), Counter())) for name, found in runs.items()},
        "server_cores": {
            name: sum(t.server_cpu_s for t in found) / len(found) / options.seconds
            for name, found in runs.items()
        },
    }
    rows = [
        Row(
            f"goodput at {options.factor:g} times / at 1 times with the excess to a null sink",
            f"{goodput['overload']:.0f}/s / {goodput['null sink']:.0f}/s = {ratio:.2f}",
            f">= {LEAST_RATIO}",
            ratio >= LEAST_RATIO,
        ),
        Row(
            "refused requests, time in the server, p99",
            f"{p99:.2f} ms of {len(server_ms)}",
            f"<= {LONGEST_REFUSAL_MS:g} ms",
            p99 <= LONGEST_REFUSAL_MS,
        ),
        Row(
            f"{N_IDLE} idle keep-alive connections",
            f"{idle_mb:.1f} MB",
            f"<= {MOST_IDLE_MB:g} MB",
            idle_mb <= MOST_IDLE_MB,
        ),
    ]
    return facts, rows


def percentile(values: list[float], level: float) -> float:
    """NaN without values."""
    return float(np.nanpercentile(values, level)) if values else float("nan")


def main() -> int:
    options = arguments(__doc__, seconds=60.0, factor=10.0, repeats=1)
    with tempfile.TemporaryDirectory() as store:
        serve = [
            sys.executable,
            "-m",
            "cotenant",
            "serve",
            str(SCENARIO),
            "--http-port",
            "0",
            "--store",
            store,
        ]
        with started(serve) as (server, pid), started([sys.executable, "-c", SINK]) as (sink, _):
            facts, rows = uvloop.run(measure(options, server, pid, sink))
    table("overload", rows)
    return finish(options, facts, rows)


if __name__ == "__main__":
    sys.exit(main())

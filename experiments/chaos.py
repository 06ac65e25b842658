"""Everything that can go wrong, at once, against one server: do its books close, and does it come back?

    python experiments/chaos.py --seconds 600 [--kill-engine] [--onnx] [--seed 1] [--json FILE]

Clients ask a model that behaves, one that raises, one that hangs and one that leaks (where torch is there,
see `chaos_models.py`); others open connections and hardly send, send and go away, or send what is no request.
In turn the disk is full for the server (no file may grow: RLIMIT_FSIZE), its wall clock steps by an hour or a
day, and with `--kill-engine` the engine's process is killed every 30 s.

The command ends with status 1 unless: every request was answered, in time to know about it (offered = the
sum of outcomes as its clients see them); the server counted as many answers as clients got; no answer was
wrong and no error told a secret; the model that behaves was answered again after each event, and never
starved; and memory is flat, but for what the model that leaks has kept.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import mmap
import os
import platform
import random
import resource
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import chaos_models
from chaos_models import BAD, LEAK_BYTES
from prometheus_client.parser import text_string_to_metric_families

ANSWER_LIMIT_S = 30.0
"""No answer after so long counts as none."""
FULL_DISK_S = 15.0
EVENT_EVERY_S = 20.0
KILL_EVERY_S = 30.0
STARVED_S = 10.0
"""Longest time without an answer of the model that behaves."""
FLAT_MIB = 64.0
N_SLOW = 50
SITE = """
import mmap, os, struct, time
_real = time.time
with open(os.environ["CHAOS_CLOCK"], "r+b") as file:
    _offset = mmap.mmap(file.fileno(), 8)
time.time = lambda: _real() + struct.unpack_from("<d", _offset)[0]
"""
"""`sitecustomize` of the server: its wall clock is off by what the clock file says."""
LOST, NO_ANSWER = 0, -1
"""Outcomes besides statuses: the connection broke; nothing came."""


@dataclass
class Books:
    """What clients saw."""

    outcomes: dict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    n_offered: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    calm_at: list[float] = field(default_factory=list)
    """When the model that behaves answered (s)."""
    events: list[tuple[float, str]] = field(default_factory=list)
    memory_mib: list[float] = field(default_factory=list)


# --- the server -------------------------------------------------------------------------------------------


class Server:
    """A `cotenant serve` process whose disk and wall clock can be meddled with."""

    def __init__(self, folder: Path, *, torch: bool) -> None:
        settings = "event_log = true\nheader_timeout_s = 5.0\nbody_timeout_s = 5.0"
        config = chaos_models.write(folder, settings, torch=torch)
        site = folder / "site"
        site.mkdir()
        (site / "sitecustomize.py").write_text(SITE)
        clock = folder / "clock"
        clock.write_bytes(bytes(8))
        with clock.open("r+b") as file:
            self._clock = mmap.mmap(file.fileno(), 8)
        path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH", "")]))
        self.child = subprocess.Popen(
            [
                *(sys.executable, "-m", "cotenant", "serve", str(config), "--http-port", "0"),
                *("--store", str(folder / "store")),
            ],
            env={**os.environ, "PYTHONPATH": path, "CHAOS_CLOCK": str(clock)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.child.stdout is not None
        assert self.child.stderr is not None
        self._said: list[str] = []
        self._reader = threading.Thread(target=self._said.extend, args=(self.child.stderr,), daemon=True)
        self._reader.start()
        line = self.child.stdout.readline()
        if not line.startswith("ready "):
            self.stop()
            raise SystemExit(f"the server did not start: {self.stderr()[-2000:]}")
        self.port = int(line.rpartition(":")[2])

    def stderr(self) -> str:
        """What it said; whole once it has ended."""
        if self.child.poll() is not None:
            self._reader.join(10)
        return "".join(self._said)

    def step_clock(self, offset_s: float) -> None:
        """From now on its wall clock is off by so much."""
        struct.pack_into("<d", self._clock, 0, offset_s)

    def fill_disk(self, full: bool) -> None:
        """Whether files of the server and its children can grow."""
        for pid in self.family():
            _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (1 if full else hard, hard))

    def family(self) -> list[int]:
        """The process, its children, theirs and so on."""
        found, left = [], [self.child.pid]
        while left:
            pid = left.pop()
            try:
                for task in Path(f"/proc/{pid}/task").iterdir():
                    left += map(int, (task / "children").read_text().split())
                found.append(pid)
            except OSError:
                continue
        return found

    def engine(self) -> int | None:
        """The engine's process: the child that is largest; None without a child."""
        children = [pid for pid in self.family() if pid != self.child.pid]
        return max(children, key=resident_mib, default=None)

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)
        try:
            return self.child.wait(30)
        except subprocess.TimeoutExpired:
            self.child.kill()
            return self.child.wait()


def resident_mib(pid: int) -> float:
    """Memory of one process; 0 when it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


# --- clients ----------------------------------------------------------------------------------------------


class Clients:
    """Everybody who asks the server."""

    def __init__(self, server: Server, books: Books, seed: int) -> None:
        self._server = server
        self._books = books
        self._chance = random.Random(seed)
        self._asked: set[asyncio.Task[None]] = set()

    async def ask(self, path: str, body: Any = None) -> tuple[int, bytes]:
        """(status or LOST or NO_ANSWER, body) of one request on a connection of its own."""
        try:
            async with asyncio.timeout(ANSWER_LIMIT_S):
                return await self._ask(path, body)
        except TimeoutError:
            return NO_ANSWER, b""
        except (OSError, asyncio.IncompleteReadError, ValueError):
            return LOST, b""

    async def _ask(self, path: str, body: Any) -> tuple[int, bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._server.port)
        try:
            writer.write(request(path, body))
            head = await reader.readuntil(b"\r\n\r\n")
            status = int(head[9:12])
            length = int(head.lower().partition(b"content-length:")[2].split()[0])
            return status, await reader.readexactly(length)
        finally:
            writer.close()

    def infer(self, model: str, value: float) -> None:
        """Offer one inference; its outcome is counted when it comes."""
        self._books.n_offered[model] += 1
        task = asyncio.create_task(self._infer(model, value))
        self._asked.add(task)
        task.add_done_callback(self._asked.discard)

    async def _infer(self, model: str, value: float) -> None:
        sent = [value, *(self._chance.randrange(1000) / 8 for _ in range(3))]
        status, body = await self.ask(f"/v2/models/{model}/infer", inference(sent))
        self._books.outcomes[model][status] += 1
        if status == 200:
            if model == "calm":
                self._books.calm_at.append(time.monotonic())
            got = json.loads(body)["outputs"][0]["data"]
            if got != [2 * number for number in sent] or (model == "raises" and value >= BAD):
                self._books.wrong.append(f"{model}: {sent} gave {got}")
        elif b"secret" in body or b"/srv" in body or b"Traceback" in body:
            self._books.wrong.append(f"{model}: an error told {body[:200]!r}")

    async def drain(self) -> None:
        """Wait for every answer."""
        while self._asked:
            await asyncio.wait(self._asked)

    # each of these goes on until it is cancelled

    async def steady(self, model: str, per_s: float, bad_share: float = 0.0) -> None:
        """Poisson arrivals, a share of which makes the model misbehave."""
        while True:
            await asyncio.sleep(self._chance.expovariate(per_s))
            self.infer(model, BAD if self._chance.random() < bad_share else 1.0)

    async def slow(self) -> None:
        """Connections that send a byte a second, opened again when they are closed."""

        async def one() -> None:
            while True:
                try:
                    reader, writer = await asyncio.open_connection("127.0.0.1", self._server.port)
                    for byte in request("/v2/models/calm/infer", inference([1.0] * 4)):
                        writer.write(bytes([byte]))
                        await asyncio.wait_for(writer.drain(), 5)
                        await asyncio.sleep(1)
                        if reader.at_eof():
                            break
                    writer.close()
                except (OSError, TimeoutError):
                    await asyncio.sleep(1)

        await asyncio.gather(*(one() for _ in range(N_SLOW)))

    async def leaving(self, per_s: float) -> None:
        """Requests whose clients go before they are answered, some in mid-sentence."""
        while True:
            await asyncio.sleep(self._chance.expovariate(per_s))
            whole = request("/v2/models/calm/infer", inference([1.0] * 4))
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self._server.port)
                writer.write(whole[: self._chance.choice((len(whole), self._chance.randrange(len(whole))))])
                await asyncio.sleep(self._chance.choice((0.0, 0.0005, 0.01)))
                writer.transport.abort()
            except OSError:
                continue

    async def nonsense(self, per_s: float) -> None:
        """What is no request, and requests for what is not there."""
        while True:
            await asyncio.sleep(self._chance.expovariate(per_s))
            kind, body = self._chance.choice(
                (("infer", {"inputs": []}), ("infer", [[]] * 50), ("nope", {}), ("infer", {"inputs": 1}))
            )
            self._books.n_offered["nonsense"] += 1
            status, _ = await self.ask(f"/v2/models/calm/{kind}", body)
            self._books.outcomes["nonsense"][status] += 1


def inference(values: list[float]) -> dict[str, Any]:
    """A V2 request with one row."""
    return {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": values}]}


def request(path: str, body: Any) -> bytes:
    """A whole HTTP request; without a body a GET."""
    payload = b"" if body is None else json.dumps(body).encode()
    method = "GET" if body is None else "POST"
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(payload)}\r\n\r\n".encode() + payload


# --- events -----------------------------------------------------------------------------------------------


async def watch_memory(server: Server, books: Books) -> None:
    """Note the memory of all processes once a second."""
    while True:
        books.memory_mib.append(sum(map(resident_mib, server.family())))
        await asyncio.sleep(1)


async def meddle(server: Server, books: Books, chance: random.Random) -> None:
    """A full disk and steps of the clock, in turn."""
    while True:
        await asyncio.sleep(EVENT_EVERY_S / 2)
        books.events.append((time.monotonic(), "disk full"))
        server.fill_disk(True)
        await asyncio.sleep(FULL_DISK_S)
        server.fill_disk(False)
        await asyncio.sleep(EVENT_EVERY_S / 2)
        offset_s = chance.choice((-86400.0, -3600.0, 3600.0, 86400.0))
        books.events.append((time.monotonic(), f"clock {offset_s:+.0f} s"))
        server.step_clock(offset_s)


async def kill_engine(server: Server, books: Books) -> None:
    """Kill the engine every `KILL_EVERY_S`."""
    while True:
        await asyncio.sleep(KILL_EVERY_S)
        until = time.monotonic() + KILL_EVERY_S
        while (pid := server.engine()) is None:
            if time.monotonic() > until:
                raise RuntimeError("--kill-engine: the server has no process of its own for the engine")
            await asyncio.sleep(0.1)
        books.events.append((time.monotonic(), "engine killed"))
        os.kill(pid, signal.SIGKILL)


async def hang_now_and_then(clients: Clients, books: Books) -> None:
    """A request that hangs a lane, every `EVENT_EVERY_S`."""
    while True:
        await asyncio.sleep(EVENT_EVERY_S)
        books.events.append((time.monotonic(), "hang"))
        clients.infer("hangs", BAD)


async def run(server: Server, options: argparse.Namespace) -> tuple[Books, dict[str, float]]:
    """The whole thing; what clients saw, and what the server counted."""
    books = Books()
    clients = Clients(server, books, options.seed)
    going: list[Awaitable[None]] = [
        clients.steady("calm", 40),
        clients.steady("raises", 5, bad_share=0.5),
        clients.steady("hangs", 2),
        clients.slow(),
        clients.leaving(5),
        clients.nonsense(2),
        hang_now_and_then(clients, books),
        meddle(server, books, random.Random(options.seed)),
        watch_memory(server, books),
    ]
    if options.torch:
        going.append(clients.steady("leaks", 5))
    if options.kill_engine:
        going.append(kill_engine(server, books))
    tasks = [asyncio.ensure_future(one) for one in going]
    done, _ = await asyncio.wait(tasks, timeout=options.seconds, return_when=asyncio.FIRST_EXCEPTION)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
    server.fill_disk(False)
    await clients.drain()
    _, page = await clients.ask("/metrics")
    counted: dict[str, float] = Counter()
    for family in text_string_to_metric_families(page.decode()):
        for sample in family.samples:
            if sample.name == "cotenant_requests_total":
                counted[f"{sample.labels['model']} {sample.labels['outcome']}"] += sample.value
    return books, counted


# --- the verdict ------------------------------------------------------------------------------------------


def recoveries(books: Books) -> dict[str, dict[str, float]]:
    """Per kind of event: how long until the model that behaves answered next (s)."""
    spans: dict[str, list[float]] = defaultdict(list)
    for at, kind in books.events:
        after = next((answered for answered in books.calm_at if answered > at), None)
        if after is not None:
            spans["clock step" if kind.startswith("clock") else kind].append(after - at)
    return {
        kind: {"n": len(found), "median_s": statistics.median(found), "max_s": max(found)}
        for kind, found in spans.items()
    }


def complaints(
    books: Books, counted: dict[str, float], options: argparse.Namespace, status: int
) -> list[str]:
    """What was not as it should be."""
    found = list(books.wrong[:10])
    for model, n in books.n_offered.items():
        outcomes = books.outcomes[model]
        if outcomes.total() != n:
            found.append(f"{model}: {n} offered, {outcomes.total()} ended")
        if outcomes[NO_ANSWER]:
            found.append(f"{model}: {outcomes[NO_ANSWER]} got no answer within {ANSWER_LIMIT_S:g} s")
        if outcomes[LOST]:
            found.append(f"{model}: {outcomes[LOST]} lost their connection")
    gaps = [b - a for a, b in zip(books.calm_at, books.calm_at[1:], strict=False)]
    if not gaps or max(gaps) > STARVED_S:
        found.append(f"calm was not answered for {max(gaps, default=options.seconds):.1f} s")
    if not options.kill_engine:
        for model, outcomes in books.outcomes.items():
            answered = counted.get(f"{model} ok", 0) + counted.get(f"{model} late", 0)
            if model not in ("nonsense", "calm") and answered != outcomes[200]:
                found.append(f"{model}: the server counted {answered:.0f} answers, clients {outcomes[200]}")
        if counted.get("calm ok", 0) + counted.get("calm late", 0) < books.outcomes["calm"][200]:
            found.append("calm: clients got more answers than the server counted")
    grown = growth_mib(books, options)
    if grown > FLAT_MIB:
        found.append(f"memory grew by {grown:.0f} MiB beyond what leaks")
    if status != 0:
        found.append(f"the server ended with status {status}")
    return found


def growth_mib(books: Books, options: argparse.Namespace) -> float:
    """Memory of the last quarter less that of the second, without what `leaks` kept in between."""
    n = len(books.memory_mib)
    if n < 8:
        return 0.0
    before, after = books.memory_mib[n // 4 : n // 2], books.memory_mib[-(n // 4) :]
    leaked = 0.0 if options.kill_engine else books.outcomes["leaks"][200] * LEAK_BYTES / (1 << 20)
    return statistics.median(after) - statistics.median(before) - leaked / 2


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kill-engine", action="store_true")
    parser.add_argument("--onnx", action="store_true", help="ONNX models even where torch is there")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.torch = chaos_models.has_torch() and not options.onnx
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder), torch=options.torch)
        status = 1
        try:
            books, counted = asyncio.run(run(server, options))
        finally:
            status = server.stop()
        found = complaints(books, counted, options, status)
        said = server.stderr()
    report = {
        "command": " ".join(["python experiments/chaos.py", *sys.argv[1:]]),
        "seconds": options.seconds,
        "offered": dict(books.n_offered),
        "outcomes": {name: {str(k): v for k, v in sorted(c.items())} for name, c in books.outcomes.items()},
        "server_counted": dict(counted),
        "recovery": recoveries(books),
        "longest_without_calm_s": max(
            (b - a for a, b in zip(books.calm_at, books.calm_at[1:], strict=False)), default=None
        ),
        "memory_mib": {"first": books.memory_mib[:1], "last": books.memory_mib[-1:]},
        "memory_growth_mib": growth_mib(books, options),
        "server_said": dict(Counter(said.splitlines()).most_common(20)),
        "complaints": found,
        "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
    }
    print(json.dumps(report, indent=1))
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    for complaint in found:
        print(f"NOT AS IT SHOULD BE: {complaint}", file=sys.stderr)
    if found:
        print(said[-3000:], file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

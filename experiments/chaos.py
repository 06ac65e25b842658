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
import os
import platform
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable
from pathlib import Path

import chaos_models
from chaos_clients import ANSWER_LIMIT_S, LOST, NO_ANSWER, Books, Clients
from chaos_models import BAD, LEAK_BYTES
from chaos_server import Server, resident_mib
from prometheus_client.parser import text_string_to_metric_families

FULL_DISK_S = 15.0
EVENT_EVERY_S = 20.0
KILL_EVERY_S = 30.0
STARVED_S = 10.0
"""Longest time without an answer of the model that behaves."""
FLAT_MIB = 64.0


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
    clients = Clients(server.port, books, options.seed)
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

"""Load on the three models of a server: open loop by Poisson arrivals, and a closed loop for the capacity.

Arrivals are drawn from a seed, so every server is offered the same requests at the same instants. Latency
counts from the intended arrival, whatever the generator or the connections made of it.
"""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from catalogue import Post
from mixed_inputs import SHARES
from processes import Running
from settings import BACKLOG, DRAIN_S, REST_LIMIT_S

from cotenant.experiment.http_load import Pool

CONNECTIONS = 1024
"""Most connections: what finds none waits, and its waiting counts."""
PRIORITY = -10
"""Nice value of this process while it offers load, where it may have it: servers run on the same cores, and
what they leave the generator must not decide when requests are sent."""
NO_DEADLINE_MS = 1e7
LEAST_BUDGET_MS = 1.0


@dataclass(frozen=True, kw_only=True)
class Ask:
    """Ready-made requests to one model: bytes before and after the header of the deadline."""

    model: str
    ready: Sequence[tuple[bytes, bytes]]
    slo_ms: float
    takes_deadlines: bool

    def make(self, n: int, budget_ms: float) -> bytes:
        """The n-th request."""
        head, rest = self.ready[n % len(self.ready)]
        if not self.takes_deadlines:
            return head + rest
        return head + b"x-slo-ms: %.3f\r\n" % max(LEAST_BUDGET_MS, budget_ms) + rest


def make_asks(
    found: Running, requests: Mapping[str, Sequence[bytes]], slo_ms: Mapping[str, float]
) -> list[Ask]:
    """What is sent to each model of a server."""
    server = found.server
    return [
        Ask(
            model=model,
            ready=[_wire(server.ask(model, request), found.port) for request in requests[model]],
            slo_ms=slo_ms[model],
            takes_deadlines=server.takes_deadlines,
        )
        for model in SHARES
    ]


def _wire(post: Post, port: int) -> tuple[bytes, bytes]:
    lines = [f"POST {post.path} HTTP/1.1", f"Host: 127.0.0.1:{port}"]
    lines += [f"{name}: {value}" for name, value in post.headers.items()]
    head = "".join(f"{line}\r\n" for line in lines).encode()
    return head, b"Content-Length: %d\r\n\r\n" % len(post.body) + post.body


@dataclass(slots=True)
class Counts:
    """How the requests of one run ended."""

    offered: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SHARES, 0))
    ok: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SHARES, 0))
    late: int = 0
    refused: int = 0
    failed: int = 0
    sent_late_ms: list[float] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        """As it is written to results."""
        offered = sum(self.offered.values())
        share = {m: self.ok[m] / n if n else None for m, n in self.offered.items()}
        return {
            "attainment": sum(self.ok.values()) / max(1, offered), "offered": offered,
            "ok": sum(self.ok.values()), "late": self.late, "refused": self.refused, "failed": self.failed,
            "per_model": share,
            "generator_late_p99_ms": float(np.percentile(self.sent_late_ms, 99)) if offered else 0.0,
        }  # fmt: skip


@contextmanager
def prompt() -> Iterator[None]:
    """Run this process ahead of others, if it may, and without pauses of the garbage collector."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, PRIORITY)
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        os.setpriority(os.PRIO_PROCESS, 0, before)


def schedule(rate_per_s: float, seconds: float, seed: Sequence[int]) -> tuple[list[float], list[int]]:
    """Poisson arrivals: instants (s) and indices of models."""
    random = np.random.default_rng(seed)
    n = random.poisson(rate_per_s * seconds)
    at = np.sort(random.uniform(0.0, seconds, n))
    return at.tolist(), random.choice(len(SHARES), n, p=list(SHARES.values())).tolist()


async def offer(found: Running, asks: Sequence[Ask], at: Sequence[float], which: Sequence[int]) -> Counts:
    """Send every request at its instant; waits at most `DRAIN_S` for the last answers, which then failed."""
    counts = Counts()
    pool = Pool(found.url, limit=CONNECTIONS)
    origin = time.perf_counter() + 0.05
    n_open = 0

    def send(n: int) -> None:
        nonlocal n_open
        ask, due = asks[which[n]], origin + at[n]
        deadline = due + ask.slo_ms / 1e3
        counts.offered[ask.model] += 1
        n_open += 1

        def make() -> bytes:
            now = time.perf_counter()
            counts.sent_late_ms.append(1e3 * (now - due))
            return ask.make(n, 1e3 * (deadline - now))

        def answer(status: int, headers: Mapping[str, str]) -> None:
            nonlocal n_open
            n_open -= 1
            if status == 200 and time.perf_counter() <= deadline:
                counts.ok[ask.model] += 1
            elif status == 200:
                counts.late += 1
            elif status in (408, 429, 503, 504):
                counts.refused += 1
            else:
                counts.failed += 1

        pool.post(make, answer)

    for n in range(len(at)):
        wait_s = origin + at[n] - time.perf_counter()
        if wait_s > 0 or n % 16 == 0:
            await asyncio.sleep(max(0.0, wait_s))
        send(n)
    until = time.perf_counter() + DRAIN_S
    while n_open and time.perf_counter() < until:
        await asyncio.sleep(0.02)
    pool.close()
    return counts


async def saturate(found: Running, asks: Sequence[Ask], warm_s: float, seconds: float) -> float:
    """Requests per second of the mix that the server completes with `BACKLOG` of them waiting, without
    deadlines; those of the first `warm_s` do not count. Raises ValueError when requests fail."""
    order = np.random.default_rng(1).choice(len(SHARES), 100_000, p=list(SHARES.values())).tolist()
    pool = Pool(found.url, limit=BACKLOG)
    done: list[float] = []
    failed: list[int] = []
    over = False
    n_sent = 0

    def send() -> None:
        nonlocal n_sent
        if over:
            return
        n, ask = n_sent, asks[order[n_sent % len(order)]]
        n_sent += 1
        pool.post(lambda: ask.make(n, NO_DEADLINE_MS), answer)

    def answer(status: int, headers: Mapping[str, str]) -> None:
        if status == 200:
            done.append(time.perf_counter())
        elif not over:
            failed.append(status)
        asyncio.get_running_loop().call_soon(send)

    for _ in range(BACKLOG):
        send()
    began = time.perf_counter()
    await asyncio.sleep(warm_s + seconds)
    over = True
    pool.close()
    if len(failed) > len(done):
        raise ValueError(f"most requests failed while saturated, the last with status {failed[-1]}")
    return sum(1 for at in done if began + warm_s <= at <= began + warm_s + seconds) / seconds


async def rest(found: Running, asks: Sequence[Ask]) -> bool:
    """Wait until the server answers one request to each model again; False when it takes too long."""
    left = len(asks)
    pool = Pool(found.url, limit=len(asks))

    def answer(status: int, headers: Mapping[str, str]) -> None:
        nonlocal left
        left -= status == 200

    for ask in asks:
        pool.post(partial(ask.make, 0, NO_DEADLINE_MS), answer)
    until = time.perf_counter() + REST_LIMIT_S
    while left and time.perf_counter() < until:
        await asyncio.sleep(0.05)
    pool.close()
    return not left

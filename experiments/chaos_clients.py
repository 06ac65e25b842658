"""Everybody who asks the server under chaos, and the books of what they saw."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from chaos_models import BAD

ANSWER_LIMIT_S = 30.0
"""No answer after so long counts as none."""
N_SLOW = 50
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


class Clients:
    """Everybody who asks the server."""

    def __init__(self, port: int, books: Books, seed: int) -> None:
        self._port = port
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
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
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
                    reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
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
                _, writer = await asyncio.open_connection("127.0.0.1", self._port)
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

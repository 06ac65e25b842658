"""An engine in memory behind real sockets and shared memory, all on one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np

from cotenant.domain import ModelMetadata, ModelSpec, TensorSpec
from cotenant.engine_client import Call, EngineClient, Reply
from cotenant.engine_server import EngineServer
from cotenant.handshake import listening
from cotenant.remote_link import RemoteLink
from cotenant.testing import EchoLink

ARENA_BYTES = 4 << 20
WIDE = ModelMetadata(
    name="wide",
    platform="onnxruntime_onnx",
    versions=("1",),
    inputs=(TensorSpec(name="input", datatype="FP32", shape=(-1, -1), axes=("batch", "n")),),
    outputs=(TensorSpec(name="output", datatype="FP32", shape=(-1, -1), axes=("batch", "n")),),
    batched=True,
    spec=ModelSpec(name="wide", slo_ns=None, max_batch=4, row_buckets=(1, 2, 4)),
)
"""Any number of floats in, the same out."""
WORDS = ModelMetadata(
    name="words",
    platform="onnxruntime_onnx",
    versions=("1",),
    inputs=(TensorSpec(name="input", datatype="BYTES", shape=(-1,), axes=("batch",)),),
    outputs=(TensorSpec(name="output", datatype="BYTES", shape=(-1,), axes=("batch",)),),
    batched=True,
    spec=ModelSpec(name="words", slo_ns=None, max_batch=1 << 20, row_buckets=(1 << 20,)),
)


class Rig:
    """An engine in memory, its server, and as many front ends as are wanted."""

    def __init__(self, path: Path, server: EngineServer, echo: EchoLink) -> None:
        self.path, self.server, self.echo = path, server, echo
        self._tasks: list[asyncio.Task[None]] = []

    async def front(self) -> tuple[RemoteLink, EngineClient]:
        """A front end that has met the engine."""
        link = RemoteLink(self.path, ["wide", "words"], ARENA_BYTES)
        self._tasks.append(asyncio.create_task(link.run()))
        await until(lambda: link.absence() is None)
        return link, EngineClient(link)

    async def hang_up(self) -> None:
        """The front end that came last goes."""
        task = self._tasks.pop()
        task.cancel()
        await asyncio.wait([task])

    async def close(self) -> None:
        while self._tasks:
            await self.hang_up()
        self.server.close()


@asynccontextmanager
async def rig() -> AsyncIterator[Rig]:
    """Everything in place, and away afterwards."""
    with listening() as (listener, path):
        server, echo = EngineServer(listener, ARENA_BYTES), EchoLink(WIDE, WORDS)
        server.open()
        server.serve(echo)
        found = Rig(path, server, echo)
        try:
            yield found
        finally:
            await found.close()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for it; a test that waits in vain fails by its own limit."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


def call(client: EngineClient, array: Any, model: str = "wide", **members: Any) -> Call:
    """A call as a front end makes it."""
    settled = {"id": client.new_id(), "rows": array.shape[0], "axes": (), "arrived_at": client.now()}
    return Call(model=model, inputs={"input": array}, **(settled | members))


async def ask(client: EngineClient, array: Any, model: str = "wide", **members: Any) -> Reply:
    return await client.infer(call(client, array, model, **members))


def floats(n: int, value: float = 0.5) -> Any:
    return np.full((1, n), value, np.float32)

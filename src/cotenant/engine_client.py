"""The front end's side of the engine: calls in, replies out. Imports nothing of the device side.

`link` is the engine in this process (`local_link.py`), or speaks frames over a socket to one in a process of
its own (`remote_link.py`). The front end sees no difference.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from msgspec import Struct

from cotenant.domain import ModelMetadata, Outcome
from cotenant.ports import Tensors


class Call(Struct, frozen=True, kw_only=True, array_like=True):
    """One inference as the front end hands it over. Arrays are C-contiguous and already validated.

    `arrived_at` is stamped when the headers were parsed. `slo_ns` is the budget the client asked for
    (None: the model's). `priority` is the V2 parameter (0: the model's class). `answer_ns` is how long the
    front end needs to answer once the run has ended."""

    id: str
    model: str
    inputs: Tensors
    rows: int
    axes: tuple[tuple[str, int], ...]
    arrived_at: int
    slo_ns: int | None = None
    priority: int = 0
    answer_ns: int = 0


class Reply(Struct, frozen=True, kw_only=True):
    """What became of a call; `outputs` is set when it was answered (ok or late)."""

    outcome: Outcome
    outputs: Tensors | None = None


class ModelStatus(Struct, frozen=True, kw_only=True):
    """State of a model that there is, by its unique name: `READY`, `LOADING`, `UNAVAILABLE` (and why)."""

    name: str
    state: str
    reason: str = ""


class ModelStatistics(Struct, frozen=True, kw_only=True):
    """Cumulative counts and nanoseconds of one model, for the V2 statistics extension.

    `batches`: (rows, count, total ns). `success, fail, queue, compute` are (count, total ns)."""

    name: str
    last_inference_ms: int
    inference_count: int
    execution_count: int
    success: tuple[int, int]
    fail: tuple[int, int]
    queue: tuple[int, int]
    compute: tuple[int, int]
    batches: Sequence[tuple[int, int, int]] = ()


class Absence(Struct, frozen=True, kw_only=True):
    """Why no call is accepted: the server drains, the engine starts, or it was lost and starts anew.
    `retry_after_ms`: when it may be worth to ask again, None where nothing is known."""

    reason: str
    retry_after_ms: float | None = None


class EngineDownError(Exception):
    """There is no engine to ask now; the message says why. 503 to a client."""


class EngineLink(Protocol):
    """What the client needs of an engine. All calls come from the front end's event loop."""

    def now(self) -> int: ...

    def submit(self, call: Call, reply: Callable[[Reply], None]) -> None:
        """Take the call; `reply` is called exactly once, on the caller's event loop."""
        ...

    def cancel(self, call_id: str) -> None:
        """The client has gone; queued work is dropped, running work is not stopped."""
        ...

    def metadata(self) -> Mapping[str, ModelMetadata]:
        """Loaded models by name."""
        ...

    def status(self) -> Sequence[ModelStatus]:
        """Every configured model, loaded or not."""
        ...

    async def statistics(self) -> Sequence[ModelStatistics]:
        """Raises EngineDownError."""
        ...

    async def metrics(self, accept: str = "") -> tuple[bytes, str]:
        """The engine's page of metrics for a client that accepts `accept`, and its content type. Raises
        EngineDownError."""
        ...

    def answered(self, call_id: str, span_ns: int) -> None:
        """The answer to a call was sent, so long (ns) after its run had ended."""
        ...

    def refused(self, model: str, reason: str) -> None:
        """The front end has refused a request of a model before making a call of it; "" for the model: a
        request that was refused for its key."""
        ...

    def load(self, name: str, done: Callable[[str | None], None]) -> None:
        """Load a model, by the name that clients know; `done(error)` on the caller's event loop. The error of
        one that there is not begins with "unknown model"."""
        ...

    def unload(self, name: str, done: Callable[[str | None], None]) -> None: ...

    def absence(self) -> Absence | None:
        """Why calls are not accepted now; None while they are."""
        ...

    async def explain(self, call_id: str) -> dict[str, Any] | None:
        """What is remembered of a recent request, or None. Raises EngineDownError."""
        ...


class EngineClient:
    """Asynchronous face of an `EngineLink`."""

    def __init__(self, link: EngineLink) -> None:
        self._link = link
        self._n_calls = 0
        self.now = link.now
        self.metadata = link.metadata
        self.status = link.status
        self.statistics = link.statistics
        self.metrics = link.metrics
        self.answered = link.answered
        self.refused = link.refused
        self.absence = link.absence
        self.explain = link.explain
        self._process = f"{os.getpid():x}"
        self.was_ready = False
        """Whether the server was ready when it was last asked (`serve.describe.server_ready`)."""

    def accepting(self) -> bool:
        """Whether calls are accepted now; `absence` says why they are not."""
        return self.absence() is None

    def new_id(self) -> str:
        """A server-made request id: unique over all front-end processes of this machine."""
        self._n_calls += 1
        return f"{self._link.now():x}-{self._process}-{self._n_calls:x}"

    async def infer(self, call: Call) -> Reply:
        """Wait for the outcome of `call`. If the awaiting task is cancelled the call is cancelled too."""
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

        def reply(value: Reply) -> None:
            if not future.done():
                future.set_result(value)

        self._link.submit(call, reply)
        try:
            return await future
        except asyncio.CancelledError:
            self._link.cancel(call.id)
            raise

    async def load(self, name: str) -> str | None:
        """Load a configured model; returns an error message or None."""
        return await self._maintenance(self._link.load, name)

    async def unload(self, name: str) -> str | None:
        """Unload a model; returns an error message or None."""
        return await self._maintenance(self._link.unload, name)

    async def _maintenance(
        self, action: Callable[[str, Callable[[str | None], None]], None], name: str
    ) -> str | None:
        future: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        action(name, lambda error: None if future.done() else future.set_result(error))
        return await future

"""POST .../infer as bare ASGI: no routing table, no Request or Response objects, no task of its own.

How this works: uvicorn already runs each request in a task. That task reads the body, decodes, awaits the
engine and sends. A client's going is only told to whoever awaits `receive()`, and that would need a second
task; so a timer is armed instead (under a microsecond), and only a request that still waits after
`watch_after_ms` gets a task that awaits the disconnect and then cancels the request's own task, which
`EngineClient.infer` turns into a cancelled call. Most requests of small models never pay for it, and a
disconnect in the first milliseconds is noticed when the watch begins.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cotenant.domain import NS_PER_MS, ModelMetadata, OutcomeKind
from cotenant.engine_client import EngineClient, Reply
from cotenant.serve.access import denied
from cotenant.serve.answering import AnswerTimes
from cotenant.serve.codec import ModelCodec, ModelCodecs
from cotenant.serve.compression import Inflater, accepted_coding, content_coding, deflate
from cotenant.serve.dataplane import (
    JSON_TYPE,
    UNAVAILABLE,
    Answer,
    Headers,
    budget_ns,
    error_answer,
    find_model,
    infer,
    refusal,
)
from cotenant.serve.entering import RefusedError, counted, enter
from cotenant.serve.errors import BadRequest
from cotenant.serve.gate import Gate, Ticket
from cotenant.serve.keys import ANYONE, Principal
from cotenant.serve.oip import Encoded, Inference
from cotenant.serve.settings import ServeConfig
from cotenant.serve.shared_memory import Regions
from cotenant.telemetry.logs import Logger

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
OnSent = Callable[[str, int], None]
"""Told the id of a call whose answer was sent, and how long after the end of its run that was (ns)."""

_READ_HEADERS = frozenset(
    (
        b"accept-encoding",
        b"content-length",
        b"content-encoding",
        b"inference-header-content-length",
        b"x-slo-ms",
        b"x-request-timeout-seconds",
    )
)
_LOG = Logger("http")
REQUEST_ID = "cotenant.request_id"
"""Key of the scope under which an application around this one may have put the request's id."""
_LATE = (b"x-cotenant-outcome", b"late")
_BINARY_TYPE = (b"content-type", b"application/octet-stream")
LINGER_S = 2.0


class ClientGoneError(Exception):
    """The client closed its connection: nobody is left to answer."""


class OversizeError(BadRequest):
    """A body above the limit; `unread`: the client may still be sending it."""

    def __init__(self, limit: int, *, unread: bool) -> None:
        super().__init__(413, f"the body is larger than the limit of {limit} bytes")
        self.unread = unread


class Watch:
    """Cancels the current task when the client disconnects while it waits."""

    __slots__ = ("_receive", "_task", "_timer", "_watcher", "gone")

    def __init__(self, receive: Receive, after_s: float) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._receive = receive
        self._watcher: asyncio.Task[None] | None = None
        self._timer = task.get_loop().call_later(after_s, self._begin)
        self.gone = False

    def _begin(self) -> None:
        self._watcher = self._task.get_loop().create_task(self._wait())

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        self._task.cancel()

    def stop(self) -> None:
        """The wait is over."""
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()


class InferRoute:
    """Answers infer requests; holds the decoders of the loaded models."""

    def __init__(
        self,
        client: EngineClient,
        config: ServeConfig,
        gate: Gate,
        on_sent: OnSent | None = None,
        regions: Regions | None = None,
    ) -> None:
        """`regions`: the shared memory that requests may refer to, where that is allowed."""
        self._client = client
        self._gate = gate
        self._config = config
        self._on_sent = on_sent
        self._regions = regions
        self._times = AnswerTimes()
        self._codecs = ModelCodecs(client.metadata, config.door.max_elements)
        self._pool = ThreadPoolExecutor(config.n_json_threads, thread_name_prefix="cotenant-json")

    async def __call__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        model: str,
        version: str | None,
        arrived_at: int,
        principal: Principal = ANYONE,
    ) -> None:
        """Answer one request. `arrived_at` was stamped when the headers had been parsed. What can be refused
        by its headers and path is refused before the body is read."""
        call_id = self._gate.stamp(principal, scope.get(REQUEST_ID) or self._client.new_id())
        ticket: Ticket | None = None
        unread = False
        try:
            headers = _headers(scope)
            metadata = find_model(self._client, model, version)
            ticket = enter(self._gate, principal, metadata.name, headers, self._config.max_body_bytes)
            coding = content_coding(headers.get(b"content-encoding"))
            body = await self._body(headers, counted(receive, headers, ticket))
            if coding is not None:
                body = await self._inflated(coding, body)
            answer = await self._answer(
                metadata, headers, body, receive, call_id, arrived_at, principal, ticket
            )
        except RefusedError as error:
            answer = denied(error.refusal)
        except BadRequest as error:
            answer = error_answer(error.status, error.message)
            unread = isinstance(error, OversizeError) and error.unread
        except ClientGoneError:
            return
        except asyncio.CancelledError:
            # uvicorn cancels what outlives the drain limit; nothing awaits this task but the client
            answer = error_answer(503, f"{UNAVAILABLE}: the server is shutting down")
        except Exception:
            _LOG.error(
                "http.internal_error", "the request could not be served", request_id=call_id, model=model
            )
            await send_answer(send, error_answer(500, "internal error"), call_id)
            raise
        finally:
            if ticket is not None:
                ticket.leave()
        if answer.status != 200:
            answer.headers.append(_timing(self._client.now() - arrived_at))
        if unread:
            return await _send_and_linger(answer, call_id, receive, send)
        await send_answer(send, answer, call_id)
        if answer.ended_at is not None:
            span_ns = self._client.now() - answer.ended_at
            self._times.sent(span_ns)
            if self._on_sent is not None:
                self._on_sent(call_id, span_ns)

    # --- reading ----------------------------------------------------------------------------------

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes | bytearray:
        """The whole body, as it was sent. Raises BadRequest (413, 408) and ClientGoneError."""
        limit = self._config.max_body_bytes
        declared = headers.get(b"content-length")
        if declared is not None and declared.isdigit() and int(declared) > limit:
            raise OversizeError(limit, unread=True)
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        first: bytes = message.get("body", b"")
        if not message.get("more_body"):
            if len(first) > limit:
                raise OversizeError(limit, unread=False)
            return first
        body = bytearray(first)
        try:
            async with asyncio.timeout(self._config.body_timeout_s):
                while message.get("more_body"):
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGoneError
                    body += message.get("body", b"")
                    if len(body) > limit:
                        raise OversizeError(limit, unread=bool(message.get("more_body")))
        except TimeoutError:
            raise BadRequest(
                408, f"the body did not arrive within {self._config.body_timeout_s:g} seconds"
            ) from None
        return body

    async def _inflated(self, coding: bytes, body: bytes | bytearray) -> bytearray:
        """A compressed body as it was before. Raises BadRequest (400, 413)."""
        inflater = Inflater(coding, body, self._config.max_body_bytes)
        if not inflater.begin(self._config.large_bytes):
            await self._in_thread(inflater.finish)
        return inflater.body

    # --- answering --------------------------------------------------------------------------------

    async def _answer(
        self,
        metadata: ModelMetadata,
        headers: dict[bytes, bytes],
        body: bytes | bytearray,
        receive: Receive,
        call_id: str,
        arrived_at: int,
        principal: Principal,
        ticket: Ticket,
    ) -> Answer:
        codec = self._codecs.of(metadata)
        json_bytes = _json_bytes(headers)
        inference: Inference
        if codec.slow_bytes(body, json_bytes) > self._config.large_json_bytes or self._is_shared(body):
            inference = await self._in_thread(codec.decode, body, json_bytes, self._regions)
        else:
            inference = codec.decode(body, json_bytes, self._regions)
        slo_ns = budget_ns(
            inference.timeout_us, headers.get(b"x-slo-ms"), headers.get(b"x-request-timeout-seconds")
        )
        absence = self._client.absence()
        if absence is not None:
            reason = f"{UNAVAILABLE}: {absence.reason}"
            return error_answer(503, reason, retry_after_ms=absence.retry_after_ms)
        watch = Watch(receive, self._config.watch_after_ms / 1000)
        try:
            reply = await infer(
                self._client,
                metadata.name,
                call_id,
                inference,
                arrived_at,
                slo_ns,
                self._times.reserve_ns,
                principal.job_class,
            )
        except asyncio.CancelledError:
            if not watch.gone:
                raise
            raise ClientGoneError from None
        finally:
            watch.stop()
        ticket.outcome = reply.outcome
        if reply.outputs is None:
            return refusal(reply.outcome)
        return await self._success(codec, inference, reply, headers)

    def _is_shared(self, body: bytes | bytearray) -> bool:
        """Whether a request refers to shared memory, which may be large whatever the body is."""
        return self._regions is not None and b"shared_memory_region" in body

    async def _success(
        self, codec: ModelCodec, inference: Inference, reply: Reply, asked: dict[bytes, bytes]
    ) -> Answer:
        assert reply.outputs is not None
        encoded: Encoded
        # a number takes about 10 bytes as JSON
        if codec.slow_elements(reply.outputs, inference.wanted) * 10 > self._config.large_json_bytes:
            encoded = await self._in_thread(codec.encode, reply.outputs, inference.wanted, inference.id)
        else:
            encoded = codec.encode(reply.outputs, inference.wanted, inference.id)
        if encoded.json_bytes is None:
            headers = [JSON_TYPE]
        else:
            headers = [_BINARY_TYPE, (b"inference-header-content-length", b"%d" % encoded.json_bytes)]
        if reply.outcome.kind is OutcomeKind.LATE:
            headers.append(_LATE)
        body = await self._deflated(encoded.body, accepted_coding(asked.get(b"accept-encoding")), headers)
        return Answer(200, headers, body, reply.outcome.ended_at)

    async def _deflated(self, body: bytes, coding: bytes | None, headers: Headers) -> bytes:
        """The body of an answer, compressed where the client takes it and it gains; its headers say so."""
        if len(body) < self._config.compress_from_bytes:
            return body
        headers.append((b"vary", b"accept-encoding"))
        if coding is None:
            return body
        if len(body) > self._config.large_bytes:
            smaller: bytes = await self._in_thread(deflate, body, coding)
        else:
            smaller = deflate(body, coding)
        if len(smaller) >= len(body):
            return body
        headers.append((b"content-encoding", coding))
        return smaller

    async def _in_thread(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)


def _headers(scope: Scope) -> dict[bytes, bytes]:
    """The headers this route reads. One given twice is joined by a comma, which no parser of ours takes."""
    found: dict[bytes, bytes] = {}
    for name, value in scope["headers"]:
        if name in _READ_HEADERS:
            found[name] = found[name] + b", " + value if name in found else value
    return found


def _json_bytes(headers: dict[bytes, bytes]) -> int | None:
    text = headers.get(b"inference-header-content-length")
    if text is None:
        return None
    if not text.isdigit() or len(text) > 15:
        shown = text.decode("latin-1")
        raise BadRequest(
            400, f"header Inference-Header-Content-Length: expected a count of bytes, got {shown!r:.40}"
        )
    return int(text)


def _finish_headers(answer: Answer, call_id: str) -> list[tuple[bytes, bytes]]:
    return [
        *answer.headers,
        (b"content-length", b"%d" % len(answer.body)),
        (b"x-request-id", call_id.encode()),
    ]


def _timing(span_ns: int) -> tuple[bytes, bytes]:
    """How long the server took from the headers to the answer, as W3C Server-Timing (ms)."""
    return b"server-timing", b"total;dur=%.3f" % (span_ns / NS_PER_MS)


async def send_answer(send: Send, answer: Answer, call_id: str) -> None:
    """Send a whole answer under the request's id."""
    headers = _finish_headers(answer, call_id)
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})


async def _send_and_linger(answer: Answer, call_id: str, receive: Receive, send: Send) -> None:
    """Send the answer, then read on for a moment before closing: a client still sending its body would
    otherwise see a reset connection instead of the answer."""
    headers = [*_finish_headers(answer, call_id), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body, "more_body": True})
    try:
        async with asyncio.timeout(LINGER_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect" or not message.get("more_body"):
                    break
    except TimeoutError:
        pass
    await send({"type": "http.response.body", "body": b""})

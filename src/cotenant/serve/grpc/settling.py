"""One inference over gRPC: a serialised request in, a serialised answer or a failure out.

Nothing but the fixed words of a `Failure` leaves the server, whatever goes wrong.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from google.protobuf.message import DecodeError, Message
from msgspec import Struct

from cotenant.domain import ModelMetadata, OutcomeKind
from cotenant.engine_client import EngineClient
from cotenant.ports import Tensors
from cotenant.serve.answering import AnswerTimes
from cotenant.serve.codec import ModelCodec, ModelCodecs
from cotenant.serve.dataplane import UNAVAILABLE, Failure, budget_ns, failure, find_model, infer
from cotenant.serve.errors import BadRequest
from cotenant.serve.gate import Gate, Refusal, Ticket
from cotenant.serve.grpc import inference_pb2 as pb
from cotenant.serve.grpc.reading import MessageData, request_of
from cotenant.serve.grpc.status import INTERNAL, describe, refused, told_of
from cotenant.serve.grpc.wire import check_parts, malformed
from cotenant.serve.grpc.writing import all_raw, write
from cotenant.serve.keys import ANYONE, Principal
from cotenant.serve.oip import REGION, Inference
from cotenant.serve.settings import ServeConfig
from cotenant.serve.shared_memory import Regions

log = logging.getLogger(__name__)

M = TypeVar("M", bound=Message)
T = TypeVar("T")


class Asked(Struct, frozen=True, kw_only=True):
    """A request as it came. `left_ns` is the budget that the call's deadline leaves it, from `arrived_at` on;
    `slo_ms` and `timeout_s` are what its metadata says."""

    body: bytes
    call_id: str
    arrived_at: int
    left_ns: int | None
    slo_ms: bytes | None
    timeout_s: bytes | None
    streamed: bool
    principal: Principal = ANYONE
    """Whether the answer is one of a stream."""


class Settled(Struct, frozen=True, kw_only=True):
    """How a request ended: with an answer (and when its run had ended, ns), or with a failure."""

    request_id: str = ""
    answer: bytes = b""
    ended_at: int = 0
    late: bool = False
    failure: Failure | None = None


def parse(kind: type[M], body: bytes) -> M:
    """The message. Raises BadRequest (400)."""
    try:
        message: M = kind.FromString(body)
    except DecodeError:
        raise malformed() from None
    return message


class Settler:
    """Settles inferences; holds the decoders of the loaded models."""

    def __init__(
        self, client: EngineClient, config: ServeConfig, gate: Gate, regions: Regions | None
    ) -> None:
        """`regions`: the shared memory that requests may refer to, where that is allowed."""
        self._client, self._gate = client, gate
        self._config, self._regions = config, regions
        self._codecs = ModelCodecs(client.metadata, config.door.max_elements)
        self._pool = ThreadPoolExecutor(config.n_json_threads, thread_name_prefix="cotenant-grpc")
        self.times = AnswerTimes()
        """Tell it when an answer has been sent."""

    async def settle(self, asked: Asked) -> Settled:
        """How the request ends. Cancelling the task cancels the request; nothing else is raised."""
        request_id = ""
        try:
            check_parts(asked.body)
            message = parse(pb.ModelInferRequest, asked.body)
            request_id = message.id
            return await self._answer(message, asked)
        except BadRequest as error:
            return Settled(request_id=request_id, failure=told_of(error))
        except Exception:
            log.exception("request %s", asked.call_id)
            return Settled(request_id=request_id, failure=INTERNAL)

    async def _answer(self, message: pb.ModelInferRequest, asked: Asked) -> Settled:
        metadata = find_model(self._client, message.model_name, message.model_version or None)
        budget = budget_ns(None, asked.slo_ms, asked.timeout_s, asked.left_ns)
        ticket = self._gate.enter(asked.principal, metadata.name, budget, len(asked.body))
        if isinstance(ticket, Refusal):
            return Settled(request_id=message.id, failure=refused(ticket))
        try:
            return await self._served(message, asked, metadata, ticket)
        finally:
            ticket.leave()

    async def _served(
        self, message: pb.ModelInferRequest, asked: Asked, metadata: ModelMetadata, ticket: Ticket
    ) -> Settled:
        codec = self._codecs.of(metadata)
        inference = await self._inference(message, asked, codec)
        raw = all_raw(inference.wanted)
        slo_ns = budget_ns(inference.timeout_us, asked.slo_ms, asked.timeout_s, asked.left_ns)
        absence = self._client.absence()
        if absence is not None:
            raise BadRequest(503, f"{UNAVAILABLE}: {absence.reason}")
        reply = await infer(
            self._client,
            metadata.name,
            asked.call_id,
            inference,
            asked.arrived_at,
            slo_ns,
            self.times.reserve_ns,
            asked.principal.job_class,
        )
        ticket.outcome = reply.outcome
        if reply.outputs is None:
            return Settled(request_id=message.id, failure=failure(reply.outcome))
        # a number takes about 10 bytes of work when it is not raw
        slow = codec.slow_elements(reply.outputs, inference.wanted) * 10 > self._config.large_json_bytes
        late = reply.outcome.kind is OutcomeKind.LATE

        def encode(outputs: Tensors = reply.outputs) -> bytes:
            return _encode(metadata, outputs, inference, asked, raw=raw, late=late)

        answer = await self._in_thread(encode) if slow else encode()
        self._check_size(answer)
        return Settled(request_id=message.id, answer=answer, ended_at=reply.outcome.ended_at, late=late)

    async def _inference(self, message: pb.ModelInferRequest, asked: Asked, codec: ModelCodec) -> Inference:
        data = MessageData(message)
        n_slow = codec.slow_bytes(asked.body, len(asked.body) - data.raw_bytes)

        def decode() -> Inference:
            return codec.inference(request_of(message), data, self._regions, in_binary=True)

        slow = n_slow > self._config.large_json_bytes or self._is_shared(asked.body)
        return await self._in_thread(decode) if slow else decode()

    def _is_shared(self, body: bytes) -> bool:
        """Whether a request refers to shared memory, which may be large whatever the message is."""
        return self._regions is not None and REGION.encode() in body

    def _check_size(self, answer: bytes) -> None:
        limit = self._config.max_body_bytes
        if len(answer) > limit:
            raise BadRequest(
                413,
                f"the answer has {len(answer)} bytes, more than the limit of {limit}; ask for fewer rows or "
                "outputs",
            )

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)


def _encode(
    metadata: ModelMetadata, outputs: Tensors, inference: Inference, asked: Asked, *, raw: bool, late: bool
) -> bytes:
    envelope = pb.ModelStreamInferResponse()
    response = envelope.infer_response if asked.streamed else pb.ModelInferResponse()
    write(response, metadata, outputs, inference.wanted, raw=raw, request_id=inference.id)
    if asked.streamed:
        describe(response, asked.call_id, late=late)
    serialised: bytes = (envelope if asked.streamed else response).SerializeToString()
    return serialised

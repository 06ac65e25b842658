"""ModelInfer and ModelStreamInfer.

How this works: grpc hands over messages as bytes and takes bytes back, so that a malformed message is ours to
refuse. The arrival of a call is stamped when its headers have come, that of a request on a stream when the
request has. grpc cancels the task of a call whose client has gone or whose deadline has passed, and
`EngineClient.infer` turns that into cancelled requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from grpc import aio
from msgspec import Struct

from cotenant.domain import NS_PER_S
from cotenant.engine_client import EngineClient
from cotenant.serve.dataplane import LONGEST_BUDGET_NS
from cotenant.serve.gate import Gate
from cotenant.serve.grpc.settings import GrpcConfig
from cotenant.serve.grpc.settling import Asked, Settled, Settler
from cotenant.serve.grpc.status import code_of, details_of, failed_on_stream, trailing_metadata
from cotenant.serve.keys import Principal
from cotenant.serve.settings import ServeConfig
from cotenant.serve.shared_memory import Regions


class Budgets(Struct, frozen=True):
    """The budgets in a call's metadata, as they stand there."""

    slo_ms: bytes | None
    timeout_s: bytes | None


def budgets_of(metadata: Iterable[tuple[str, str | bytes]]) -> Budgets:
    """One that is given twice is joined by a comma, which no parser of ours takes."""
    found: dict[str, bytes] = {}
    for name, value in metadata:
        if name == "x-slo-ms" or name == "x-request-timeout-seconds":
            text = value if isinstance(value, bytes) else value.encode()
            found[name] = found[name] + b", " + text if name in found else text
    return Budgets(found.get("x-slo-ms"), found.get("x-request-timeout-seconds"))


class InferRpcs:
    """The two methods that infer."""

    def __init__(
        self,
        client: EngineClient,
        config: ServeConfig,
        grpc_config: GrpcConfig,
        gate: Gate,
        regions: Regions | None,
    ) -> None:
        self._client, self._gate = client, gate
        self._settler = Settler(client, config, gate, regions)
        self._max_in_flight = grpc_config.max_in_flight_per_stream

    async def unary(
        self, body: bytes, context: Any, arrived_at: int, budgets: Budgets, principal: Principal
    ) -> bytes:
        """ModelInfer."""
        asked = self._asked(body, context, arrived_at, budgets, principal, streamed=False)
        settled = await self._settler.settle(asked)
        told = settled.failure
        if told is not None:
            await context.abort(code_of(told), details_of(told), trailing_metadata(asked.call_id, told))
        context.set_trailing_metadata(trailing_metadata(asked.call_id, late=settled.late))
        context.add_done_callback(lambda _: self._sent(asked.call_id, settled))
        return settled.answer

    async def stream(self, context: Any, budgets: Budgets, principal: Principal) -> None:
        """ModelStreamInfer: requests are taken up to a number in flight and answered as they are settled."""
        room = asyncio.Semaphore(self._max_in_flight)
        turn = asyncio.Lock()  # grpc sends one message at a time
        async with asyncio.TaskGroup() as tasks:
            while True:
                await room.acquire()
                body = await context.read()
                if body is aio.EOF:
                    return
                asked = self._asked(body, context, self._client.now(), budgets, principal, streamed=True)
                task = tasks.create_task(self._answer(asked, context, turn))
                task.add_done_callback(lambda _: room.release())

    async def _answer(self, asked: Asked, context: Any, turn: asyncio.Lock) -> None:
        settled = await self._settler.settle(asked)
        answer = settled.answer
        if settled.failure is not None:
            answer = failed_on_stream(settled.request_id, asked.call_id, settled.failure)
        async with turn:
            try:
                await context.write(answer)
            except aio.BaseError:
                return  # the call has ended, of which its task is about to be told
        if settled.failure is None:
            self._sent(asked.call_id, settled)

    def _asked(
        self,
        body: bytes,
        context: Any,
        arrived_at: int,
        budgets: Budgets,
        principal: Principal,
        *,
        streamed: bool,
    ) -> Asked:
        return Asked(
            body=body,
            call_id=self._gate.stamp(principal, self._client.new_id()),
            arrived_at=arrived_at,
            left_ns=self._left_ns(context, arrived_at),
            slo_ms=budgets.slo_ms,
            timeout_s=budgets.timeout_s,
            streamed=streamed,
            principal=principal,
        )

    def _left_ns(self, context: Any, arrived_at: int) -> int | None:
        """The budget from the arrival to the call's deadline, None without one."""
        left_s: float | None = context.time_remaining()
        if left_s is None:
            return None
        since_arrival = self._client.now() - arrived_at
        return max(1, min(LONGEST_BUDGET_NS, since_arrival + int(left_s * NS_PER_S)))

    def _sent(self, call_id: str, settled: Settled) -> None:
        span_ns = self._client.now() - settled.ended_at
        self._settler.times.sent(span_ns)
        self._client.answered(call_id, span_ns)

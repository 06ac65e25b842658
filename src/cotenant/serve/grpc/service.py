"""Every method of every service: the one place that each call passes before anything of it is acted on.

What is not here is answered by grpc itself (UNIMPLEMENTED).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Mapping
from typing import Any, TypeVar

import grpc
from grpc import aio
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from cotenant.engine_client import EngineClient, EngineDownError
from cotenant.serve.dataplane import UNAVAILABLE
from cotenant.serve.errors import BadRequest
from cotenant.serve.gate import Gate, Refusal
from cotenant.serve.grpc.control import ControlRpcs
from cotenant.serve.grpc.entrance import admit
from cotenant.serve.grpc.health import HEALTH, INFERENCE, Health
from cotenant.serve.grpc.infer import InferRpcs, budgets_of
from cotenant.serve.grpc.reflection import REFLECTION, Reflection
from cotenant.serve.grpc.settings import GrpcConfig
from cotenant.serve.grpc.settling import parse
from cotenant.serve.grpc.status import INTERNAL, advice, code_of, details_of, refused, told_of
from cotenant.serve.keys import Principal
from cotenant.serve.settings import ServeConfig
from cotenant.serve.shared_memory import Regions

log = logging.getLogger(__name__)

MODEL_INFER = f"/{INFERENCE}/ModelInfer"
MODEL_STREAM_INFER = f"/{INFERENCE}/ModelStreamInfer"

T = TypeVar("T")
Handler = Any
"""An `grpc.RpcMethodHandler`."""


class Service:
    """Finds the handler of a call; a `grpc.GenericRpcHandler`."""

    def __init__(
        self,
        client: EngineClient,
        config: ServeConfig,
        grpc_config: GrpcConfig,
        gate: Gate | None = None,
        regions: Regions | None = None,
    ) -> None:
        """`regions`: where shared memory is registered, None where it is turned off."""
        self._now = client.now
        self._gate = gate or Gate(None, config.door, client.now)
        self._open_health = config.door.open_health
        self._infer = InferRpcs(client, config, grpc_config, self._gate, regions)
        self._others: Mapping[str, Handler] = {
            **_control_handlers(ControlRpcs(client, config, regions)),
            **_health_handlers(Health(client, grpc_config.health_watch_s)),
            **_reflection_handlers(Reflection()),
        }

    def service(self, details: Any) -> Handler | None:
        """The handler of a call whose headers have just come, None when there is no such method."""
        method, metadata = details.method, details.invocation_metadata
        arrived_at = self._now()
        served = method in self._others or method in (MODEL_INFER, MODEL_STREAM_INFER)
        found = admit(self._gate, method, metadata, served=served, open_health=self._open_health)
        if isinstance(found, Refusal):
            return _refusing(found)
        if method == MODEL_INFER:
            return self._unary(arrived_at, metadata, found)
        if method == MODEL_STREAM_INFER:
            return self._stream(metadata, found)
        return self._others.get(method)

    def _unary(self, arrived_at: int, metadata: Any, principal: Principal) -> Handler:
        budgets = budgets_of(metadata)

        async def answer(body: bytes, context: Any) -> bytes:
            unary = self._infer.unary(body, context, arrived_at, budgets, principal)
            return await _guarded(unary, context)

        return grpc.unary_unary_rpc_method_handler(answer)

    def _stream(self, metadata: Any, principal: Principal) -> Handler:
        budgets = budgets_of(metadata)

        async def answer(_: Any, context: Any) -> None:
            await _guarded(self._infer.stream(context, budgets, principal), context)

        return grpc.stream_stream_rpc_method_handler(answer)


def _refusing(refusal: Refusal) -> Handler:
    """Ends the call before anything of it is read, whatever kind of method it is."""
    told = refused(refusal)

    async def answer(_: Any, context: Any) -> None:
        await context.abort(code_of(told), details_of(told), advice(told))

    return grpc.stream_stream_rpc_method_handler(answer)


async def _guarded(answer: Awaitable[T], context: Any) -> T:
    """Await the answer; an error ends the call with a status that holds nothing of the server's inside."""
    try:
        return await answer
    except aio.BaseError:
        raise  # the call has ended, by us or by the client
    except BadRequest as error:
        told = told_of(error)
    except EngineDownError as error:
        told = told_of(BadRequest(503, f"{UNAVAILABLE}: {error}"))
    except Exception:
        log.exception("a call failed")
        told = INTERNAL
    await context.abort(code_of(told), details_of(told))
    raise AssertionError("abort raises")


def _control_handlers(control: ControlRpcs) -> dict[str, Handler]:
    def handler(kind: Any, method: Any) -> Handler:
        async def answer(body: bytes, context: Any) -> bytes:
            from_web = any(name == "origin" for name, _ in context.invocation_metadata())

            async def answered() -> bytes:
                found = await method(parse(kind, body), from_web)
                serialised: bytes = found.SerializeToString()
                return serialised

            return await _guarded(answered(), context)

        return grpc.unary_unary_rpc_method_handler(answer)

    return {f"/{INFERENCE}/{name}": handler(kind, method) for name, (kind, method) in control.methods.items()}


def _health_handlers(health: Health) -> dict[str, Handler]:
    def codec(request: Any, response: Any) -> dict[str, Any]:
        return {
            "request_deserializer": request.FromString,
            "response_serializer": response.SerializeToString,
        }

    check = codec(health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse)
    handlers = {
        f"/{HEALTH}/Check": grpc.unary_unary_rpc_method_handler(health.check, **check),
        f"/{HEALTH}/Watch": grpc.unary_stream_rpc_method_handler(health.watch, **check),
    }
    if hasattr(health_pb2, "HealthListRequest"):  # not in the library's versions for protobuf 6
        messages = codec(health_pb2.HealthListRequest, health_pb2.HealthListResponse)
        handlers[f"/{HEALTH}/List"] = grpc.unary_unary_rpc_method_handler(health.list, **messages)
    return handlers


def _reflection_handlers(reflection: Reflection) -> dict[str, Handler]:
    handler = grpc.stream_stream_rpc_method_handler(
        reflection.info,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    return {f"/{name}/ServerReflectionInfo": handler for name in REFLECTION}

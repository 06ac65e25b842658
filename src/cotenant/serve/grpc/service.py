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
from cotenant.serve.grpc.control import ControlRpcs
from cotenant.serve.grpc.health import HEALTH, INFERENCE, Health
from cotenant.serve.grpc.infer import InferRpcs, budgets_of
from cotenant.serve.grpc.reflection import REFLECTION, Reflection
from cotenant.serve.grpc.settings import GrpcConfig
from cotenant.serve.grpc.settling import parse
from cotenant.serve.grpc.status import INTERNAL, code_of, details_of, told_of
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
        regions: Regions | None = None,
    ) -> None:
        """`regions`: where shared memory is registered, None where it is turned off."""
        self._now = client.now
        self._infer = InferRpcs(client, config, grpc_config, regions)
        self._others: Mapping[str, Handler] = {
            **_control_handlers(ControlRpcs(client, config, regions)),
            **_health_handlers(Health(client, grpc_config.health_watch_s)),
            **_reflection_handlers(Reflection()),
        }

    def service(self, details: Any) -> Handler | None:
        """The handler of a call whose headers have just come, None when there is no such method."""
        if details.method == MODEL_INFER:
            return self._unary(self._now(), details.invocation_metadata)
        if details.method == MODEL_STREAM_INFER:
            return self._stream(details.invocation_metadata)
        return self._others.get(details.method)

    def _unary(self, arrived_at: int, metadata: Any) -> Handler:
        budgets = budgets_of(metadata)

        async def answer(body: bytes, context: Any) -> bytes:
            return await _guarded(self._infer.unary(body, context, arrived_at, budgets), context)

        return grpc.unary_unary_rpc_method_handler(answer)

    def _stream(self, metadata: Any) -> Handler:
        budgets = budgets_of(metadata)

        async def answer(_: Any, context: Any) -> None:
            await _guarded(self._infer.stream(context, budgets), context)

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

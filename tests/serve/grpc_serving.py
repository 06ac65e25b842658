"""A real gRPC server in a thread, on an engine in memory, and a plain client of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from google.protobuf.message_factory import GetMessageClass
from serving import Server

from cotenant.domain import ModelMetadata, ModelSpec, TensorSpec
from cotenant.engine_client import EngineClient
from cotenant.serve.gate import Gate
from cotenant.serve.grpc import inference_pb2 as pb
from cotenant.serve.grpc.server import serving_grpc
from cotenant.serve.grpc.settings import GrpcConfig
from cotenant.serve.settings import ServeConfig
from cotenant.testing import EchoLink

SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
ONES = np.full((1, 16), 0.5, np.float32)


@dataclass
class Answer:
    """How a call ended: a message, or a status with details; and its trailing metadata."""

    code: grpc.StatusCode
    details: str
    trailing: dict[str, str]
    message: Any = None

    @property
    def ok(self) -> bool:
        return self.code is grpc.StatusCode.OK


class GrpcServer(Server):
    """`serving_grpc` in a thread of its own."""

    def __init__(
        self,
        link: EchoLink,
        config: ServeConfig,
        grpc_config: GrpcConfig | None = None,
        gate: Gate | None = None,
    ) -> None:
        super().__init__(link, config)
        self._settings = config, grpc_config
        self._gate = gate

    async def _main(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.shutdown = asyncio.Event()
        config, grpc_config = self._settings
        client = EngineClient(self.link)
        async with serving_grpc(
            client, config, "127.0.0.1", 0, grpc_config=grpc_config, drain_limit_s=2, gate=self._gate
        ) as port:
            self._ready.put(port)
            await self.shutdown.wait()

    def start(self) -> None:
        super().start()
        unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.port}", unlimited)

    def stop(self) -> None:
        self.channel.close()
        super().stop()

    def begin(self, name: str, request: Any, **options: Any) -> Any:
        """Start a unary call; returns its future. A request that is bytes is sent as it is."""
        method = SERVICE.methods_by_name[name]
        ask = self.channel.unary_unary(
            f"/{SERVICE.full_name}/{name}",
            request_serializer=lambda sent: sent if isinstance(sent, bytes) else sent.SerializeToString(),
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        return ask.future(request, **{"timeout": 20, **options})

    def rpc(self, name: str, request: Any = None, **options: Any) -> Answer:
        """A unary call; without a request an empty one is sent."""
        empty = GetMessageClass(SERVICE.methods_by_name[name].input_type)()
        return ended(self.begin(name, empty if request is None else request, **options))

    def infer_raw(self, values: Any = ONES, **members: Any) -> Answer:
        """ModelInfer of `echo` with raw values."""
        return self.rpc("ModelInfer", raw_request(values, **members))

    def stream(self, requests: Iterable[Any] | Iterator[Any], **options: Any) -> Any:
        """ModelStreamInfer; returns the call, an iterator of answers."""
        ask = self.channel.stream_stream(
            f"/{SERVICE.full_name}/ModelStreamInfer",
            request_serializer=lambda sent: sent if isinstance(sent, bytes) else sent.SerializeToString(),
            response_deserializer=pb.ModelStreamInferResponse.FromString,
        )
        return ask(iter(requests), **{"timeout": 20, **options})


def ended(call: Any) -> Answer:
    """Wait for the end of a call."""
    message = None
    try:
        message = call.result()
    except grpc.RpcError:
        pass
    except grpc.FutureCancelledError:
        return Answer(grpc.StatusCode.CANCELLED, "", {})
    trailing = dict(call.trailing_metadata() or ())
    return Answer(call.code(), call.details() or "", trailing, message)


def raw_request(values: Any = ONES, *, name: str = "input", model: str = "echo", **members: Any) -> Any:
    """A request with one FP32 input, raw."""
    tensor = pb.ModelInferRequest.InferInputTensor(name=name, datatype="FP32", shape=values.shape)
    return pb.ModelInferRequest(
        model_name=model, inputs=[tensor], raw_input_contents=[values.tobytes()], **members
    )


def mirror(name: str, *inputs: TensorSpec, batched: bool = False, max_batch: int = 1) -> ModelMetadata:
    """A model whose outputs are its inputs: `x` comes back as `out_x`."""
    outputs = tuple(
        TensorSpec(name=f"out_{spec.name}", datatype=spec.datatype, shape=spec.shape, axes=spec.axes)
        for spec in inputs
    )
    return ModelMetadata(
        name=name,
        platform="p",
        versions=("1",),
        inputs=inputs,
        outputs=outputs,
        batched=batched,
        spec=ModelSpec(name=name, slo_ns=None, max_batch=max_batch),
    )


def vector(datatype: str, name: str = "x", **bounds: int) -> TensorSpec:
    """A tensor of any number of elements."""
    return TensorSpec(name=name, datatype=datatype, shape=(-1,), axes=(None,), **bounds)


def parameter(value: Any) -> Any:
    """A parameter of the field that fits the value's type."""
    kinds = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}
    return pb.InferParameter(**{kinds[type(value)]: value})

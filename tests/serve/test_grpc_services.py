"""Health, reflection and the stubs: what other tools than inference clients see."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_serving import SERVICE, GrpcServer, mirror, vector

from cotenant.serve.grpc import inference_pb2 as pb
from cotenant.testing import ECHO

ROOT = Path(__file__).resolve().parents[2]
Serve = Callable[..., GrpcServer]
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


def status(server: GrpcServer, service: str) -> int:
    stub = health_pb2_grpc.HealthStub(server.channel)
    return stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=20).status


# --- health -----------------------------------------------------------------------------------------


def test_health_is_told_of_the_server_and_of_each_model(serve_grpc: Serve) -> None:
    server = serve_grpc(None, ECHO, mirror("other", vector("FP32")))
    assert [status(server, name) for name in ("", SERVICE.full_name, "echo", "other")] == [SERVING] * 4
    with pytest.raises(grpc.RpcError) as caught:
        status(server, "nope")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    server.on_loop(lambda: server.link.unload("other", lambda _: None))
    assert [status(server, name) for name in ("", "echo", "other")] == [SERVING, SERVING, NOT_SERVING]
    server.link.draining = True
    assert [status(server, name) for name in ("", "echo")] == [NOT_SERVING] * 2


@pytest.mark.skipif(not hasattr(health_pb2, "HealthListRequest"), reason="the library's health has no List")
def test_health_lists_what_there_is(grpc_server: GrpcServer) -> None:
    stub = health_pb2_grpc.HealthStub(grpc_server.channel)
    listed = stub.List(health_pb2.HealthListRequest(), timeout=20)
    assert set(listed.statuses) == {"", SERVICE.full_name, "echo"}


def test_a_watch_tells_of_changes(serve_grpc: Serve) -> None:
    server = serve_grpc()
    stub = health_pb2_grpc.HealthStub(server.channel)
    watch = stub.Watch(health_pb2.HealthCheckRequest(service="echo"), timeout=20)
    assert next(watch).status == SERVING
    server.on_loop(lambda: server.link.unload("echo", lambda _: None))
    assert next(watch).status == NOT_SERVING
    server.on_loop(lambda: server.link.load("echo", lambda _: None))
    assert next(watch).status == SERVING
    watch.cancel()
    unknown = stub.Watch(health_pb2.HealthCheckRequest(service="nope"), timeout=20)
    assert next(unknown).status == UNKNOWN
    unknown.cancel()


# --- reflection -------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_describes_every_service(grpc_server: GrpcServer, version: str) -> None:
    ask = grpc_server.channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    (listed,) = ask(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=20)
    names = [service.name for service in listed.list_services_response.service]
    assert set(names) == {
        "inference.GRPCInferenceService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    asked = [reflection_pb2.ServerReflectionRequest(file_containing_symbol=name) for name in names]
    for name, answer in zip(names, ask(iter(asked), timeout=20), strict=True):
        (file,) = answer.file_descriptor_response.file_descriptor_proto
        described = FileDescriptorProto.FromString(file)
        assert name in {f"{described.package}.{service.name}" for service in described.service}


def test_a_client_without_stubs_can_find_the_methods(grpc_server: GrpcServer) -> None:
    found = ProtoReflectionDescriptorDatabase(grpc_server.channel)
    described = found.FindFileContainingSymbol("inference.ModelInferRequest")
    methods = {method.name for service in described.service for method in service.method}
    assert methods == {method.name for method in SERVICE.methods}


# --- stubs ------------------------------------------------------------------------------------------


def test_the_stubs_are_made_from_the_proto_as_it_is() -> None:
    spec = importlib.util.spec_from_file_location("generate_stubs", ROOT / "tools" / "generate_stubs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    generated = (module.FOLDER / "inference_pb2.py").read_text()
    assert f"# sha256 of inference.proto: {module.digest()}" in generated, (
        "run python tools/generate_stubs.py"
    )
    assert "Protobuf Python Version: 6." in generated


def test_the_stubs_leave_the_process_wide_pool_to_other_clients() -> None:
    assert pb.DESCRIPTOR.pool is not descriptor_pool.Default()
    with pytest.raises(KeyError):
        descriptor_pool.Default().FindMessageTypeByName("inference.ModelInferRequest")


def test_the_server_says_what_port_is_taken(grpc_server: GrpcServer) -> None:
    code = (
        "import asyncio\n"
        "from cotenant.engine_client import EngineClient\n"
        "from cotenant.serve.grpc.server import serving_grpc\n"
        "from cotenant.serve.settings import ServeConfig\n"
        "from cotenant.testing import EchoLink\n"
        "async def main():\n"
        "    client = EngineClient(EchoLink())\n"
        f"    async with serving_grpc(client, ServeConfig(), '127.0.0.1', {grpc_server.port}):\n"
        "        pass\n"
        "try: asyncio.run(main())\n"
        "except OSError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert f"cannot listen on 127.0.0.1:{grpc_server.port}" in done.stdout

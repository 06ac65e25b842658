"""The methods that do not infer: what is there, the model repository, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from grpc import StatusCode
from grpc_serving import GrpcServer, ended

from cotenant.serve.grpc import inference_pb2 as pb
from cotenant.serve.settings import ServeConfig

Serve = Callable[..., GrpcServer]


# --- what is there ----------------------------------------------------------------------------------


def test_the_server_is_live_and_ready_and_says_who_it_is(grpc_server: GrpcServer) -> None:
    assert grpc_server.rpc("ServerLive").message.live
    assert grpc_server.rpc("ServerReady").message.ready
    described = grpc_server.rpc("ServerMetadata").message
    assert described.name == "cotenant"
    assert described.version
    assert "statistics" in described.extensions
    assert "model_repository" not in described.extensions


@pytest.mark.parametrize(
    ("name", "version", "ready"),
    [("echo", "", True), ("echo", "1", True), ("echo", "2", False), ("x", "", False)],
)
def test_a_model_is_ready_or_not(grpc_server: GrpcServer, name: str, version: str, ready: bool) -> None:
    asked = pb.ModelReadyRequest(name=name, version=version)
    assert grpc_server.rpc("ModelReady", asked).message.ready is ready


def test_metadata_and_config_describe_the_same_model(grpc_server: GrpcServer) -> None:
    metadata = grpc_server.rpc("ModelMetadata", pb.ModelMetadataRequest(name="echo")).message
    assert (metadata.name, list(metadata.versions)) == ("echo", ["1"])
    (tensor,) = metadata.inputs
    assert (tensor.name, tensor.datatype, list(tensor.shape)) == ("input", "FP32", [-1, 16])
    assert json.loads(metadata.properties["max_batch"]) == 8
    config = grpc_server.rpc("ModelConfig", pb.ModelConfigRequest(name="echo")).message.config
    assert config.max_batch_size == 8
    assert config.input[0].data_type == pb.DataType.TYPE_FP32
    assert list(config.input[0].dims) == [16]
    assert list(config.dynamic_batching.preferred_batch_size) == [1, 2, 4, 8]
    assert list(config.version_policy.specific.versions) == [1]


def test_statistics_count_answers(serve_grpc: Serve) -> None:
    server = serve_grpc()
    server.infer_raw(np.ones((3, 16), np.float32))
    for asked in (pb.ModelStatisticsRequest(name="echo"), pb.ModelStatisticsRequest()):
        (stats,) = server.rpc("ModelStatistics", asked).message.model_stats
        assert (stats.name, stats.version) == ("echo", "1")
        assert stats.inference_count == 3
        assert stats.inference_stats.success.count == 1
        assert stats.last_inference > 0


@pytest.mark.parametrize("method", ["ModelMetadata", "ModelConfig", "ModelStatistics"])
def test_an_unknown_model_or_version_is_not_found(grpc_server: GrpcServer, method: str) -> None:
    request = getattr(pb, f"{method}Request")
    for asked in (request(name="nope"), request(name="echo", version="9")):
        answer = grpc_server.rpc(method, asked)
        assert answer.code is StatusCode.NOT_FOUND
        assert (asked.version or "nope") in answer.details


@pytest.mark.parametrize(
    "method",
    ["CudaSharedMemoryRegister", "TraceSetting", "LogSettings"],
)
def test_what_is_not_supported_says_so(grpc_server: GrpcServer, method: str) -> None:
    answer = grpc_server.rpc(method)
    assert answer.code is StatusCode.UNIMPLEMENTED
    assert "not supported" in answer.details


def test_every_method_of_the_protocol_is_served_and_refuses_what_is_no_message(
    grpc_server: GrpcServer,
) -> None:
    for method in pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods:
        if method.client_streaming:
            (answer,) = grpc_server.stream([b"\xff\xff"])
            assert "not a valid protobuf message" in answer.error_message
            continue
        answer = grpc_server.rpc(method.name, b"\xff\xff")
        assert answer.code is StatusCode.INVALID_ARGUMENT, method.name
        assert "not a valid protobuf message" in answer.details
    unknown = grpc_server.channel.unary_unary("/inference.GRPCInferenceService/Nope")
    assert ended(unknown.future(b"")).code is StatusCode.UNIMPLEMENTED


# --- model repository -------------------------------------------------------------------------------


def test_models_are_unloaded_and_loaded_where_that_is_allowed(serve_grpc: Serve) -> None:
    server = serve_grpc(ServeConfig(allow_model_control=True))
    assert "model_repository" in server.rpc("ServerMetadata").message.extensions
    assert server.rpc("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="echo")).ok
    (entry,) = server.rpc("RepositoryIndex").message.models
    assert (entry.name, entry.state) == ("echo", "UNAVAILABLE")
    assert not server.rpc("RepositoryIndex", pb.RepositoryIndexRequest(ready=True)).message.models
    answer = server.infer_raw()
    assert answer.code is StatusCode.UNAVAILABLE
    assert answer.trailing["retry-after-ms"]
    assert server.rpc("ServerReady").message.ready
    assert server.rpc("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="echo")).ok
    assert server.infer_raw().ok


def test_model_control_is_off_by_default(grpc_server: GrpcServer) -> None:
    asked = pb.RepositoryModelUnloadRequest(model_name="echo")
    assert grpc_server.rpc("RepositoryModelUnload", asked).code is StatusCode.PERMISSION_DENIED
    assert grpc_server.infer_raw().ok


@pytest.mark.parametrize(
    ("name", "parameters", "metadata", "code"),
    [
        ("nope", {}, {}, StatusCode.NOT_FOUND),
        ("echo", {"config": "{}"}, {}, StatusCode.INVALID_ARGUMENT),
        ("echo", {"file:1/model.onnx": "AAAA"}, {}, StatusCode.INVALID_ARGUMENT),
        ("echo", {}, {"origin": "http://evil.example"}, StatusCode.PERMISSION_DENIED),
    ],
)
def test_model_control_is_careful(
    serve_grpc: Serve, name: str, parameters: Any, metadata: Any, code: StatusCode
) -> None:
    server = serve_grpc(ServeConfig(allow_model_control=True))
    wanted = {key: pb.ModelRepositoryParameter(string_param=value) for key, value in parameters.items()}
    asked = pb.RepositoryModelLoadRequest(model_name=name, parameters=wanted)
    assert server.rpc("RepositoryModelLoad", asked, metadata=tuple(metadata.items())).code is code
    assert server.infer_raw().ok


# --- imports ----------------------------------------------------------------------------------------


def test_a_server_without_grpc_does_not_load_it() -> None:
    code = (
        "import sys, cotenant.cli, cotenant.host, cotenant.serve.http; "
        "print([name for name in sys.modules if 'grpc' in name])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

"""Several versions of a model over gRPC: the same as over HTTP."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_serving import GrpcServer, raw_request
from test_versions import echo

from cotenant.serve.grpc import inference_pb2 as pb
from cotenant.serve.settings import ServeConfig

Serve = Callable[..., GrpcServer]


@pytest.fixture
def versioned(serve_grpc: Serve) -> GrpcServer:
    return serve_grpc(ServeConfig(allow_model_control=True, repository=True), echo("2", 1 << 20), echo("10"))


@pytest.mark.parametrize(("asked", "answered"), [("", "10"), ("2", "2"), ("10", "10")])
def test_a_request_goes_to_its_version_and_without_one_to_the_latest(
    versioned: GrpcServer, asked: str, answered: str
) -> None:
    answer = versioned.rpc("ModelInfer", raw_request(model_version=asked)).message
    assert (answer.model_name, answer.model_version) == ("echo", answered)


def test_the_engines_own_names_are_unknown_to_clients(versioned: GrpcServer) -> None:
    assert versioned.rpc("ModelInfer", raw_request(model="echo@2")).code is StatusCode.NOT_FOUND
    load = pb.RepositoryModelLoadRequest(model_name="echo@2")
    assert versioned.rpc("RepositoryModelLoad", load).code is StatusCode.NOT_FOUND


def test_pages_show_one_model_with_its_versions(versioned: GrpcServer) -> None:
    described = versioned.rpc("ModelMetadata", pb.ModelMetadataRequest(name="echo", version="2")).message
    assert (described.name, list(described.versions)) == ("echo", ["2", "10"])
    config = versioned.rpc("ModelConfig", pb.ModelConfigRequest(name="echo")).message.config
    assert list(config.version_policy.specific.versions) == [2, 10]
    index = versioned.rpc("RepositoryIndex").message.models
    assert [(entry.name, entry.version) for entry in index] == [("echo", "2"), ("echo", "10")]


def test_statistics_are_kept_by_version(versioned: GrpcServer) -> None:
    versioned.rpc("ModelInfer", raw_request(model_version="2"))
    for asked, versions in (
        (pb.ModelStatisticsRequest(name="echo"), ["2", "10"]),
        (pb.ModelStatisticsRequest(), ["2", "10"]),
        (pb.ModelStatisticsRequest(name="echo", version="2"), ["2"]),
    ):
        found = versioned.rpc("ModelStatistics", asked).message.model_stats
        assert [(stats.name, stats.version) for stats in found] == [("echo", v) for v in versions]
        assert found[0].inference_count == 1
        assert [usage.byte_size for usage in found[0].memory_usage] == [1 << 20]


def test_a_model_is_healthy_when_one_of_its_versions_is(versioned: GrpcServer) -> None:
    stub = health_pb2_grpc.HealthStub(versioned.channel)

    def status() -> int:
        return stub.Check(health_pb2.HealthCheckRequest(service="echo"), timeout=20).status

    for unloaded, expected in (("echo@10", "SERVING"), ("echo@2", "NOT_SERVING")):
        versioned.on_loop(lambda name=unloaded: versioned.link.unload(name, lambda _: None))
        assert health_pb2.HealthCheckResponse.ServingStatus.Name(status()) == expected
    listed = stub.List(health_pb2.HealthListRequest(), timeout=20).statuses
    assert sorted(listed) == ["", "echo", "inference.GRPCInferenceService"]


def test_a_model_that_the_repository_lacks_is_not_found(versioned: GrpcServer) -> None:
    versioned.link.control_error = "unknown model 'nope': the repository has no folder of this name"
    load = pb.RepositoryModelLoadRequest(model_name="nope")
    answer = versioned.rpc("RepositoryModelLoad", load)
    assert (answer.code, answer.details) == (StatusCode.NOT_FOUND, versioned.link.control_error)

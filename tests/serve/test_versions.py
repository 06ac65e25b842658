"""Several versions of a model: each by its number, the latest without one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace
from serving import Server, echo_request

from cotenant.domain import ModelMetadata
from cotenant.serve.http import ServeConfig
from cotenant.testing import ECHO

Serve = Callable[..., Server]


def echo(version: str, memory_bytes: int | None = None) -> ModelMetadata:
    name = f"echo@{version}"
    spec = replace(ECHO.spec, name=name)
    return replace(ECHO, name=name, versions=(version,), spec=spec, memory_bytes=memory_bytes)


@pytest.fixture
def versioned(serve: Serve) -> Server:
    config = ServeConfig(allow_model_control=True, repository=True)
    return serve(config, echo("2", 1 << 20), echo("10"), replace(ECHO, name="plain"))


def infer(server: Server, version: str | None, **members: Any) -> Any:
    path = "/v2/models/echo" if version is None else f"/v2/models/echo/versions/{version}"
    return server.ask("POST", f"{path}/infer", echo_request(**members))


def test_a_request_goes_to_its_version_and_without_one_to_the_latest(versioned: Server) -> None:
    for asked, answered in ((None, "10"), ("2", "2"), ("10", "10")):
        answer = infer(versioned, asked, model_name="echo").json
        assert (answer["model_name"], answer["model_version"]) == ("echo", answered)
        assert versioned.link.calls[-1].model == f"echo@{answered}"


def test_a_version_that_is_not_there_is_404_and_the_others_are_named(versioned: Server) -> None:
    answer = infer(versioned, "3")
    assert answer.status == 404
    assert answer.error == "model 'echo' has no version '3'; it has 2, 10"


def test_a_version_that_is_not_loaded_is_503_and_the_rest_serve(versioned: Server) -> None:
    versioned.on_loop(lambda: versioned.link.unload("echo@10", lambda _: None))
    assert infer(versioned, "10").status == 503
    assert infer(versioned, None).json["model_version"] == "2"
    versioned.on_loop(lambda: versioned.link.unload("echo@2", lambda _: None))
    answer = infer(versioned, None)
    assert answer.status == 503
    assert "model 'echo' is unavailable" in answer.error


@pytest.mark.parametrize("path", ["echo@2", "echo@2/versions/2", "echo@10/ready", "echo@2/config"])
def test_the_engines_own_names_are_unknown_to_clients(versioned: Server, path: str) -> None:
    assert versioned.get(f"/v2/models/{path}").status == 404
    assert versioned.infer(model="echo@2").status == 404
    assert versioned.ask("POST", "/v2/repository/models/echo@2/load").status == 404


def test_pages_show_one_model_with_its_versions(versioned: Server) -> None:
    assert versioned.get("/v2/models").json == {"models": ["echo", "plain"]}
    for path in ("/v2/models/echo", "/v2/models/echo/versions/2"):
        described = versioned.get(path).json
        assert (described["name"], described["versions"]) == ("echo", ["2", "10"])
    config = versioned.get("/v2/models/echo/config").json
    assert (config["name"], config["version_policy"]) == ("echo", {"specific": {"versions": [2, 10]}})
    assert versioned.get("/v2/models/plain").json["versions"] == ["1"]
    assert versioned.get("/v2/models/echo/versions/2/ready").json == {"name": "echo", "ready": True}


def test_statistics_are_kept_by_version(versioned: Server) -> None:
    for version in ("2", "10", "10"):
        infer(versioned, version)

    def counts(path: str) -> dict[tuple[str, str], int]:
        return {
            (entry["name"], entry["version"]): entry["inference_count"]
            for entry in versioned.get(path).json["model_stats"]
        }

    both = {("echo", "2"): 1, ("echo", "10"): 2}
    assert counts("/v2/models/echo/stats") == both
    assert counts("/v2/models/echo/versions/2/stats") == {("echo", "2"): 1}
    assert counts("/v2/models/stats") == {**both, ("plain", "1"): 0}


def test_statistics_have_tritons_form(versioned: Server) -> None:
    infer(versioned, "2", rows=3)
    (entry,) = versioned.get("/v2/models/echo/versions/2/stats").json["model_stats"]
    assert entry["memory_usage"] == [{"type": "CPU", "id": 0, "byte_size": 1 << 20}]
    spans = {"success", "fail", "queue", "compute_input", "compute_infer", "compute_output"}
    assert set(entry["inference_stats"]) == spans | {"cache_hit", "cache_miss"}
    assert all(set(span) == {"count", "ns"} for span in entry["inference_stats"].values())
    (batch,) = entry["batch_stats"]
    assert set(batch) == {"batch_size", "compute_input", "compute_infer", "compute_output"}
    assert set(entry) == {
        "name",
        "version",
        "last_inference",
        "inference_count",
        "execution_count",
        "inference_stats",
        "batch_stats",
        "memory_usage",
    }
    (unknown,) = versioned.get("/v2/models/plain/stats").json["model_stats"]
    assert unknown["memory_usage"] == []


def test_the_index_lists_every_version(versioned: Server) -> None:
    index = versioned.ask("POST", "/v2/repository/index").json
    assert [(entry["name"], entry["version"], entry["state"]) for entry in index] == [
        ("echo", "2", "READY"),
        ("echo", "10", "READY"),
        ("plain", "1", "READY"),
    ]


def test_a_model_that_the_repository_lacks_is_404(versioned: Server) -> None:
    versioned.link.control_error = "unknown model 'nope': the repository has no folder of this name"
    answer = versioned.ask("POST", "/v2/repository/models/nope/load")
    assert (answer.status, answer.error) == (404, versioned.link.control_error)
    versioned.link.control_error = "the disk is gone"
    answer = versioned.ask("POST", "/v2/repository/models/nope/load")
    assert (answer.status, answer.error) == (400, "model 'nope' did not load: the disk is gone")


@pytest.mark.parametrize("parameters", [{"unload_dependents": 1}, {"force": True}])
def test_unknown_parameters_of_model_control_are_refused(versioned: Server, parameters: Any) -> None:
    (name,) = parameters
    for action in ("load", "unload"):
        path = f"/v2/repository/models/plain/{action}"
        answer = versioned.ask("POST", path, {"parameters": parameters})
        assert (answer.status, answer.error) == (400, f"parameters.{name}: unknown parameter")
    path = "/v2/repository/models/plain/unload"
    assert versioned.ask("POST", path, {"parameters": {"unload_dependents": True}}).status == 200

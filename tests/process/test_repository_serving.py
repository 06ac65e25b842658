"""A server with a model repository, whose engine is a process of its own or is not."""

from __future__ import annotations

import os
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from server_process import Process
from test_operating_grpc import grpc_address

from cotenant.serve.grpc import inference_pb2 as pb

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))
from scaled_models import write_model

Serve = Callable[..., Process]
Config = Callable[[str], Path]

REPOSITORY = '[device]\nlanes = 1\n[repository]\npath = "models"\nmode = "explicit"\npoll_s = 0.1\n'
LIMIT_S = 30.0
PROCESSES = pytest.mark.parametrize("flags", [(), ("--in-process",)], ids=["split", "in one process"])


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


def factor(server: Process, model: str) -> Any:
    """What the model multiplies by, or the status of the refusal."""
    status, answer = server.infer(model, x=[1.0, 1.0, 1.0, 1.0])
    return answer["outputs"][0]["data"][0] if status == 200 else status


def states(server: Process) -> dict[tuple[str, str], str]:
    """State of each version in the repository's index."""
    _, index = server.ask("/v2/repository/index", {})
    return {(entry["name"], entry.get("version", "")): entry["state"] for entry in index}


def until(condition: Callable[[], bool]) -> None:
    until_s = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < until_s, "not in time"
        time.sleep(0.05)


@PROCESSES
def test_models_are_loaded_and_unloaded_by_command(
    serve: Serve, config: Config, models: Path, flags: tuple[str, ...]
) -> None:
    write_model(models, "scaled", 1, 2.0)
    server = serve(config("[server]\ntriton_metrics = true\n" + REPOSITORY), *flags).ready()
    assert server.ask("/v2/models") == (200, {"models": []})
    until(lambda: states(server) == {("scaled", "1"): "UNAVAILABLE"})
    assert factor(server, "scaled") == 503
    assert server.ask("/v2/repository/models/scaled/load", {}) == (200, {})
    assert factor(server, "scaled") == 2
    write_model(models, "scaled", 2, 3.0)
    assert server.ask("/v2/repository/models/scaled/load", {}) == (200, {})
    assert factor(server, "scaled") == 3
    assert server.ask("/v2/models/scaled")[1]["versions"] == ["2"]
    until(lambda: states(server) == {("scaled", "1"): "UNAVAILABLE", ("scaled", "2"): "READY"})
    assert 'nv_inference_count{model="scaled",version="2"} 1' in server.ask("/metrics")[1]
    assert server.ask("/v2/repository/models/scaled/unload", {}) == (200, {})
    assert factor(server, "scaled") == 503
    status, told = server.ask("/v2/repository/models/other/load", {})
    assert (status, "unknown model 'other'" in told["error"]) == (404, True)


@PROCESSES
def test_a_server_follows_the_folder(
    serve: Serve, config: Config, models: Path, flags: tuple[str, ...]
) -> None:
    server = serve(config(REPOSITORY.replace("explicit", "poll")), *flags).ready()
    write_model(models, "scaled", 1, 2.0)
    until(lambda: factor(server, "scaled") == 2)
    write_model(models, "scaled", 2, 3.0)
    until(lambda: factor(server, "scaled") == 3)
    (models / "scaled").rename(models.parent / "elsewhere")
    until(lambda: factor(server, "scaled") == 404)
    assert server.ask("/v2/health/ready")[0] == 200


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="there is no /dev/shm here")
@PROCESSES
def test_tensors_come_from_shared_memory(serve: Serve, config: Config, flags: tuple[str, ...]) -> None:
    model = '[[model]]\nname = "echo"\nsource = "zoo:echo"\nmax_batch = 4\n'
    path = config("[server]\nshared_memory = true\n" + model)
    server = serve(path, "--grpc-port", "0", *flags).ready()
    values = np.arange(16, dtype=np.float32)
    shm = Path("/dev/shm") / f"test-{uuid.uuid4().hex}"
    shm.write_bytes(values.tobytes())
    try:
        region = {"key": shm.name, "byte_size": values.nbytes}
        assert server.ask("/v2/systemsharedmemory/region/r/register", region) == (200, {})
        place = {"shared_memory_region": "r", "shared_memory_byte_size": values.nbytes}
        tensor = {"name": "input", "datatype": "FP32", "shape": [1, 16], "parameters": place}
        status, answer = server.ask("/v2/models/echo/infer", {"inputs": [tensor]})
        with grpc.insecure_channel(grpc_address(server)) as channel:
            by_grpc = infer_shared(channel, values)
    finally:
        shm.unlink()
    assert (status, answer["outputs"][0]["data"]) == (200, values.tolist())
    assert by_grpc.raw_output_contents == [values.tobytes()]


def infer_shared(channel: grpc.Channel, values: Any) -> Any:
    """Ask over gRPC with the region that was registered over HTTP."""
    tensor = pb.ModelInferRequest.InferInputTensor(name="input", datatype="FP32", shape=[1, values.size])
    tensor.parameters["shared_memory_region"].string_param = "r"
    tensor.parameters["shared_memory_byte_size"].int64_param = values.nbytes
    method = channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer",
        request_serializer=pb.ModelInferRequest.SerializeToString,
        response_deserializer=pb.ModelInferResponse.FromString,
    )
    return method(pb.ModelInferRequest(model_name="echo", inputs=[tensor]), timeout=30)


def test_several_front_ends_share_no_regions(serve: Serve, config: Config) -> None:
    model = '[[model]]\nname = "echo"\nsource = "zoo:echo"\n'
    server = serve(config("[server]\nshared_memory = true\n" + model), "--http-workers", "2")
    assert server.ended() == 2
    assert "--http-workers above 1 does not go with shared_memory" in server.stderr


def test_a_model_of_the_repository_is_unavailable_while_a_lost_engine_starts_anew(
    serve: Serve, config: Config, models: Path
) -> None:
    write_model(models, "scaled", 1, 2.0)
    server = serve(config(REPOSITORY.replace("explicit", "poll"))).ready()
    assert factor(server, "scaled") == 2
    children = Path(f"/proc/{server.child.pid}/task/{server.child.pid}/children").read_text().split()
    (engine,) = [pid for pid in children if "engine_process" in Path(f"/proc/{pid}/cmdline").read_text()]
    os.kill(int(engine), 9)
    heard = set()
    until(lambda: heard.add(factor(server, "scaled")) or (503 in heard and factor(server, "scaled") == 2))
    assert heard <= {2, 503}

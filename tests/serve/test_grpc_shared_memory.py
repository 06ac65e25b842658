"""Classification and system shared memory over gRPC: the same as over HTTP, on the same regions."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from grpc import StatusCode
from grpc_serving import ONES, GrpcServer, mirror, parameter, raw_request, vector

from cotenant.serve.grpc import inference_pb2 as pb
from cotenant.serve.settings import ServeConfig
from cotenant.serve.shared_memory import FOLDER
from cotenant.testing import ECHO

Serve = Callable[..., GrpcServer]
Wanted = pb.ModelInferRequest.InferRequestedOutputTensor
VALUES = np.arange(32, dtype=np.float32).reshape(2, 16)

needs_shm = pytest.mark.skipif(not os.path.isdir(FOLDER), reason=f"there is no {FOLDER} here")


def wanted(name: str, **parameters: Any) -> Any:
    return Wanted(name=name, parameters={key: parameter(value) for key, value in parameters.items()})


# --- classification ---------------------------------------------------------------------------------


@pytest.mark.parametrize("raw", [True, False])
def test_the_highest_values_are_told_by_index(serve_grpc: Serve, raw: bool) -> None:
    output = wanted("output", classification=2, binary_data=raw)
    answer = serve_grpc().infer_raw(VALUES, outputs=[output]).message
    (entry,) = answer.outputs
    assert (entry.datatype, list(entry.shape)) == ("BYTES", [2, 2])
    expected = [b"15.000000:15", b"14.000000:14", b"31.000000:15", b"30.000000:14"]
    if raw:
        told = b"".join(len(text).to_bytes(4, "little") + text for text in expected)
        assert list(answer.raw_output_contents) == [told]
    else:
        assert list(entry.contents.bytes_contents) == expected


# --- shared memory ----------------------------------------------------------------------------------


@pytest.fixture
def shm() -> Iterator[Path]:
    """A file of shared memory with room for three times VALUES."""
    path = Path(FOLDER) / f"test-{uuid.uuid4().hex}"
    path.write_bytes(bytes(3 * VALUES.nbytes))
    yield path
    path.unlink(missing_ok=True)


@pytest.fixture
def sharing(serve_grpc: Serve) -> GrpcServer:
    pair = mirror("pair", vector("FP32", "a"), vector("INT64", "b"))
    return serve_grpc(ServeConfig(shared_memory=True, max_body_bytes=1 << 16), ECHO, pair)


def register(server: GrpcServer, shm: Path, name: str = "r", **members: Any) -> Any:
    whole = {"key": f"/{shm.name}", "byte_size": 3 * VALUES.nbytes, **members}
    return server.rpc("SystemSharedMemoryRegister", pb.SystemSharedMemoryRegisterRequest(name=name, **whole))


def place(offset: int = 0, n_bytes: int = VALUES.nbytes) -> dict[str, Any]:
    found = {
        "shared_memory_region": "r",
        "shared_memory_offset": offset,
        "shared_memory_byte_size": n_bytes,
    }
    return {name: parameter(value) for name, value in found.items()}


def shared_request(**members: Any) -> Any:
    tensor = pb.ModelInferRequest.InferInputTensor(
        name="input", datatype="FP32", shape=VALUES.shape, parameters=place()
    )
    return pb.ModelInferRequest(model_name="echo", inputs=[tensor], **members)


@needs_shm
def test_tensors_are_read_from_and_written_to_a_region(sharing: GrpcServer, shm: Path) -> None:
    shm.write_bytes(VALUES.tobytes() + bytes(2 * VALUES.nbytes))
    assert register(sharing, shm).ok
    output = Wanted(name="output", parameters=place(2 * VALUES.nbytes))
    answer = sharing.rpc("ModelInfer", shared_request(outputs=[output])).message
    (entry,) = answer.outputs
    assert list(answer.raw_output_contents) == [b""]
    assert dict(entry.parameters) == place(2 * VALUES.nbytes)
    assert shm.read_bytes() == VALUES.tobytes() + bytes(VALUES.nbytes) + VALUES.tobytes()


@needs_shm
def test_other_inputs_are_raw_or_typed_beside_one_in_shared_memory(sharing: GrpcServer, shm: Path) -> None:
    shm.write_bytes(VALUES.tobytes() + bytes(100))
    assert register(sharing, shm, byte_size=VALUES.nbytes).ok
    n = 2
    shared = pb.ModelInferRequest.InferInputTensor(
        name="a", datatype="FP32", shape=[n], parameters=place(4, 4 * n)
    )
    own = pb.ModelInferRequest.InferInputTensor(name="b", datatype="INT64", shape=[n])
    raw = pb.ModelInferRequest(
        model_name="pair", inputs=[shared, own], raw_input_contents=[np.array([7, 8]).tobytes()]
    )
    typed = pb.ModelInferRequest(model_name="pair", inputs=[shared, own])
    typed.inputs[1].contents.int64_contents.extend([7, 8])
    for asked in (raw, typed):
        answer = sharing.rpc("ModelInfer", asked).message
        a, b = answer.raw_output_contents
        assert np.frombuffer(a, np.float32).tolist() == [1, 2]
        assert np.frombuffer(b, np.int64).tolist() == [7, 8]


@needs_shm
def test_a_tensor_that_is_here_and_there_is_refused(sharing: GrpcServer, shm: Path) -> None:
    assert register(sharing, shm).ok
    raw = sharing.rpc("ModelInfer", shared_request(raw_input_contents=[VALUES.tobytes()]))
    assert raw.code is StatusCode.INVALID_ARGUMENT
    assert "has 1 entries for 0 inputs that are not in shared memory" in raw.details
    typed = shared_request()
    typed.inputs[0].contents.fp32_contents.extend([0.5] * 32)
    answer = sharing.rpc("ModelInfer", typed)
    assert answer.code is StatusCode.INVALID_ARGUMENT
    assert "shared_memory_region and data besides" in answer.details


@needs_shm
def test_regions_are_listed_and_unregistered(sharing: GrpcServer, shm: Path) -> None:
    assert register(sharing, shm, "a").ok
    assert register(sharing, shm, "b", offset=4, byte_size=8).ok
    regions = sharing.rpc("SystemSharedMemoryStatus").message.regions
    assert sorted(regions) == ["a", "b"]
    assert (regions["b"].key, regions["b"].offset, regions["b"].byte_size) == (f"/{shm.name}", 4, 8)
    one = pb.SystemSharedMemoryUnregisterRequest(name="a")
    assert sharing.rpc("SystemSharedMemoryUnregister", one).ok
    asked = pb.SystemSharedMemoryStatusRequest(name="a")
    assert sharing.rpc("SystemSharedMemoryStatus", asked).code is StatusCode.INVALID_ARGUMENT
    assert sharing.rpc("SystemSharedMemoryUnregister").ok
    assert not sharing.rpc("SystemSharedMemoryStatus").message.regions


@needs_shm
def test_what_cannot_be_registered_is_refused(sharing: GrpcServer, shm: Path) -> None:
    for members in ({"key": "../etc/passwd"}, {"byte_size": 0}, {"byte_size": 2**63}, {"offset": 2**63}):
        assert register(sharing, shm, **members).code is StatusCode.INVALID_ARGUMENT, members
    web = (("origin", "http://evil.example"),)
    asked = pb.SystemSharedMemoryRegisterRequest(name="r", key=shm.name, byte_size=4)
    answer = sharing.rpc("SystemSharedMemoryRegister", asked, metadata=web)
    assert answer.code is StatusCode.PERMISSION_DENIED
    assert not sharing.rpc("SystemSharedMemoryStatus").message.regions


def test_there_are_no_cuda_regions_to_list_or_to_unregister(grpc_server: GrpcServer) -> None:
    assert not grpc_server.rpc("CudaSharedMemoryStatus").message.regions
    assert grpc_server.rpc("CudaSharedMemoryUnregister").ok
    asked = pb.CudaSharedMemoryStatusRequest(name="r")
    assert grpc_server.rpc("CudaSharedMemoryStatus", asked).code is StatusCode.INVALID_ARGUMENT


def test_shared_memory_is_off_by_default(grpc_server: GrpcServer) -> None:
    for method in ("Status", "Register", "Unregister"):
        answer = grpc_server.rpc(f"SystemSharedMemory{method}")
        assert answer.code is StatusCode.PERMISSION_DENIED
        assert "turned off" in answer.details
    refused = grpc_server.rpc("ModelInfer", shared_request())
    assert refused.code is StatusCode.INVALID_ARGUMENT
    assert "turned off" in refused.details
    assert "system_shared_memory" not in grpc_server.rpc("ServerMetadata").message.extensions
    assert grpc_server.rpc("ModelInfer", raw_request(ONES)).ok

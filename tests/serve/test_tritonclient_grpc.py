"""The stock `tritonclient[grpc]`, unmodified and in an environment of its own, works against the server; its
stubs and ours mean the same by every name and number."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto
from grpc_serving import GrpcServer, mirror, vector
from tool_environment import ROOT, tool_python

from cotenant.serve.grpc import inference_pb2 as pb
from cotenant.serve.settings import ServeConfig
from cotenant.testing import ECHO

REQUIREMENTS = ROOT / "requirements" / "tritonclient.txt"
CHECK = Path(__file__).with_name("triton_grpc_check.py")
OURS_ONLY = {("ModelMetadataResponse", 6)}
"""Fields of the Open Inference Protocol that Triton's stubs lack."""
DESCRIBE = """
import json
from tritonclient.grpc import model_config_pb2, service_pb2
print(json.dumps([m.DESCRIPTOR.serialized_pb.hex() for m in (model_config_pb2, service_pb2)]))
"""
BESIDE = """
import importlib.util, sys
import google.protobuf
from tritonclient.grpc import service_pb2 as theirs
spec = importlib.util.spec_from_file_location("inference_pb2", sys.argv[1])
ours = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ours)
for one, other in ((ours, theirs), (theirs, ours)):
    sent = one.ModelInferRequest(model_name="m", raw_input_contents=[b"ab"])
    sent.inputs.add(name="x", shape=[1]).parameters["p"].int64_param = -1
    got = other.ModelInferRequest.FromString(sent.SerializeToString())
    assert (got.model_name, got.inputs[0].parameters["p"].int64_param) == ("m", -1)
    assert got.SerializeToString() == sent.SerializeToString()
print(google.protobuf.__version__)
"""


@pytest.fixture(scope="module")
def client_python() -> Path:
    return tool_python("triton", REQUIREMENTS, "COTENANT_REQUIRE_TRITONCLIENT")


def test_the_stock_tritonclient_works_unmodified(
    client_python: Path, serve_grpc: Callable[..., GrpcServer]
) -> None:
    config = ServeConfig(allow_model_control=True, shared_memory=True)
    server = serve_grpc(config, ECHO, mirror("strings", vector("BYTES")))
    done = subprocess.run(
        [str(client_python), str(CHECK), f"127.0.0.1:{server.port}"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("all ")


def test_names_and_numbers_are_those_of_tritons_stubs(client_python: Path) -> None:
    done = subprocess.run(
        [str(client_python), "-c", DESCRIBE], capture_output=True, text=True, timeout=60, check=True
    )
    theirs = [FileDescriptorProto.FromString(bytes.fromhex(text)) for text in json.loads(done.stdout)]
    ours = FileDescriptorProto.FromString(pb.DESCRIPTOR.serialized_pb)
    known: dict[str, Any] = {m.name: m for file in theirs for m in file.message_type}
    for message in ours.message_type:
        same(message, known[message.name], message.name)
    enums = {enum.name: enum for file in theirs for enum in file.enum_type}
    for enum in ours.enum_type:
        assert {(v.name, v.number) for v in enum.value} == {
            (v.name, v.number) for v in enums[enum.name].value
        }
    (their_service,) = [service for file in theirs for service in file.service]
    (our_service,) = ours.service
    assert our_service.name == their_service.name
    parts = ("name", "input_type", "output_type", "client_streaming", "server_streaming")
    assert {tuple(getattr(method, part) for part in parts) for method in our_service.method} == {
        tuple(getattr(method, part) for part in parts) for method in their_service.method
    }


def test_our_stubs_run_with_protobuf_6_and_beside_tritons_in_one_process(client_python: Path) -> None:
    done = subprocess.run(
        [str(client_python), "-W", "error", "-c", BESIDE, pb.__file__],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("6.")


def same(ours: DescriptorProto, theirs: DescriptorProto, path: str) -> None:
    """Every field of ours is theirs too, and every message in ours."""
    numbers = {field.number: field for field in theirs.field}
    for field in ours.field:
        if (path, field.number) in OURS_ONLY:
            assert field.number not in numbers
            continue
        other = numbers[field.number]
        what = ("name", "type", "type_name", "label")
        mine, yours = ([getattr(f, name) for name in what] for f in (field, other))
        assert mine == yours, f"{path}: {mine}, but {yours}"
    nested = {message.name: message for message in theirs.nested_type}
    for message in ours.nested_type:
        if (path, 6) not in OURS_ONLY or message.name != "PropertiesEntry":
            same(message, nested[message.name], f"{path}.{message.name}")

"""Tensors over gRPC: every datatype raw and typed, what does not add up, and anything at all."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from grpc import StatusCode
from grpc_serving import Answer, GrpcServer, mirror, parameter, raw_request, vector
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cotenant.serve.grpc import inference_pb2 as pb
from cotenant.serve.grpc.reading import CONTENTS
from cotenant.serve.grpc.wire import MAX_PARTS, MAX_VARINT_BYTES, SMALL_BYTES
from cotenant.serve.settings import ServeConfig
from cotenant.serve.tensors import DTYPES, to_bytes
from cotenant.testing import ECHO, EchoLink

Input = pb.ModelInferRequest.InferInputTensor
Wanted = pb.ModelInferRequest.InferRequestedOutputTensor
MODELS = [mirror(datatype.lower(), vector(datatype)) for datatype in DTYPES]
PAIR = mirror("pair", vector("FP32", "a"), vector("INT64", "b"))
BOUNDED = mirror("bounded", vector("INT16", low=-5, high=10))
LIMIT = 8 << 20


@pytest.fixture(scope="module")
def server() -> Iterator[GrpcServer]:
    """Serves a model per datatype, whose output is its input, and two more."""
    link = EchoLink(ECHO, PAIR, BOUNDED, *MODELS)
    shared = GrpcServer(link, ServeConfig(max_body_bytes=LIMIT))
    shared.start()
    yield shared
    shared.stop()


def request(datatype: str, n: int, *, typed: Any = None, raw: bytes | None = None, **members: Any) -> Any:
    """A request to the model of a datatype, with `n` elements, typed or raw or both or neither."""
    tensor = Input(name="x", datatype=datatype, shape=[n])
    if typed is not None:
        getattr(tensor.contents, CONTENTS[datatype]).extend(typed)
    return pb.ModelInferRequest(
        model_name=datatype.lower(),
        inputs=[tensor],
        raw_input_contents=[] if raw is None else [raw],
        **members,
    )


def elements(datatype: str, n: int) -> Any:
    """`n` elements of a datatype, its extremes among them."""
    if datatype == "BYTES":
        return np.array([b"", b"\xff\x00", "ü".encode(), b"x" * 300][:n], object)
    dtype = DTYPES[datatype]
    if datatype == "BOOL":
        return np.array([True, False, True, True][:n])
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return np.array([limits.min, limits.max, 0, 1][:n], dtype)
    return np.array([1.5, -2.0, 0.0, np.inf][:n], dtype)


def contents(answer: Answer, datatype: str) -> list[Any]:
    return list(getattr(answer.message.outputs[0].contents, CONTENTS[datatype]))


AS_TYPED = {"parameters": {"binary_data_output": parameter(False)}}


@pytest.mark.parametrize("datatype", sorted(DTYPES))
def test_raw_values_of_every_datatype_come_back_as_they_were(server: GrpcServer, datatype: str) -> None:
    values = elements(datatype, 4)
    answer = server.rpc("ModelInfer", request(datatype, 4, raw=to_bytes(values)))
    assert answer.ok, answer.details
    (output,) = answer.message.outputs
    assert (output.datatype, list(output.shape)) == (datatype, [4])
    assert not output.HasField("contents")
    assert answer.message.raw_output_contents == [to_bytes(values)]


@pytest.mark.parametrize("datatype", sorted(CONTENTS))
def test_typed_values_of_every_datatype_come_back_raw_or_typed(server: GrpcServer, datatype: str) -> None:
    values = elements(datatype, 4)
    raw = server.rpc("ModelInfer", request(datatype, 4, typed=values.tolist()))
    assert raw.ok, raw.details
    assert raw.message.raw_output_contents == [to_bytes(values)]
    typed = server.rpc("ModelInfer", request(datatype, 4, typed=values.tolist(), **AS_TYPED))
    assert not typed.message.raw_output_contents
    assert contents(typed, datatype) == values.tolist()


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_precision_travels_raw_only(server: GrpcServer, datatype: str) -> None:
    tensor = Input(name="x", datatype=datatype, shape=[1], contents=pb.InferTensorContents(fp32_contents=[1]))
    answer = server.rpc("ModelInfer", pb.ModelInferRequest(model_name=datatype.lower(), inputs=[tensor]))
    assert answer.code is StatusCode.INVALID_ARGUMENT
    assert "raw_input_contents" in answer.details
    wanted = server.rpc("ModelInfer", request(datatype, 1, raw=b"\0\0", **AS_TYPED))
    assert wanted.code is StatusCode.INVALID_ARGUMENT
    assert datatype in wanted.details


def test_several_inputs_raw_and_outputs_that_are_chosen(server: GrpcServer) -> None:
    a, b = np.array([1, 2], np.float32), np.array([7, 8, 9], np.int64)
    inputs = [Input(name="b", datatype="INT64", shape=[3]), Input(name="a", datatype="FP32", shape=[2])]
    asked = pb.ModelInferRequest(
        model_name="pair", inputs=inputs, raw_input_contents=[b.tobytes(), a.tobytes()]
    )
    both = server.rpc("ModelInfer", asked).message
    assert [output.name for output in both.outputs] == ["out_a", "out_b"]
    assert both.raw_output_contents == [a.tobytes(), b.tobytes()]
    asked.outputs.add(name="out_b").parameters["binary_data"].bool_param = False
    one = server.rpc("ModelInfer", asked).message
    assert [list(output.contents.int64_contents) for output in one.outputs] == [[7, 8, 9]]
    asked.outputs.add(name="out_a")
    mixed = server.rpc("ModelInfer", asked)
    assert mixed.code is StatusCode.INVALID_ARGUMENT
    assert "binary_data" in mixed.details
    assert server.link.calls[-1].inputs["b"].tolist() == [7, 8, 9]


def test_large_values_are_converted_in_pieces_and_come_back(server: GrpcServer) -> None:
    n = 50_000
    numbers = np.random.default_rng(0).normal(size=n).astype(np.float32)
    typed = server.rpc("ModelInfer", request("FP32", n, typed=numbers.tolist(), **AS_TYPED))
    assert np.array_equal(np.array(contents(typed, "FP32"), np.float32), numbers)
    strings = [b"%d" % k * 10 for k in range(5_000)]
    answer = server.rpc("ModelInfer", request("BYTES", len(strings), typed=strings, **AS_TYPED))
    assert contents(answer, "BYTES") == strings


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        (request("FP32", 2), "contents has 0 elements"),
        (request("FP32", 2, typed=[1.0]), "contents has 1 elements, but shape [2] needs 2"),
        (request("FP32", 2, raw=b"\0" * 7), "7 bytes of binary data"),
        (request("FP32", 2, raw=b""), "0 bytes of binary data"),
        (request("FP32", 2, raw=b"\0" * 9), "9 bytes of binary data"),
        (request("FP32", 2, typed=[1.0, 2.0], raw=b"\0" * 8), "has contents besides raw_input_contents"),
        (request("BOOL", 2, raw=b"\0\2"), "BOOL bytes must be 0 or 1"),
        (request("INT8", 2, typed=[1, 128]), "element 1 is 128, expected -128 to 127"),
        (request("UINT8", 1, typed=[256]), "element 0 is 256"),
        (request("UINT16", 1, typed=[65536]), "element 0 is 65536"),
        (request("INT16", 1, typed=[-32769]), "element 0 is -32769"),
        (request("BYTES", 1, raw=b"\5\0\0\0abc"), "ends beyond the binary data"),
        (request("BYTES", 1, raw=b"\0\0\0"), "cannot hold the 1 BYTES elements"),
        (request("BYTES", 1, raw=b"\0\0\0\0\0"), "1 bytes follow"),
        (request("BYTES", 2, typed=[b""]), "contents has 1 elements"),
        (request("FP32", 0, raw=b""), "must be at least 1"),
        (request("FP32", 2**40, raw=b""), "beyond 2147483647"),
        (request("FP32", -1, raw=b""), "must be at least 1"),
        (pb.ModelInferRequest(model_name="pair"), "missing 'a', 'b'"),
        (raw_request(model="pair", name="a", values=np.zeros(1, np.float32)), "missing 'b'"),
        (raw_request(model="pair", name="c", values=np.zeros(1, np.float32)), "no such input"),
        (raw_request(values=np.zeros((9, 16), np.float32)), "takes at most 8 (max_batch)"),
        (raw_request(values=np.zeros((1, 15), np.float32)), "dimension 1 must be 16"),
        (raw_request(outputs=[Wanted(name="nope")]), "no such output"),
        (raw_request(outputs=[Wanted(name="output")] * 2), "given twice"),
        (raw_request(model="fp64", name="x"), "datatype is 'FP32'; expected 'FP64'"),
    ],
)  # fmt: skip
def test_what_does_not_add_up_is_refused_with_its_field(
    server: GrpcServer, wrong: Any, complaint: str
) -> None:
    answer = server.rpc("ModelInfer", wrong)
    assert answer.code is StatusCode.INVALID_ARGUMENT
    assert complaint in answer.details


def test_raw_values_must_be_one_per_input(server: GrpcServer) -> None:
    asked = request("FP32", 1, raw=b"\0" * 4)
    asked.raw_input_contents.append(b"")
    answer = server.rpc("ModelInfer", asked)
    assert answer.code is StatusCode.INVALID_ARGUMENT
    assert "2 entries for 1 inputs" in answer.details


def test_contents_of_another_datatype_are_refused(server: GrpcServer) -> None:
    asked = request("INT64", 1, typed=[1])
    asked.inputs[0].contents.fp32_contents.append(1)
    answer = server.rpc("ModelInfer", asked)
    assert answer.code is StatusCode.INVALID_ARGUMENT
    assert "fp32_contents" in answer.details


def test_typed_integers_are_checked_against_the_models_range(server: GrpcServer) -> None:
    def asked(*values: int) -> Answer:
        sent = request("INT16", len(values), typed=values)
        sent.model_name = "bounded"
        return server.rpc("ModelInfer", sent)

    assert asked(-5, 9).ok
    assert "element 1 is 10, expected -5 to 9" in asked(9, 10).details


def test_an_input_that_asks_for_shared_memory_is_refused(server: GrpcServer) -> None:
    asked = request("FP32", 1, raw=b"\0" * 4)
    asked.inputs[0].parameters["shared_memory_region"].string_param = "region"
    answer = server.rpc("ModelInfer", asked)
    assert answer.code is StatusCode.INVALID_ARGUMENT
    assert "shared_memory_region" in answer.details


# --- sizes ------------------------------------------------------------------------------------------


def test_an_answer_above_the_limit_is_refused(server: GrpcServer) -> None:
    n = LIMIT // 5  # 4 bytes raw in, 8 as packed INT64 of many digits out
    values = np.full(n, -1, np.int64)
    asked = request("INT64", LIMIT // 8 - 100, raw=values[: LIMIT // 8 - 100].tobytes(), **AS_TYPED)
    answer = server.rpc("ModelInfer", asked)
    assert answer.code is StatusCode.RESOURCE_EXHAUSTED
    assert "the answer has" in answer.details


@pytest.mark.parametrize(
    "part",
    [
        pytest.param(b"\x2a\x00", id="inputs"),
        pytest.param(b"\x32\x00", id="outputs"),
        pytest.param(b"\x3a\x00", id="raw values"),
        pytest.param(b"\x22\x00", id="parameters"),
        pytest.param(b"\x08\x00", id="unknown"),
        pytest.param(b"\xa0\x7f\x00", id="unknown, of two bytes"),
        pytest.param(b"\x2a\x04\x22\x00\x22\x00", id="parameters of inputs"),
        pytest.param(b"\x2a\x06\x2a\x04\x42\x00\x42\x00", id="strings"),
    ],
)
def test_a_mass_of_tiny_parts_is_refused_before_it_is_parsed(server: GrpcServer, part: bytes) -> None:
    answer = server.rpc("ModelInfer", part * (LIMIT // 2 // len(part)))
    assert answer.code is StatusCode.RESOURCE_EXHAUSTED
    assert f"more than {MAX_PARTS} parts" in answer.details


def test_typed_integers_that_take_long_to_parse_are_refused(server: GrpcServer) -> None:
    most = request("UINT8", MAX_VARINT_BYTES, typed=bytes(MAX_VARINT_BYTES))
    assert server.rpc("ModelInfer", most).code is StatusCode.RESOURCE_EXHAUSTED
    n = MAX_VARINT_BYTES - 1000  # beside them the shape has varints too
    assert server.rpc("ModelInfer", request("UINT8", n, typed=bytes(n))).ok


@pytest.mark.parametrize("tail", [b"\x3b", b"\x3a\x05abc", b"\x0d\0", b"\x09\0", b"\xff" * 11, b"\x80"])
def test_a_large_message_that_is_cut_off_is_refused(server: GrpcServer, tail: bytes) -> None:
    asked = request("BYTES", 1, raw=bytes(SMALL_BYTES)).SerializeToString()
    answer = server.rpc("ModelInfer", asked + tail)
    assert answer.code is StatusCode.INVALID_ARGUMENT
    assert "not a valid protobuf message" in answer.details


# --- anything at all --------------------------------------------------------------------------------


def arrays(datatype: str) -> st.SearchStrategy[Any]:
    shape = st.integers(1, 40)
    if datatype == "BYTES":
        return hnp.arrays(object, shape, elements=st.binary(max_size=6))
    if datatype == "BF16":
        return hnp.arrays(np.uint16, shape).map(lambda array: array.view(ml_dtypes.bfloat16))
    return hnp.arrays(DTYPES[datatype], shape)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), datatype=st.sampled_from(sorted(DTYPES)))
def test_raw_values_survive_the_round_trip_bit_for_bit(
    server: GrpcServer, data: st.DataObject, datatype: str
) -> None:
    values = data.draw(arrays(datatype))
    answer = server.rpc("ModelInfer", request(datatype, len(values), raw=to_bytes(values)))
    assert answer.message.raw_output_contents == [to_bytes(values)]


VALID = raw_request(
    np.ones((2, 16), np.float32),
    id="x",
    parameters={"timeout": parameter(10**6)},
    outputs=[Wanted(name="output")],
).SerializeToString()


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """The valid request with a few stretches replaced."""
    body = VALID
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(body)))
        end = min(len(body), start + draw(st.integers(0, 12)))
        inserts = st.sampled_from(
            [b"\xff" * 10, b"\x80" * 20, b"\x2a\x00", b"\x3a\x00", struct.pack("<f", 1), VALID]
        )
        body = body[:start] + draw(st.binary(max_size=6) | inserts) + body[end:]
    return body


@settings(max_examples=300, deadline=None)
@given(body=st.binary(max_size=200) | mutated())
def test_no_bytes_give_anything_but_an_answer_or_a_clear_refusal(server: GrpcServer, body: bytes) -> None:
    answer = server.rpc("ModelInfer", body)
    assert answer.code in (StatusCode.OK, StatusCode.INVALID_ARGUMENT, StatusCode.NOT_FOUND)
    assert answer.ok or answer.details
    assert server.infer_raw().ok

"""V2 requests are validated against the model, whatever form they come in, and answers are encoded."""

from __future__ import annotations

import json
import math
import struct
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cotenant.domain import ModelMetadata, ModelSpec, TensorSpec
from cotenant.serve.codec import ModelCodec
from cotenant.serve.errors import BadRequest
from cotenant.serve.oip import Wanted
from cotenant.serve.tensors import DTYPES, PIECE_BYTES
from cotenant.testing import ECHO


def model(*inputs: TensorSpec, batched: bool = True, max_batch: int = 8, buckets: Any = ()) -> ModelCodec:
    """A model whose outputs mirror its inputs: `x` comes back as `out_x`."""
    outputs = tuple(
        TensorSpec(name=f"out_{spec.name}", datatype=spec.datatype, shape=spec.shape, axes=spec.axes)
        for spec in inputs
    )
    return ModelCodec(
        ModelMetadata(
            name="m",
            platform="p",
            versions=("1",),
            inputs=inputs,
            outputs=outputs,
            batched=batched,
            spec=ModelSpec(name="m", slo_ns=None, max_batch=max_batch, axis_buckets=buckets),
        )
    )


def tensor(name: str, datatype: str, shape: tuple[int, ...], axes: Any = None, **bounds: int) -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=shape, axes=axes or (None,) * len(shape), **bounds)


BERT = model(
    tensor("ids", "INT64", (-1, -1), ("batch", "seq"), low=0, high=100),
    tensor("mask", "INT64", (-1, -1), ("batch", "seq")),
    buckets=(("seq", (4, 8)),),
)


def entry(name: str = "input", shape: Any = (1, 16), datatype: str = "FP32", **more: Any) -> dict[str, Any]:
    if "data" not in more and "parameters" not in more:
        more["data"] = [0] * math.prod(shape)
    return {"name": name, "shape": list(shape), "datatype": datatype, **more}


def dumps(*inputs: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"inputs": inputs, **more}).encode()


def with_tail(head: bytes, tail: bytes) -> tuple[bytes, int]:
    return head + tail, len(head)


def refused(codec: ModelCodec, body: bytes, json_bytes: int | None = None) -> str:
    with pytest.raises(BadRequest) as caught:
        codec.decode(body, json_bytes)
    assert caught.value.status == 400
    return caught.value.message


def test_flat_and_nested_json_give_the_same_array() -> None:
    values = [[float(16 * row + column) for column in range(16)] for row in range(2)]
    nested = ModelCodec(ECHO).decode(dumps(entry(shape=(2, 16), data=values)), None)
    flat = ModelCodec(ECHO).decode(dumps(entry(shape=(2, 16), data=[*values[0], *values[1]])), None)
    assert nested.rows == flat.rows == 2
    assert np.array_equal(nested.inputs["input"], np.array(values, np.float32))
    assert np.array_equal(nested.inputs["input"], flat.inputs["input"])


def test_axes_are_the_smallest_buckets_that_hold_the_request() -> None:
    inference = BERT.decode(
        dumps(entry("ids", (2, 5), "INT64"), entry("mask", (2, 5), "INT64", data=[1] * 10)), None
    )
    assert inference.rows == 2
    assert inference.axes == (("seq", 8),)
    assert inference.inputs["ids"].shape == (2, 5)


def test_a_model_without_a_batch_dimension_has_one_row() -> None:
    codec = model(tensor("x", "FP32", (3, -1), (None, "n")), batched=False, max_batch=1)
    assert codec.decode(dumps(entry("x", (3, 7))), None).rows == 1


def test_large_json_in_pieces_equals_small_json_at_once() -> None:
    n = 3 * PIECE_BYTES // 16
    codec = model(tensor("x", "FP64", (-1, n, 2)))
    values = np.random.default_rng(0).normal(size=(1, n, 2))
    for data in (values.tolist(), values.reshape(-1).tolist()):
        array = codec.decode(dumps(entry("x", (1, n, 2), "FP64", data=data)), None).inputs["x"]
        assert np.array_equal(array, values)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda text: text.replace(b"[[", b"[", 1).replace(b"]]", b"]", 1), "nested"),
        (lambda text: text.replace(b", 7.5", b"", 1), "elements, but shape"),
        (lambda text: text.replace(b"7.5]", b"true]", 1), "expected float, got bool"),
        (lambda text: text.replace(b"7.5]", b"null]", 1), "expected float, got null"),
        (lambda text: text.replace(b"7.5]", b"7 5]", 1), "malformed"),
        (lambda text: text.replace(b"7.5]", b'"a"]', 1), "expected float, got str"),
        (lambda text: text.replace(b"7.5]", b"1e39]", 1), "<= 3.4028235e+38"),
    ],
)
def test_faults_in_large_json_are_found(change: Any, complaint: str) -> None:
    n = PIECE_BYTES // 4
    codec = model(tensor("x", "FP32", (-1, 2, n)))
    text = dumps(entry("x", (1, 2, n), data=[[[7.5] * n] * 2]))
    assert codec.decode(text, None).rows == 1
    assert complaint in refused(codec, change(text))


WRONG_ENTRIES: list[tuple[dict[str, Any], str]] = [
    (entry(shape=(1, 15)), "inputs[0] 'input': shape [1, 15] does not fit [-1, 16]: dimension 1 must be 16"),
    (entry(shape=(16,)), "shape [16] does not fit [-1, 16]: expected 2 dimensions"),
    (entry(shape=(-1, 16), data=[0] * 16), "dimension 0 must be at least 1"),
    (entry(shape=(0, 16), data=[]), "dimension 0 must be at least 1"),
    (entry(shape=(2**70, 16), data=[0]), "shape has a dimension beyond 2147483647"),
    (entry(shape=(-(2**70), 16), data=[0]), "shape has a dimension beyond 2147483647"),
    (entry(shape=(10**4000, 16), data=[0]), "shape has a dimension beyond 2147483647"),
    (entry(shape=(2**31 - 1, 16), data=[0]), "2147483647 rows"),
    (entry(shape=[1] * 5000, data=[0]), "shape 5000 dimensions does not fit"),
    (entry(shape=(1.5, 16), data=[0]), "inputs[0].shape[0]: expected int, got float"),
    (entry(shape=(1, 16), data=[0] * 15), "data has 15 elements, but shape [1, 16] needs 16"),
    (entry(shape=(2, 16), data=[[0] * 16, [0] * 15]), "rows of unequal length"),
    (entry(shape=(2, 16), data=[[0] * 15, [0] * 15]), "nested as [2, 15], but shape is [2, 16]"),
    (entry(data=[[0] * 15 + ["1"]]), "inputs[0] 'input': data[0][15]: expected float, got str"),
    (entry(data=[0] * 15 + [None]), "data[15]: expected float, got null"),
    (entry(data=[0] * 15 + [True]), "data[15]: expected float, got bool"),
    (entry(data=[0] * 15 + [1e39]), "data[15]: expected float <= 3.4028235e+38"),
    (entry(data=[[[0] * 16]]), "data[0][0]: expected float, got array"),
    (entry(data="text"), "expected array, got str"),
    (entry(data={"a": 1}), "expected array, got object"),
    (entry(shape=(9, 16)), "9 rows, but model 'echo' takes at most 8"),
    (entry(datatype="FP64"), "datatype is 'FP64'; expected 'FP32'"),
    (entry(datatype="FLOAT"), "datatype is 'FLOAT', which is no V2 datatype; expected 'FP32'"),
    (entry("inptu"), "inputs[0] 'inptu': model 'echo' has no such input; expected 'input'"),
    (entry(parameters={"binary_data_size": 64}), "Inference-Header-Content-Length"),
    (entry(parameters={}), "neither data nor parameters.binary_data_size"),
    (entry(parameters={"shared_memory_region": "r"}), "shared_memory_region: shared memory is turned off"),
    (entry(parameters={"content_type": "np"}, data=[0] * 16), "parameters.content_type: unknown parameter"),
    (entry(dtype="FP32"), "inputs[0]: object contains unknown field dtype"),
    (entry(parameters=3, data=[0] * 16), "inputs[0].parameters: expected object"),
    (entry(name=3), "inputs[0].name: expected str, got int"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("wrong", "complaint"), WRONG_ENTRIES)
def test_a_wrong_input_is_refused_with_its_field(wrong: dict[str, Any], complaint: str) -> None:
    assert complaint in refused(ModelCodec(ECHO), dumps(wrong))


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b"", "truncated"),
        (b"{", "truncated"),
        (b'{"inputs": [1,]}', "inputs[0]"),
        (b'{"inputs": []} x', "malformed: trailing characters (byte 16)"),
        (b"[]", "expected object, got array"),
        (b"null", "expected object"),
        (b"{}", "required field inputs"),
        (b'{"inputs": {}}', "inputs: expected array"),
        (b'{"inputs": []}', "inputs: missing 'input'"),
        (b'{"inputs": [], "id": 3}', "id: expected str"),
        (b'{"inputs": [], "parameters": []}', "parameters: expected object"),
        (b'\xff\xfe{"inputs": []}', "malformed"),
        (b'{"inputs": [], "parameters": {"a": ' + b"[" * 50_000 + b"]" * 50_000 + b"}}", "nested too deeply"),
        (dumps(entry(data=[0])).replace(b"[0]", b"[" * 50_000 + b"]" * 50_000), "nested too deeply"),
        (dumps(entry(), entry()), "inputs[1] 'input': given twice"),
        (
            dumps(entry(), parameters={"binary_data_output": 1}),
            "parameters.binary_data_output: expected true",
        ),
        (dumps(entry(), parameters={"sequence_id": 7}), "parameters.sequence_id: not supported"),
        (dumps(entry(), parameters={"custom": 1}), "parameters.custom: unknown parameter; known"),
        (dumps(entry(), parameters={"binary_data": True}), "parameters.binary_data: unknown parameter"),
        (dumps(entry(), output=[]), "object contains unknown field output"),
        (dumps(entry(), model_name="other"), "model_name: is 'other', but the path says 'echo'"),
        (dumps(entry(), outputs=[{"name": "nope"}]), "outputs[0] 'nope': model 'echo' has no such output"),
        (dumps(entry(), outputs=[{"name": "output"}] * 2), "outputs[1] 'output': given twice"),
        (
            dumps(entry(), outputs=[{"name": "output", "parameters": {"classification": "2"}}]),
            "outputs[0] 'output': parameters.classification: expected a number of classes, got '2'",
        ),
        (
            dumps(entry(), outputs=[{"name": "output", "parameters": {"timeout": 5}}]),
            "outputs[0] 'output': parameters.timeout: unknown parameter; known here: binary_data",
        ),
        (
            dumps(entry(), outputs=[{"name": "output", "parameters": {"binary_data": "yes"}}]),
            "outputs[0] 'output': parameters.binary_data: expected true or false, got 'yes'",
        ),
        (dumps(entry(), outputs="output"), "outputs: expected array"),
    ],
)
def test_a_wrong_body_is_refused_with_its_place(body: bytes, complaint: str) -> None:
    assert complaint in refused(ModelCodec(ECHO), body)


@pytest.mark.parametrize(
    ("ids", "mask", "complaint"),
    [
        (entry("ids", (1, 9), "INT64"), entry("mask", (1, 9), "INT64"), "axis 'seq' is 9"),
        (entry("ids", (1, 4), "INT64"), entry("mask", (2, 4), "INT64"), "inputs[1] 'mask': rows is 2"),
        (entry("ids", (1, 4), "INT64"), entry("mask", (1, 5), "INT64"), "axis 'seq' is 5"),
        (entry("ids", (1, 2), "INT64", data=[0, 100]), None, "inputs[0] 'ids': data[1]: expected int <= 99"),
        (entry("ids", (1, 2), "INT64", data=[-1, 0]), None, "data[0]: expected int >= 0"),
        (entry("ids", (1, 2), "INT64", data=[1.5, 0]), None, "data[0]: expected int, got float"),
        (entry("ids", (1, 2), "INT64", data=[2**63, 0]), None, "data[0]: expected int"),
        (entry("ids", (1, 2), "INT64"), None, "inputs: missing 'mask' of model 'm'"),
    ],
)
def test_inputs_that_do_not_agree_or_are_out_of_range_are_refused(
    ids: Any, mask: Any, complaint: str
) -> None:
    assert complaint in refused(BERT, dumps(*([ids, mask] if mask else [ids])))


@pytest.mark.parametrize(
    ("datatype", "value"),
    [("UINT8", 256), ("INT8", -129), ("UINT64", 2**64), ("UINT64", -1), ("BOOL", 1), ("BYTES", 3)],
)
def test_json_values_that_do_not_fit_the_datatype_are_refused(datatype: str, value: Any) -> None:
    assert "data" in refused(
        model(tensor("x", datatype, (-1,))), dumps(entry("x", (1,), datatype, data=[value]))
    )


def test_parameters_that_ask_for_nothing_may_stand() -> None:
    nothing = {"sequence_id": 0, "sequence_start": False, "sequence_end": False}
    output = {"name": "output", "parameters": {"classification": 0, "shared_memory_region": ""}}
    body = dumps(entry(), parameters=nothing, outputs=[output], model_name="echo")
    assert ModelCodec(ECHO).decode(body, None).wanted == (Wanted(ECHO.outputs[0]),)


def binary(size: Any, **more: Any) -> dict[str, Any]:
    return entry(parameters={"binary_data_size": size}, **more)


@pytest.mark.parametrize(
    ("head", "tail", "complaint"),
    [
        (dumps(binary(64)), bytes(63), "binary_data_size is 64, but 63 bytes"),
        (dumps(binary(64)), bytes(65), "65 bytes of binary data, but the inputs claim 64"),
        (dumps(binary(60)), bytes(60), "60 bytes of binary data, but shape [1, 16] of FP32 needs 64"),
        (dumps(binary(-64)), bytes(64), "expected a count of bytes, got -64"),
        (dumps(binary("64")), bytes(64), "expected a count of bytes, got '64'"),
        (dumps(binary(True)), bytes(1), "expected a count of bytes, got True"),
        (dumps(binary(2**80)), bytes(64), "bytes of binary data are left"),
        (dumps(binary(64, data=[0] * 16)), bytes(64), "both data and parameters.binary_data_size"),
        (dumps(entry()), bytes(4), "4 bytes of binary data, but the inputs claim 0"),
    ],
)
def test_binary_sizes_that_do_not_add_up_are_refused(head: bytes, tail: bytes, complaint: str) -> None:
    assert complaint in refused(ModelCodec(ECHO), *with_tail(head, tail))


def test_a_json_length_beyond_the_body_is_refused() -> None:
    assert "the body has 2 bytes" in refused(ModelCodec(ECHO), b"{}", 3)


def test_binary_integers_are_checked_against_the_models_range() -> None:
    ids = np.array([[1, 100]], np.int64)
    head = dumps(
        entry("ids", (1, 2), "INT64", parameters={"binary_data_size": 16}), entry("mask", (1, 2), "INT64")
    )
    assert "element 1 is 100, expected 0 to 99" in refused(BERT, *with_tail(head, ids.tobytes()))


def test_binary_booleans_other_than_0_and_1_are_refused() -> None:
    head = dumps(entry("x", (2,), "BOOL", parameters={"binary_data_size": 2}))
    assert "must be 0 or 1" in refused(model(tensor("x", "BOOL", (-1,))), *with_tail(head, b"\x01\x02"))


@pytest.mark.parametrize(
    "tail", [b"", b"\x01", b"\x05\0\0\0abc", b"\xff\xff\xff\xffabc", b"\x01\0\0\0ab", b"\0\0\0\0\0"]
)
def test_binary_strings_that_do_not_add_up_are_refused(tail: bytes) -> None:
    head = dumps(entry("x", (1,), "BYTES", parameters={"binary_data_size": len(tail)}))
    assert "inputs[0] 'x'" in refused(model(tensor("x", "BYTES", (-1,))), *with_tail(head, tail))


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_precision_travels_in_binary_only(datatype: str) -> None:
    codec = model(tensor("x", datatype, (-1,)))
    assert "cannot be sent as JSON" in refused(codec, dumps(entry("x", (1,), datatype, data=[1.0])))
    head = dumps(entry("x", (1,), datatype, parameters={"binary_data_size": 2}))
    assert "cannot be sent as JSON; ask for it in binary" in refused(codec, *with_tail(head, b"\0\0"))


def test_unaligned_binary_data_becomes_an_aligned_array() -> None:
    for pad in range(4):
        head = dumps(binary(64)) + b" " * pad
        values = np.arange(16, dtype=np.float32)
        array = ModelCodec(ECHO).decode(*with_tail(head, values.tobytes())).inputs["input"]
        assert array.flags.aligned
        assert np.array_equal(array[0], values)


def test_a_raw_body_is_the_only_input_and_is_answered_in_binary() -> None:
    inference = ModelCodec(ECHO).decode(np.arange(32, dtype=np.float32).tobytes(), 0)
    assert inference.rows == 2
    assert inference.wanted == (Wanted(ECHO.outputs[0], binary=True),)
    assert "65 bytes" in refused(ModelCodec(ECHO), bytes(65), 0)
    assert "dimension 0 must be at least 1" in refused(ModelCodec(ECHO), b"", 0)
    assert "has 2 inputs; expected exactly 1" in refused(BERT, bytes(64), 0)


def test_strings_come_as_utf8_bytes() -> None:
    codec = model(tensor("x", "BYTES", (-1, 2)))
    inference = codec.decode(dumps(entry("x", (1, 2), "BYTES", data=[["é", ""]])), None)
    assert inference.inputs["x"].tolist() == [["é".encode(), b""]]


def test_values_that_json_does_not_have_become_null() -> None:
    outputs = {"output": np.array([[np.nan, np.inf, -np.inf] + [1.0] * 13], np.float32)}
    codec = ModelCodec(ECHO)
    body = codec.encode(outputs, (Wanted(ECHO.outputs[0]),), None).body
    assert json.loads(body)["outputs"][0]["data"][:4] == [None, None, None, 1.0]


def test_bytes_that_are_not_text_are_refused_in_json_only() -> None:
    codec = model(tensor("x", "BYTES", (-1,)))
    outputs = {"out_x": np.array([b"\xff"], object)}
    spec = codec.metadata.outputs[0]
    with pytest.raises(BadRequest, match="not UTF-8"):
        codec.encode(outputs, (Wanted(spec),), None)
    in_binary = (Wanted(spec, binary=True),)
    assert codec.encode(outputs, in_binary, None).body.endswith(struct.pack("<I", 1) + b"\xff")


def arrays(datatype: str) -> st.SearchStrategy[Any]:
    shapes = hnp.array_shapes(min_dims=2, max_dims=3, max_side=5)
    if datatype == "BYTES":
        return hnp.arrays(object, shapes, elements=st.binary(max_size=6))
    if datatype == "BF16":
        return hnp.arrays(np.uint16, shapes).map(lambda array: array.view(ml_dtypes.bfloat16))
    return hnp.arrays(DTYPES[datatype], shapes)


@settings(deadline=None)
@given(data=st.data(), datatype=st.sampled_from(sorted(DTYPES)))
def test_binary_survives_the_round_trip_bit_for_bit(data: st.DataObject, datatype: str) -> None:
    array = data.draw(arrays(datatype))
    codec = model(tensor("x", datatype, (-1,) * array.ndim))
    wanted = (Wanted(codec.metadata.outputs[0], binary=True),)
    encoded = codec.encode({"out_x": array}, wanted, "id")
    assert encoded.json_bytes is not None
    head = json.loads(encoded.body[: encoded.json_bytes])
    assert head["id"] == "id"
    out = head["outputs"][0]
    request = dumps({**out, "name": "x"}, parameters={"binary_data_output": True})
    again = codec.decode(*with_tail(request, encoded.body[encoded.json_bytes :]))
    back = codec.encode({"out_x": again.inputs["x"]}, again.wanted, "id")
    assert back == encoded


@settings(deadline=None)
@given(data=st.data(), datatype=st.sampled_from(sorted(set(DTYPES) - {"FP16", "BF16", "BYTES"})))
def test_finite_json_survives_the_round_trip_bit_for_bit(data: st.DataObject, datatype: str) -> None:
    array = data.draw(arrays(datatype))
    if array.dtype.kind == "f":
        array = np.nan_to_num(array, nan=0.25, posinf=1.5, neginf=-1.5)
    codec = model(tensor("x", datatype, (-1,) * array.ndim))
    body = codec.encode({"out_x": array}, (Wanted(codec.metadata.outputs[0]),), None).body
    out = json.loads(body)["outputs"][0]
    flat = codec.decode(dumps({**out, "name": "x"}), None).inputs["x"]
    nested = codec.decode(dumps({**out, "name": "x", "data": array.tolist()}), None).inputs["x"]
    assert flat.dtype == array.dtype
    assert np.array_equal(flat, array)
    assert np.array_equal(nested, array)


def test_a_string_that_is_not_utf8_is_refused():
    """Found by `experiments/fuzz.py`."""
    codec = model(tensor("x", "BYTES", (-1, 1), ("batch", None)))
    body = b'{"inputs":[{"name":"x","shape":[1,1],"datatype":"BYTES","data":["\xb4"]}]}'
    with pytest.raises(BadRequest, match="not UTF-8"):
        codec.decode(body, None)


@pytest.mark.parametrize(
    "members",
    [
        b'"data":[%s]' % b",".join([b'""'] * 300_000),
        b'"data":[1],"parameters":{"a":[%s]}' % b",".join([b"[]"] * 300_000),
        b'"data":[1],"parameters":{"a":[%s]}' % b",".join([b"1.5"] * 5_000_000),
    ],
    ids=["strings", "lists", "numbers"],
)
def test_json_that_would_swell_is_refused_before_it_is_decoded(members: bytes):
    codec = model(tensor("x", "BYTES", (-1, 1), ("batch", None)))
    body = b'{"inputs":[{"name":"x","shape":[1,1],"datatype":"BYTES",%s}]}' % members
    with pytest.raises(BadRequest, match="more elements than the limit") as refused:
        codec.decode(body, None)
    assert refused.value.status == 413


def test_binary_strings_are_counted_too():
    codec = model(tensor("x", "BYTES", (-1, -1), ("batch", "n")), max_batch=8)
    n = 300_000
    head = b'{"inputs":[{"name":"x","shape":[1,%d],"datatype":"BYTES","parameters":{"binary_data_size":%d}}]}'
    head %= (n, 4 * n)
    with pytest.raises(BadRequest, match="more elements than the limit"):
        codec.decode(head + bytes(4 * n), len(head))


@pytest.mark.parametrize("where", ['"data":%s', '"data":[1],"parameters":{"a":%s}', '"more":%s'])
@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_json_nested_too_deeply_is_refused(where: str, opening: str):
    codec = model(tensor("x", "FP32", (-1, 1), ("batch", None)))
    body = f'{{"inputs":[{{"name":"x","shape":[1,1],"datatype":"FP32",{where % (opening * 10_000)}'
    with pytest.raises(BadRequest) as refused:
        codec.decode(body.encode(), None)
    assert refused.value.status == 400

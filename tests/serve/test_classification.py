"""The classification extension: the highest values of an output, with index and label."""

from __future__ import annotations

import json
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cotenant.domain import ModelMetadata, ModelSpec, TensorSpec
from cotenant.serve.classify import classify
from cotenant.serve.codec import ModelCodec
from cotenant.serve.errors import BadRequest
from cotenant.serve.oip import Wanted
from cotenant.serve.tensors import DTYPES


def scores(datatype: str, *, batched: bool = True, labels: tuple[str, ...] = ()) -> TensorSpec:
    shape, axes = ((-1, -1), ("batch", None)) if batched else ((-1,), (None,))
    return TensorSpec(name="scores", datatype=datatype, shape=shape, axes=axes, labels=labels)


def codec(datatype: str = "FP32", **more: Any) -> ModelCodec:
    spec = scores(datatype, **more)
    x = TensorSpec(name="x", datatype="INT8", shape=(1,), axes=(None,))
    return ModelCodec(
        ModelMetadata(
            name="m",
            platform="p",
            versions=("1",),
            inputs=(x,),
            outputs=(spec,),
            batched=more.get("batched", True),
            spec=ModelSpec(name="m", slo_ns=None),
        )
    )


def answered(model: ModelCodec, array: Any, parameters: dict[str, Any]) -> Any:
    """The output entry of an answer to a request with these parameters of the output."""
    tensor = {"name": "x", "shape": [1], "datatype": "INT8", "data": [0]}
    request = {"inputs": [tensor], "outputs": [{"name": "scores", "parameters": parameters}]}
    inference = model.decode(json.dumps(request).encode(), None)
    encoded = model.encode({"scores": array}, inference.wanted, None)
    head = encoded.body if encoded.json_bytes is None else encoded.body[: encoded.json_bytes]
    return json.loads(head)["outputs"][0], encoded.body[len(head) :]


ROWS = np.array([[1.1, 3.3, 0.5, 2.4], [0, 0, 9, -1]], np.float32)


def test_the_highest_come_first_row_by_row() -> None:
    entry, _ = answered(codec(), ROWS, {"classification": 2})
    assert entry == {
        "name": "scores",
        "datatype": "BYTES",
        "shape": [2, 2],
        "data": ["3.300000:1", "2.400000:3", "9.000000:2", "0.000000:0"],
    }


def test_labels_are_added_as_far_as_there_are_some() -> None:
    entry, _ = answered(codec(labels=("apple", "pear", "Ünicode")), ROWS, {"classification": 2})
    assert entry["data"] == ["3.300000:1:pear", "2.400000:3", "9.000000:2:Ünicode", "0.000000:0:apple"]


def test_more_classes_than_there_are_is_all() -> None:
    entry, _ = answered(codec(), ROWS, {"classification": 99})
    assert entry["shape"] == [2, 4]


def test_classes_travel_in_binary_too() -> None:
    entry, tail = answered(codec(), ROWS[1:], {"classification": 1, "binary_data": True})
    assert tail == b"\x0a\0\0\x009.000000:2"
    assert entry["parameters"] == {"binary_data_size": len(tail)}


def test_a_model_without_rows_has_one_list() -> None:
    entry, _ = answered(
        codec("INT32", batched=False), np.array([1, 5, 10, 4], np.int32), {"classification": 2}
    )
    assert (entry["shape"], entry["data"]) == ([2], ["10:2", "5:1"])


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_precision_has_classes_in_json(datatype: str) -> None:
    array = np.array([[1, 2]]).astype({"FP16": np.float16, "BF16": ml_dtypes.bfloat16}[datatype])
    entry, _ = answered(codec(datatype), array, {"classification": 1})
    assert entry["data"] == ["2.000000:1"]


@pytest.mark.parametrize("datatype", ["BOOL", "BYTES"])
def test_what_has_no_order_has_no_classes(datatype: str) -> None:
    with pytest.raises(BadRequest, match=f"'scores' is {datatype}, which has no order"):
        answered(codec(datatype), None, {"classification": 1})


@pytest.mark.parametrize("n", [-1, 1.5, "1", True, 2**31, None])
def test_a_number_of_classes_is_a_number(n: Any) -> None:
    with pytest.raises(BadRequest, match=r"parameters\.classification: expected a number of classes"):
        answered(codec(), ROWS, {"classification": n})


RANKED = sorted(set(DTYPES) - {"BOOL", "BYTES", "BF16"})


@given(data=st.data(), datatype=st.sampled_from(RANKED), k=st.integers(1, 9))
def test_what_is_left_out_is_never_higher_and_of_equals_the_first_stays(
    data: st.DataObject, datatype: str, k: int
) -> None:
    array = data.draw(hnp.arrays(DTYPES[datatype], hnp.array_shapes(min_dims=1, max_dims=3, max_side=6)))
    found = classify(array, k, scores(datatype), batched=True)
    assert found.shape == (len(array), min(k, array[0].size))
    for row, texts in zip(array.reshape(len(array), -1), found, strict=True):
        indices = [int(text.split(b":")[1]) for text in texts]
        assert len(set(indices)) == len(indices)

        def rank(index: int, row: Any = row) -> tuple[Any, int]:
            value = row[index].item()
            return (float("-inf") if value != value else value, -index)

        assert indices == sorted(range(len(row)), key=rank, reverse=True)[:k]


def test_an_output_that_was_not_asked_for_in_classes_stays_as_it_is() -> None:
    model = codec()
    body = model.encode({"scores": ROWS}, (Wanted(model.metadata.outputs[0]),), None).body
    assert json.loads(body)["outputs"][0]["datatype"] == "FP32"

"""A model file is read without its weights: everything else is as it was."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx_models import FLOAT, double, lookup, save

from cotenant.execute.onnx_file import parse
from cotenant.execute.onnx_header import LARGE_BYTES, without_weights


def test_large_contents_are_left_out_and_nothing_else(tmp_path: Path) -> None:
    large = np.arange(LARGE_BYTES, dtype=np.float32)
    small = np.arange(7, dtype=np.int64)
    nodes = [
        helper.make_node("Gather", ["large", "small"], ["some"]),
        helper.make_node("Add", ["x", "some"], ["y"]),
    ]
    path = save(
        tmp_path / "m.onnx",
        nodes,
        [("x", FLOAT, ["batch", 7])],
        [("y", FLOAT, ["batch", 7])],
        {"large": large, "small": small},
        {"x": "0,5"},
    )
    whole = onnx.load(path)
    found = onnx.ModelProto.FromString(without_weights(path))
    assert not found.graph.initializer[0].raw_data
    whole.graph.initializer[0].ClearField("raw_data")
    assert found == whole
    assert len(without_weights(path)) < 2000 < path.stat().st_size


@pytest.mark.parametrize("field", ["float_data", "int32_data", "int64_data", "double_data", "raw_data"])
def test_contents_of_every_form_are_left_out(tmp_path: Path, field: str) -> None:
    kinds = {
        "float_data": TensorProto.FLOAT,
        "int32_data": TensorProto.INT32,
        "int64_data": TensorProto.INT64,
        "double_data": TensorProto.DOUBLE,
    }
    n = 2 * LARGE_BYTES
    if field == "raw_data":
        tensor = numpy_helper.from_array(np.ones(n, np.float32), "W")
    else:
        tensor = helper.make_tensor("W", kinds[field], [n], [1] * n)
    assert len(getattr(tensor, field))
    graph = helper.make_graph(
        [helper.make_node("Identity", ["W"], ["y"])],
        "g",
        [],
        [helper.make_tensor_value_info("y", tensor.data_type, [n])],
        [tensor],
    )
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph), path)
    (found,) = onnx.ModelProto.FromString(without_weights(path)).graph.initializer
    assert not len(getattr(found, field))
    assert (found.name, list(found.dims), found.data_type) == ("W", [n], tensor.data_type)


def test_a_small_file_is_read_as_it_is(tmp_path: Path) -> None:
    path = lookup(tmp_path / "m.onnx")
    assert without_weights(path) == path.read_bytes()


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_refused_or_read_never_anything_else(tmp_path: Path, data: st.DataObject) -> None:
    good = double(tmp_path / "good.onnx", ["batch", 5]).read_bytes()
    cut = data.draw(st.integers(0, len(good)))
    bad = good[:cut] + data.draw(st.binary(max_size=12)) + good[data.draw(st.integers(cut, len(good))) :]
    path = tmp_path / "bad.onnx"
    path.write_bytes(bad)
    with suppress(ValueError):
        parse(path)

"""Tiny ONNX models made on the spot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT64, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING


def save(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: list[tuple[str, int, list[Any]]],
    outputs: list[tuple[str, int, list[Any]]],
    weights: dict[str, np.ndarray[Any, Any]] | None = None,
    ranges: dict[str, str] | None = None,
) -> Path:
    """Write a model; a tensor is (name, element type, shape with symbols)."""
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(*tensor) for tensor in inputs],
        [helper.make_tensor_value_info(*tensor) for tensor in outputs],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if ranges:
        helper.set_model_props(model, {f"cotenant.range.{name}": text for name, text in ranges.items()})
    onnx.save(model, path)
    return path


def double(path: Path, shape: list[Any], output: list[Any] | None = None) -> Path:
    """y = x + x."""
    return save(
        path,
        [helper.make_node("Add", ["x", "x"], ["y"])],
        [("x", FLOAT, shape)],
        [("y", FLOAT, output or shape)],
    )


def lookup(path: Path, n: int = 4, ranges: dict[str, str] | None = None) -> Path:
    """y = table[x], a table of `n` rows; any other index raises."""
    table = np.arange(n * 3, dtype=np.float32).reshape(n, 3)
    return save(
        path,
        [helper.make_node("Gather", ["table", "x"], ["y"], axis=0)],
        [("x", INT64, ["batch"])],
        [("y", FLOAT, ["batch", 3])],
        {"table": table},
        ranges,
    )


def slow(path: Path, n_steps: int = 2_000_000) -> Path:
    """y = x after a loop of so many steps, minutes of work that can be stopped between nodes."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("MatMul", ["state", "w"], ["next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", FLOAT, None),
        ],
    )
    return save(
        path,
        [helper.make_node("Loop", ["n", "", "x"], ["y"], body=body)],
        [("n", INT64, []), ("x", FLOAT, [64, 64])],
        [("y", FLOAT, [64, 64])],
        {"w": np.eye(64, dtype=np.float32)},
        {"n": "1,2"},
    )

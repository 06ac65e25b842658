"""Tiny models in the layout of a repository."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def write_model(folder: Path, name: str, version: int, factor: float, n_weights: int = 1) -> Path:
    """`y = factor x`; the factor is looked up in weights that take room, by an index that no optimiser knows
    to be 0."""
    room = numpy_helper.from_array(np.full(n_weights, factor, np.float32), "W")
    graph = helper.make_graph(
        [
            helper.make_node("IsNaN", ["x"], ["never"]),
            helper.make_node("Cast", ["never"], ["index"], to=TensorProto.INT64),
            helper.make_node("Gather", ["W", "index"], ["k"]),
            helper.make_node("Mul", ["x", "k"], ["y"]),
        ],
        "scaled",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [room],
    )
    path = folder / name / str(version) / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(".part")
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), part)
    os.replace(part, path)
    return path

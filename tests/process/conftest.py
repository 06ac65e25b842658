"""Real `cotenant serve` processes on free ports of 127.0.0.1, stopped by their own process id."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from server_process import Process


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """`serve(config_or_model, *flags, store=...)` starts a process, which is killed at the end."""
    started: list[Process] = []

    def start(*arguments: str | Path, store: Path | None = None) -> Process:
        process = Process(*arguments, store=store or tmp_path / "store")
        started.append(process)
        return process

    yield start
    for process in started:
        if process.child.poll() is None:
            os.kill(process.child.pid, signal.SIGKILL)
            process.ended()


@pytest.fixture
def config(tmp_path: Path) -> Callable[[str], Path]:
    """Write a configuration."""

    def write(text: str) -> Path:
        path = tmp_path / "server.toml"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def slow_model(tmp_path: Path) -> Path:
    """`x [batch, 4]` through a loop of matrix products: some 100 ms a run."""
    side, n = 256, 400
    weights = np.eye(side, dtype=np.float32)
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("MatMul", ["state", "W"], ["next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, [side, side]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [side, side]),
        ],
    )
    graph = helper.make_graph(
        [
            helper.make_node("Loop", ["n", "true", "W"], ["last"], body=body),
            helper.make_node("ReduceMean", ["last"], ["mean"], keepdims=0),
            helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
            helper.make_node("Add", ["x", "nothing"], ["y"]),
        ],
        "slow",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [
            numpy_helper.from_array(weights, "W"),
            numpy_helper.from_array(np.array(n, np.int64), "n"),
            numpy_helper.from_array(np.array(True), "true"),
            numpy_helper.from_array(np.array(0.0, np.float32), "zero"),
        ],
    )
    return _save(graph, tmp_path / "slow.onnx")


@pytest.fixture
def hanging_model(tmp_path: Path) -> Path:
    """Counts to `turns [1]`, one by one: it hangs when told to go far."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Add", ["count", "one"], ["next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("count", TensorProto.INT64, [1]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.INT64, [1]),
        ],
    )
    graph = helper.make_graph(
        [
            helper.make_node("Squeeze", ["turns"], ["n"]),
            helper.make_node("Loop", ["n", "true", "zero"], ["count_last"], body=body),
        ],
        "hanging",
        [helper.make_tensor_value_info("turns", TensorProto.INT64, [1])],
        [helper.make_tensor_value_info("count_last", TensorProto.INT64, [1])],
        [
            numpy_helper.from_array(np.array(True), "true"),
            numpy_helper.from_array(np.array([0], np.int64), "zero"),
            numpy_helper.from_array(np.array([1], np.int64), "one"),
        ],
    )
    return _save(graph, tmp_path / "loop.onnx")


@pytest.fixture
def picky_model(tmp_path: Path) -> Path:
    """`i [batch, 1]` looks up one of 4 rows, and fails at run time for any other index."""
    table = np.arange(4, dtype=np.float32)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["T", "i"], ["y"])],
        "picky",
        [helper.make_tensor_value_info("i", TensorProto.INT64, ["batch", 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 1])],
        [numpy_helper.from_array(table, "T")],
    )
    return _save(graph, tmp_path / "picky.onnx")


@pytest.fixture
def unbatched_model(tmp_path: Path) -> Path:
    """`x [3]` doubled: no batch axis."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        "unbatched",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3])],
    )
    return _save(graph, tmp_path / "unbatched.onnx")


def _save(graph: onnx.GraphProto, path: Path) -> Path:
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path

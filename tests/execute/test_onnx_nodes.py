"""What is found inside an ONNX model: by its graph, and by ONNX Runtime's own times."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx_models import FLOAT, double, lookup, save

from cotenant.cores import available_cores
from cotenant.domain import Variant
from cotenant.execute.model import ModelSettings
from cotenant.execute.onnx_model import inspect
from cotenant.execute.onnx_nodes import OnnxInside, nodes_of, runs_of
from cotenant.execute.operators import operations
from cotenant.profile.segments import add

CORES = frozenset(available_cores()[:1])


def convolution(path: Path) -> Path:
    """Conv, Relu and a fully connected layer: fused and packed by the runtime."""
    random = np.random.default_rng(0)
    return save(
        path,
        [
            helper.make_node("Conv", ["x", "k"], ["c"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c"], ["r"]),
            helper.make_node("Flatten", ["r"], ["f"]),
            helper.make_node("Gemm", ["f", "w"], ["y"], transB=1),
        ],
        [("x", FLOAT, ["batch", 16, 8, 8])],
        [("y", FLOAT, ["batch", 40])],
        {
            "k": random.standard_normal((32, 16, 3, 3)).astype(np.float32),
            "w": random.standard_normal((40, 32 * 64)).astype(np.float32),
        },
    )


def inside(path: Path) -> OnnxInside:
    return OnnxInside(path, inspect(path, ModelSettings(name="m")), CORES)


def test_the_graph_gives_operations_and_bytes_of_each_size(tmp_path) -> None:
    found = inside(convolution(tmp_path / "m.onnx"))
    for rows in (1, 4):
        cost = found.cost(Variant("m", rows))
        assert cost.conv_flops == rows * 2 * (32 * 64) * (16 * 9)
        assert cost.matmul_flops == rows * 2 * 40 * 2048
        assert cost.weight_bytes == 4 * (32 * 16 * 9 + 40 * 2048)
        assert cost.held_bytes < cost.moved_bytes


def test_the_runtime_and_the_graph_agree_though_weights_are_packed(tmp_path) -> None:
    found = inside(convolution(tmp_path / "m.onnx"))
    variants = [Variant("m", 1), Variant("m", 4)]
    nodes = found.nodes(variants)
    for variant in variants:
        measured, counted = add([node.cost for node in nodes[variant]]), found.cost(variant)
        assert all(node.solo_ns >= 0 for node in nodes[variant])
        assert measured.conv_flops == counted.conv_flops
        assert measured.matmul_flops == counted.matmul_flops
        assert measured.weight_bytes == pytest.approx(counted.weight_bytes, rel=0.01)


def test_profiles_of_the_runtime_are_removed(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    path = double(tmp_path / "m.onnx", ["batch", 4])
    inside(path).nodes([Variant("m", 1)])
    assert sorted(tmp_path.iterdir()) == [path]


def test_a_table_counts_by_what_is_looked_up(tmp_path) -> None:
    cost = inside(lookup(tmp_path / "m.onnx", 1000)).cost(Variant("m", 2))
    assert cost.weight_bytes == 2 * 3 * 4
    assert cost.flops == 0


def test_a_graph_whose_shapes_nobody_knows_counts_nothing(tmp_path) -> None:
    path = tmp_path / "m.onnx"
    own = helper.make_node("Own", ["x"], ["y"], domain="nobody")
    save(path, [own], [("x", FLOAT, ["batch", 4])], [("y", FLOAT, ["batch", 4])])
    model = onnx.load(path)
    model.opset_import.append(helper.make_opsetid("nobody", 1))
    onnx.save(model, path)
    assert inside(path).cost(Variant("m", 1)).flops == 0


def event(name: str, at: int, span: int, **arguments: object) -> dict[str, object]:
    return {"cat": "Node", "name": f"{name}_kernel_time", "ts": at, "dur": span, "args": arguments}


def run(at: int, span: int) -> dict[str, object]:
    return {"cat": "Session", "name": "model_run", "ts": at, "dur": span, "args": {}}


def test_events_are_told_apart_by_run_and_bodies_count_with_their_operator() -> None:
    events = [
        run(100, 50), event("loop", 105, 30), event("body", 110, 5), event("last", 140, 5),
        run(200, 50), event("last", 241, 5), event("loop", 205, 34),
        event("stray", 90, 1), {"cat": "Node", "name": "loop_fence_before", "ts": 104, "dur": 1},
    ]  # fmt: skip
    runs = runs_of(events)
    names = [[str(e["name"]).removesuffix("_kernel_time") for e in found] for found in runs]
    assert names == [["loop", "last"], ["loop", "last"]]
    assert [node.solo_ns for node in nodes_of(runs, runs[0])] == [32_000, 5_000]
    assert runs_of([]) == []
    assert nodes_of([], []) == []


@pytest.mark.parametrize(
    ("op", "inputs", "output", "expected"),
    [
        ("MatMul", [(2, 3, 4), (4, 5)], (2, 3, 5), 2 * 30 * 4),
        ("Gemm", [(4, 3), (4, 5)], (3, 5), 2 * 15 * 4),
        ("FusedMatMul", [(1, 27, 64), (1, 27, 64)], (1, 27, 27), 2 * 729 * 64),
        ("MatMul", [(4,), (4, 5)], (5,), 2 * 5 * 4),
        ("ConvTranspose", [(1, 8, 4, 4), (8, 16, 2, 2)], (1, 16, 8, 8), 2 * 128 * 64),
        ("Conv", [(1, 8, 4, 4)], (1, 16, 4, 4), 0),
        ("Relu", [(3, 4)], (3, 4), 12),
        ("Reshape", [(3, 4)], (12,), 0),
    ],
)
def test_operations_follow_from_shapes(op, inputs, output, expected) -> None:
    assert operations(op, inputs, [output]) == expected

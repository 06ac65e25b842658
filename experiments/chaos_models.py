"""Models that misbehave, and a server's configuration with them.

Each takes `x` [rows, 4] and gives `y`: `calm` doubles it; `raises` fails when x[0] is above 9, `hangs` when
it is above 9 does not come back, and `leaks` keeps 64 KiB per run. Torch models where torch is there; without
it ONNX models, of which none can leak.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

LEAK_BYTES = 64 * 1024
BAD = 10.0
"""Value of x[0] from which on `raises` and `hangs` do what they are called."""

TORCH = f"""
import threading

import torch


class Model(torch.nn.Module):
    def __init__(self, act=lambda x: None):
        super().__init__()
        self.act = act

    def forward(self, x):
        self.act(x)
        return x * 2


def made(act=lambda x: None):
    return Model(act), {{"x": torch.ones(1, 4)}}


def raises():
    def act(x):
        if bool((x[:, 0] > 9).any()):
            raise ValueError("a secret in /srv/models/raises.py")

    return made(act)


def hangs():
    def act(x):
        if bool((x[:, 0] > 9).any()):
            threading.Event().wait(3600)

    return made(act)


kept = []


def leaks():
    return made(lambda x: kept.append(bytearray({LEAK_BYTES})))


calm = made
"""


def has_torch() -> bool:
    """Whether torch models can be served here."""
    return importlib.util.find_spec("torch") is not None


def write(folder: Path, server: str, *, torch: bool) -> Path:
    """Write models and configuration; `server`: lines of the `[server]` table. Returns the configuration."""
    names = ["calm", "raises", "hangs"]
    if torch:
        names.append("leaks")
        (folder / "misbehaving.py").write_text(TORCH)
        sources = {name: f"misbehaving:{name}" for name in names}
        server += "\nallow_code = true"
    else:
        sources = {name: f"{name}.onnx" for name in names}
        _write_onnx(folder)
    models = [
        f'[[model]]\nname = "{name}"\nsource = "{source}"\nslo_ms = 500\nmax_batch = 4\n'
        for name, source in sources.items()
    ]
    config = folder / "chaos.toml"
    config.write_text("\n".join([f"[server]\n{server}", *models]))
    return config


def _write_onnx(folder: Path) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    floats, number = TensorProto.FLOAT, TensorProto.INT64
    x, y = (helper.make_tensor_value_info(name, floats, ["batch", 4]) for name in "xy")
    double = helper.make_node("Add", ["x", "x"], ["y"])
    first = [
        helper.make_node("Gather", ["x", "first"], ["firsts"], axis=1),
        helper.make_node("ReduceMax", ["firsts"], ["most"], keepdims=0),
        helper.make_node("Greater", ["most", "nine"], ["is_bad"]),
    ]
    nine = numpy_helper.from_array(np.array(9, np.float32), "nine")
    column = numpy_helper.from_array(np.array(0, np.int64), "first")
    bad = helper.make_node("Cast", ["is_bad"], ["index"], to=number)

    def save(name: str, nodes: list[onnx.NodeProto], weights: list[onnx.TensorProto]) -> None:
        graph = helper.make_graph(nodes, name, [x], [y], weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.save(model, folder / f"{name}.onnx")

    save("calm", [double], [])
    table = numpy_helper.from_array(np.array([2.0], np.float32), "table")
    look_up = helper.make_node("Gather", ["table", "index"], ["factor"])  # index 1 is out of bounds
    times = helper.make_node("Mul", ["x", "factor"], ["y"])
    save("raises", [*first, bad, look_up, times], [nine, column, table])
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Add", ["count", "one"], ["next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", number, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("count", floats, []),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", floats, []),
        ],
    )
    hang = [
        helper.make_node("Mul", ["index", "turns"], ["n"]),
        helper.make_node("Loop", ["n", "true", "zero"], ["count_last"], body=body),
        helper.make_node("Mul", ["count_last", "zero"], ["nothing"]),
        helper.make_node("Add", ["x", "x"], ["doubled"]),
        helper.make_node("Add", ["doubled", "nothing"], ["y"]),
    ]
    weights = [
        numpy_helper.from_array(np.array(value, kind), name)
        for name, value, kind in (
            ("turns", 10**12, np.int64), ("true", True, np.bool_),
            ("zero", 0, np.float32), ("one", 1, np.float32),
        )
    ]  # fmt: skip
    save("hangs", [*first, bad, *hang], [nine, column, *weights])

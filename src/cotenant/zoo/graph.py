"""A small writer of ONNX graphs: nodes by function call, weights from one seeded generator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

OPSET = 17
IR_VERSION = 8
FLOAT = TensorProto.FLOAT
INT64 = TensorProto.INT64


class Graph:
    """Collects nodes and initializers; every method returns the name of the tensor it makes."""

    def __init__(self, name: str, seed: int) -> None:
        self._name = name
        self._rng = np.random.default_rng(seed)
        self._nodes: list[Any] = []
        self._weights: list[Any] = []
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._ranges: dict[str, str] = {}
        self._constants: dict[bytes, str] = {}
        self._n = 0

    def input(
        self, name: str, shape: Sequence[int | str], kind: int = FLOAT, below: int | None = None
    ) -> str:
        """A graph input; `below` is the exclusive upper bound of valid integers, kept as metadata."""
        self._inputs.append(helper.make_tensor_value_info(name, kind, list(shape)))
        if below is not None:
            self._ranges[name] = f"0,{below}"
        return name

    def output(self, value: str, name: str, shape: Sequence[int | str]) -> None:
        """Give `value` out under `name`."""
        self._nodes.append(helper.make_node("Identity", [value], [name]))
        self._outputs.append(helper.make_tensor_value_info(name, FLOAT, list(shape)))

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """One node with one output."""
        self._n += 1
        result = f"{kind.lower()}_{self._n}"
        self._nodes.append(helper.make_node(kind, list(inputs), [result], **attributes))
        return result

    def constant(self, values: NDArray[Any]) -> str:
        """A constant tensor, shared when it was made before."""
        key = values.dtype.str.encode() + str(values.shape).encode() + values.tobytes()
        if len(key) < 4096 and key in self._constants:
            return self._constants[key]
        self._n += 1
        name = f"const_{self._n}"
        self._weights.append(numpy_helper.from_array(values, name))
        if len(key) < 4096:
            self._constants[key] = name
        return name

    def ints(self, *values: int) -> str:
        """A constant vector of int64."""
        return self.constant(np.asarray(values, np.int64))

    def floats(self, *values: float) -> str:
        """A constant vector of float32."""
        return self.constant(np.asarray(values, np.float32))

    def scalar(self, value: float) -> str:
        """A constant float32 of rank 0."""
        return self.constant(np.asarray(value, np.float32))

    def random(self, shape: Sequence[int], scale: float) -> str:
        """A normal float32 weight with the given standard deviation."""
        values = self._rng.standard_normal(shape, np.float32)
        values *= np.float32(scale)
        return self.constant(values)

    def linear(self, x: str, n_in: int, n_out: int, *, gain: float = 1.0) -> str:
        """x @ W + b on the last axis."""
        weight = self.random((n_in, n_out), gain / float(np.sqrt(n_in)))
        return self.op("Add", self.op("MatMul", x, weight), self.random((n_out,), 0.02))

    def conv(
        self, x: str, n_in: int, n_out: int, size: int, *, stride: int = 1, groups: int = 1, relu: bool = True
    ) -> str:
        """A convolution with its normalisation folded in, and ReLU."""
        fan_in = n_in // groups * size * size
        weight = self.random((n_out, n_in // groups, size, size), float(np.sqrt(2.0 / fan_in)))
        bias = self.random((n_out,), 0.02)
        pad = size // 2
        y = self.op(
            "Conv", x, weight, bias,
            kernel_shape=[size, size], strides=[stride, stride], pads=[pad] * 4, group=groups,
        )  # fmt: skip
        return self.op("Relu", y) if relu else y

    def layer_norm(self, x: str, width: int) -> str:
        """Layer normalisation over the last axis."""
        ones, zeros = np.ones(width, np.float32), np.zeros(width, np.float32)
        return self.op("LayerNormalization", x, self.constant(ones), self.constant(zeros), axis=-1)

    def gelu(self, x: str) -> str:
        """x * 0.5 * (1 + erf(x / sqrt 2))."""
        erf = self.op("Erf", self.op("Mul", x, self.scalar(2**-0.5)))
        return self.op("Mul", self.op("Mul", x, self.scalar(0.5)), self.op("Add", erf, self.scalar(1.0)))

    def attention(self, x: str, width: int, n_heads: int, bias: str | None) -> str:
        """Multi-head self-attention on [batch, seq, width]; `bias` is added to the scores."""
        head = width // n_heads

        def split(y: str, order: list[int]) -> str:
            return self.op("Transpose", self.op("Reshape", y, self.ints(0, 0, n_heads, head)), perm=order)

        query = split(self.linear(x, width, width), [0, 2, 1, 3])
        key = split(self.linear(x, width, width), [0, 2, 3, 1])
        value = split(self.linear(x, width, width), [0, 2, 1, 3])
        scores = self.op("Mul", self.op("MatMul", query, key), self.scalar(head**-0.5))
        if bias is not None:
            scores = self.op("Add", scores, bias)
        mixed = self.op("MatMul", self.op("Softmax", scores, axis=-1), value)
        joined = self.op("Reshape", self.op("Transpose", mixed, perm=[0, 2, 1, 3]), self.ints(0, 0, width))
        return self.linear(joined, width, width)

    def block(self, x: str, width: int, n_heads: int, inner: int, bias: str | None = None) -> str:
        """A pre-norm transformer block."""
        x = self.op("Add", x, self.attention(self.layer_norm(x, width), width, n_heads, bias))
        hidden = self.gelu(self.linear(self.layer_norm(x, width), width, inner))
        return self.op("Add", x, self.linear(hidden, inner, width))

    def model(self, metadata: Mapping[str, str] | None = None) -> ModelProto:
        """The finished model. Integer ranges are metadata `cotenant.range.INPUT` = "low,high"."""
        graph = helper.make_graph(
            self._nodes, self._name, self._inputs, self._outputs, initializer=self._weights
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION,
            producer_name="cotenant",
        )  # fmt: skip
        ranges = {f"cotenant.range.{name}": text for name, text in self._ranges.items()}
        helper.set_model_props(model, {**ranges, **(metadata or {})})
        return model

"""A small writer of ONNX graphs: nodes by function call, weights from one seeded generator.

Weights go straight into the ModelProto: every further copy of 400 MB is time that building pays for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper

OPSET = 17
IR_VERSION = 8
FLOAT = TensorProto.FLOAT
INT64 = TensorProto.INT64
SHARED_BYTES = 4096
"""Constants up to this size are made once and shared."""


class Graph:
    """Collects nodes and weights; methods return the name of the tensor that they make.

    The same calls with the same seed give the same bytes.
    """

    def __init__(self, name: str, seed: int) -> None:
        self._model = helper.make_model(
            helper.make_graph([], name, [], []),
            opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION,
            producer_name="cotenant",
        )  # fmt: skip
        self._rng = np.random.default_rng(seed)
        self._shared: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._n = 0

    def input(
        self, name: str, shape: Sequence[int | str], kind: int = FLOAT, below: int | None = None
    ) -> str:
        """A graph input; `below` is the exclusive upper bound of valid integers (the lower one is 0).

        It is kept in the file as metadata `cotenant.range.NAME` = "0,below".
        """
        self._model.graph.input.append(helper.make_tensor_value_info(name, kind, list(shape)))
        if below is not None:
            self._model.metadata_props.add(key=f"cotenant.range.{name}", value=f"0,{below}")
        return name

    def output(self, value: str, name: str, shape: Sequence[int | str]) -> None:
        """Give `value` out under `name`."""
        self._model.graph.node.append(helper.make_node("Identity", [value], [name]))
        self._model.graph.output.append(helper.make_tensor_value_info(name, FLOAT, list(shape)))

    def model(self) -> ModelProto:
        """The model as written so far."""
        return self._model

    # --- nodes and constants ----------------------------------------------------------------------

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """One node with one output."""
        result = self._fresh(kind.lower())
        self._model.graph.node.append(helper.make_node(kind, list(inputs), [result], **attributes))
        return result

    def constant(self, values: NDArray[Any]) -> str:
        """A constant tensor of float32 or int64."""
        little = np.ascontiguousarray(values, values.dtype.newbyteorder("<")).reshape(values.shape)
        if little.nbytes > SHARED_BYTES:
            return self._initializer(little)
        key = (little.dtype.str, little.shape, little.tobytes())
        if key not in self._shared:
            self._shared[key] = self._initializer(little)
        return self._shared[key]

    def ints(self, *values: int) -> str:
        """A constant vector of int64."""
        return self.constant(np.asarray(values, np.int64))

    def scalar(self, value: float) -> str:
        """A constant float32 of rank 0."""
        return self.constant(np.asarray(value, np.float32))

    def random(self, shape: Sequence[int], scale: float) -> str:
        """A normal float32 weight with the given standard deviation."""
        values = self._rng.standard_normal(shape, np.float32)
        values *= np.float32(scale)
        return self.constant(values)

    def _initializer(self, values: NDArray[Any]) -> str:
        name = self._fresh("const")
        tensor = self._model.graph.initializer.add(name=name, dims=values.shape)
        tensor.data_type = helper.np_dtype_to_tensor_dtype(values.dtype.newbyteorder("="))
        tensor.raw_data = values.tobytes()
        return name

    def _fresh(self, stem: str) -> str:
        self._n += 1
        return f"{stem}_{self._n}"

    # --- layers -----------------------------------------------------------------------------------

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

"""What a run of an ONNX graph must do, from the file alone: the prior for models that never ran here.

Shapes come from ONNX shape inference with the variant's sizes filled in. Large weights are left out of it:
their shapes are enough, and inference copies the model twice. What inference does not reach counts nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import onnx
from onnx import TensorProto

from cotenant.domain import ModelMetadata, Variant
from cotenant.execute.model import EXAMPLE_SIZE
from cotenant.execute.onnx_file import parse
from cotenant.execute.operators import cost
from cotenant.profile.records import Cost
from cotenant.profile.segments import add

LARGE = 1024
"""Elements from which an initializer is a weight rather than a shape."""


class Graph:
    """A model's graph without its large weights. Reading it blocks as `onnx_file.parse` does."""

    def __init__(self, path: Path, metadata: ModelMetadata) -> None:
        self._metadata = metadata
        self._model = parse(path)
        graph = self._model.graph
        self._weights = {t.name: _bytes(t.data_type, t.dims) for t in graph.initializer}
        large = [t for t in graph.initializer if math.prod(t.dims) >= LARGE]
        declared = {value.name for value in graph.input}
        for tensor in large:
            if tensor.name not in declared:
                graph.input.append(
                    onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
                )
        small = [t for t in graph.initializer if math.prod(t.dims) < LARGE]
        del graph.initializer[:]
        graph.initializer.extend(small)
        del graph.value_info[:]

    def cost(self, variant: Variant) -> Cost:
        """Of one run. All zeros where shapes cannot be inferred."""
        shapes = self._shapes(variant)
        costs = []
        for node in self._model.graph.node:
            inputs = [name for name in node.input if name]
            known = [shapes[name][1] for name in inputs if name in shapes]
            if len(known) < len(inputs) or any(name not in shapes for name in node.output if name):
                continue
            outputs = [name for name in node.output if name]
            costs.append(
                cost(
                    node.op_type,
                    known,
                    [shapes[name][1] for name in outputs],
                    sum(self._weights[name] for name in inputs if name in self._weights),
                    sum(_bytes(*shapes[name]) for name in inputs if name not in self._weights),
                    sum(_bytes(*shapes[name]) for name in outputs),
                )
            )
        return add(costs)

    def _shapes(self, variant: Variant) -> dict[str, tuple[int, tuple[int, ...]]]:
        """Element type and shape of every tensor that inference reached."""
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        self._fill_in(model.graph, variant)
        try:
            model = onnx.shape_inference.infer_shapes(model, data_prop=True)
        except Exception:  # of protobuf and of the checker's own: the graph then says nothing
            return {}
        graph = model.graph
        shapes = {t.name: (t.data_type, tuple(t.dims)) for t in graph.initializer}
        for value in (*graph.input, *graph.value_info, *graph.output):
            kind = value.type.tensor_type
            dims = kind.shape.dim
            if kind.HasField("shape") and all(dim.HasField("dim_value") for dim in dims):
                shapes[value.name] = (kind.elem_type, tuple(dim.dim_value for dim in dims))
        return shapes

    def _fill_in(self, graph: onnx.GraphProto, variant: Variant) -> None:
        specs = {spec.name: spec for spec in self._metadata.inputs}
        sizes = dict(variant.axes)
        for value in graph.input:
            spec = specs.get(value.name)
            for index, axis in enumerate(spec.axes if spec is not None else ()):
                if axis is not None:
                    dim = value.type.tensor_type.shape.dim[index]
                    batch = self._metadata.batched and index == 0
                    dim.dim_value = variant.rows if batch else sizes.get(axis, EXAMPLE_SIZE)
        for value in graph.output:  # inferred, not declared: declared symbols would stand in the way
            value.type.tensor_type.ClearField("shape")


def _bytes(data_type: int, dims: Iterable[int]) -> float:
    if data_type in (TensorProto.STRING, TensorProto.UNDEFINED):
        return 0.0
    itemsize = onnx.helper.tensor_dtype_to_np_dtype(data_type).itemsize
    return float(math.prod(dims) * itemsize)

"""Reading a `.onnx` file that nobody vouches for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx
from onnx import TensorProto

from cotenant.execute.onnx_header import without_weights


def inside(path: Path, root: Path | None) -> Path:
    """The file with links followed. Raises ValueError when it is outside `root` or does not exist."""
    resolved = path.resolve()
    if root is not None and not resolved.is_relative_to(root.resolve()):
        raise ValueError(f"lies outside of the model folder {root}; move it there")
    if not resolved.is_file():
        raise ValueError("no such file")
    return resolved


def parse(path: Path) -> onnx.ModelProto:
    """Read the graph, neither its external data nor the contents of its large initializers. Raises ValueError
    with the reason when it cannot be read."""
    try:
        model = onnx.ModelProto.FromString(without_weights(path))
        if not model.graph.node and not model.graph.output:
            raise ValueError("it holds no graph")
        if any(not has_shape(value) for value in model.graph.output):
            model = onnx.shape_inference.infer_shapes(model)
    except Exception as error:  # protobuf raises types of its own
        raise ValueError(f"is no ONNX model that can be read: {error}") from error
    return model


# --- external data --------------------------------------------------------------------------------


def check_external(model: onnx.ModelProto, folder: Path) -> int:
    """Every external tensor must be a file below the model's own folder, links followed. Returns how many
    bytes these files have."""
    sizes: dict[Path, int] = {}
    for tensor in _tensors(model):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
        absolute = PurePosixPath(location).is_absolute() or PureWindowsPath(location).anchor
        parts = re.split(r"[/\\]", location)
        if not location or absolute or ".." in parts:
            raise ValueError(
                f"tensor '{tensor.name}' keeps its data in '{location}'; expected a relative path inside "
                "the folder of the model, without '..'"
            )
        target = (folder / location).resolve()
        if not target.is_relative_to(folder):
            raise ValueError(
                f"tensor '{tensor.name}' keeps its data in '{location}', a link out of its folder"
            )
        if not target.is_file():
            raise ValueError(f"the data of tensor '{tensor.name}' is missing: no file '{location}' beside it")
        sizes[target] = target.stat().st_size
    return sum(sizes.values())


def _tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    graphs = [model.graph]
    nodes = [node for function in model.functions for node in function.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
            nodes.extend(graph.node)
            continue
        for attribute in nodes.pop().attribute:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            if attribute.HasField("g"):
                graphs.append(attribute.g)
            graphs.extend(attribute.graphs)


def has_shape(value: onnx.ValueInfoProto) -> bool:
    """Whether the file declares a shape, even one without dimensions."""
    return bool(value.type.tensor_type.HasField("shape"))

"""What a `.onnx` file says of itself: tensors, dynamic axes, batch axis, valid ranges.

How axes are found. A dimension is dynamic when the file gives no number for it. Its name is the file's
symbol, else `INPUT:DIMENSION`. The batch axis is dimension 0 where it is dynamic in every input and output,
has one name in all inputs that name it, is nowhere else, and is not declared in `buckets`; without it a run
takes one request. Every other dynamic axis is padded only if `buckets` declares it (a promise that zeros
behind the end do not change the answer). An undeclared axis is never padded: it is absent from
`ModelSpec.axis_buckets`, and the executor runs requests of unlike sizes one after the other, exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx
from msgspec import structs
from onnx import TensorProto

from cotenant.domain import ModelMetadata, TensorSpec, version_of
from cotenant.execute.model import NAME, ModelSettings, batch_axis, make_spec, with_batch
from cotenant.execute.onnx_file import check_external, has_shape, inside, parse

PLATFORM = "onnxruntime_onnx"
RANGE_KEY = "cotenant.range."
DATATYPES: dict[int, str] = {
    TensorProto.BOOL: "BOOL",
    TensorProto.UINT8: "UINT8",
    TensorProto.UINT16: "UINT16",
    TensorProto.UINT32: "UINT32",
    TensorProto.UINT64: "UINT64",
    TensorProto.INT8: "INT8",
    TensorProto.INT16: "INT16",
    TensorProto.INT32: "INT32",
    TensorProto.INT64: "INT64",
    TensorProto.FLOAT16: "FP16",
    TensorProto.FLOAT: "FP32",
    TensorProto.DOUBLE: "FP64",
    TensorProto.STRING: "BYTES",
}
"""V2 name of every element type that ONNX Runtime exchanges with numpy."""


def inspect(path: Path, settings: ModelSettings, root: Path | None = None) -> ModelMetadata:
    """Read what `path` says of itself, without its weights' external files and without a session; its
    `memory_bytes` is the size of all its files.

    `root`: the folder the file must lie in. Raises ValueError naming the file and the reason: not a model,
    outside `root`, external data outside the model's folder, a tensor that cannot be served, bad settings.
    Blocks for the time it takes to parse the file.
    """
    try:
        if NAME.fullmatch(settings.name) is None:
            raise ValueError(f"the name {settings.name!r} may hold letters, digits, '.', '_' and '-' only")
        resolved = inside(path, root)
        model = parse(resolved)
        memory_bytes = resolved.stat().st_size + check_external(model, resolved.parent)
        return structs.replace(_metadata(model, settings), memory_bytes=memory_bytes)
    except ValueError as error:
        raise ValueError(f"model file {path.name}: {error}") from error


# --- tensors and axes -----------------------------------------------------------------------------


def _metadata(model: onnx.ModelProto, settings: ModelSettings) -> ModelMetadata:
    ranges = {
        p.key.removeprefix(RANGE_KEY): p.value for p in model.metadata_props if p.key.startswith(RANGE_KEY)
    }
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [_tensor(value, "input", ranges) for value in model.graph.input if value.name not in weights]
    outputs = [_tensor(value, "output", {}) for value in model.graph.output]
    if not inputs:
        raise ValueError("it has no inputs")
    batch = batch_axis(inputs, outputs, set(settings.buckets))
    batched = batch is not None
    if batched:
        inputs = [with_batch(spec) for spec in inputs]
        outputs = [with_batch(spec) for spec in outputs]
    return ModelMetadata(
        name=settings.name,
        platform=PLATFORM,
        versions=(version_of(settings.name),),
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        batched=batched,
        spec=make_spec(settings, batched, inputs, outputs),
    )


def _tensor(value: onnx.ValueInfoProto, what: str, ranges: Mapping[str, str]) -> TensorSpec:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        raise ValueError(f"{what} '{value.name}' is a {kind}; only tensors can be served")
    datatype = DATATYPES.get(value.type.tensor_type.elem_type)
    if datatype is None:
        element = TensorProto.DataType.Name(value.type.tensor_type.elem_type)
        raise ValueError(f"{what} '{value.name}' has element type {element}, which cannot be served")
    if not has_shape(value):
        raise ValueError(f"{what} '{value.name}' declares no shape; export it with one")
    shape: list[int] = []
    axes: list[str | None] = []
    for index, dim in enumerate(value.type.tensor_type.shape.dim):
        fixed = dim.HasField("dim_value") and dim.dim_value >= 0
        shape.append(dim.dim_value if fixed else -1)
        axes.append(None if fixed else dim.dim_param or f"{value.name}:{index}")
    low, high = _range(value.name, ranges.get(value.name))
    return TensorSpec(
        name=value.name, datatype=datatype, shape=tuple(shape), axes=tuple(axes), low=low, high=high
    )


def _range(name: str, text: str | None) -> tuple[int | None, int | None]:
    if text is None:
        return None, None
    try:
        low, high = (int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"metadata {RANGE_KEY}{name} is {text!r}; expected 'LOW,HIGH', integers") from None
    if low >= high:
        raise ValueError(f"metadata {RANGE_KEY}{name} is {text!r}; LOW must be below HIGH")
    return low, high

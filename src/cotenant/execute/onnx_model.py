"""What a `.onnx` file says of itself: tensors, dynamic axes, batch axis, valid ranges.

How axes are found. A dimension is dynamic when the file gives no number for it. Its name is the file's
symbol, else `INPUT:DIMENSION`. The batch axis is dimension 0 where it is dynamic in every input and output,
has one name in all inputs that name it, is nowhere else, and is not declared in `buckets`; without it a run
takes one request. Every other dynamic axis is padded only if `buckets` declares it (a promise that zeros
behind the end do not change the answer). An undeclared axis is never padded: it is absent from
`ModelSpec.axis_buckets`, and the executor runs requests of unlike sizes one after the other, exactly.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from cotenant.domain import JobClass, ModelMetadata, ModelSpec, TensorSpec, Variant
from cotenant.execute.onnx_file import check_external, has_shape, inside, parse

PLATFORM = "onnxruntime_onnx"
RANGE_KEY = "cotenant.range."
EXAMPLE_SIZE = 16
"""Size given to an undeclared dynamic axis in example inputs (warming, profiling)."""

NAME = re.compile(r"[A-Za-z0-9._-]+")

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

NUMPY: dict[str, Any] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
    "BYTES": np.object_,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """How a model is to be served, from its `[[model]]` table."""

    name: str
    """Letters, digits, `.`, `_`, `-`."""
    slo_ns: int | None = None
    """Span from arrival by which an answer is due (ns); None: best effort."""
    slo_percentile: float = 0.99
    """Share of requests (0..1) meant to meet it."""
    job_class: JobClass = JobClass.STANDARD
    """Scheduling class."""
    max_batch: int = 8
    """Most rows of one run; 1 where the model has no batch axis."""
    buckets: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Sizes to which each named axis is padded."""


def inspect(path: Path, settings: ModelSettings, root: Path | None = None) -> ModelMetadata:
    """Read what `path` says of itself, without its weights' external files and without a session.

    `root`: the folder the file must lie in. Raises ValueError naming the file and the reason: not a model,
    outside `root`, external data outside the model's folder, a tensor that cannot be served, bad settings.
    Blocks for the time it takes to parse the file.
    """
    try:
        if NAME.fullmatch(settings.name) is None:
            raise ValueError(f"the name {settings.name!r} may hold letters, digits, '.', '_' and '-' only")
        resolved = inside(path, root)
        model = parse(resolved)
        check_external(model, resolved.parent)
        return _metadata(model, settings)
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
    batch = _batch_axis(inputs, outputs, set(settings.buckets))
    batched = batch is not None
    if batched:
        inputs = [_with_batch(spec) for spec in inputs]
        outputs = [_with_batch(spec) for spec in outputs]
    return ModelMetadata(
        name=settings.name,
        platform=PLATFORM,
        versions=("1",),
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        batched=batched,
        spec=_spec(settings, batched, inputs, outputs),
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


def _batch_axis(
    inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], declared: set[str]
) -> str | None:
    """The name of the batch axis, or None; see the module's head."""
    first = [spec.axes[0] if spec.axes else None for spec in inputs]
    named = {axis for spec, axis in zip(inputs, first, strict=True) if axis != f"{spec.name}:0"}
    if None in first or len(named) > 1 or any(axis in declared for axis in first):
        return None
    elsewhere = {axis for spec in (*inputs, *outputs) for axis in spec.axes[1:]}
    if any(axis in elsewhere for axis in first):
        return None
    for spec in outputs:
        if not spec.axes or spec.axes[0] is None or spec.axes[0] in declared | elsewhere:
            return None
    return first[0] if not named else next(iter(named))


def _with_batch(spec: TensorSpec) -> TensorSpec:
    return TensorSpec(
        name=spec.name,
        datatype=spec.datatype,
        shape=spec.shape,
        axes=("batch", *spec.axes[1:]),
        low=spec.low,
        high=spec.high,
    )


def _spec(
    settings: ModelSettings, batched: bool, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> ModelSpec:
    if settings.max_batch < 1:
        raise ValueError(f"max_batch is {settings.max_batch}; expected at least 1")
    dynamic = {axis for spec in inputs for axis in spec.axes[batched:] if axis is not None}
    for declared, sizes in settings.buckets.items():
        if declared not in dynamic:
            known = ", ".join(sorted(dynamic)) or "none"
            raise ValueError(f"buckets names axis '{declared}'; the dynamic axes of the file are: {known}")
        if not sizes or min(sizes) < 1:
            raise ValueError(f"buckets of axis '{declared}' are {list(sizes)}; expected sizes of at least 1")
    if settings.buckets:
        for spec in outputs:
            for axis in spec.axes[batched:]:
                if axis is not None and axis not in dynamic:
                    raise ValueError(
                        f"output '{spec.name}' has the dynamic axis '{axis}', which is no axis of an input, "
                        "so it cannot be cut back after padding; remove the buckets or name the axis"
                    )
    max_batch = settings.max_batch if batched else 1
    return ModelSpec(
        name=settings.name,
        slo_ns=settings.slo_ns,
        slo_percentile=settings.slo_percentile,
        job_class=settings.job_class,
        max_batch=max_batch,
        row_buckets=row_buckets(max_batch),
        axis_buckets=tuple((axis, tuple(sorted(set(s)))) for axis, s in sorted(settings.buckets.items())),
    )


def row_buckets(max_batch: int) -> tuple[int, ...]:
    """Powers of two up to `max_batch`, which is always the last."""
    sizes = [1 << k for k in range(max_batch.bit_length()) if 1 << k < max_batch]
    return (*sizes, max_batch)


# --- example inputs -------------------------------------------------------------------------------


def example_inputs(
    metadata: ModelMetadata, variant: Variant, random: np.random.Generator
) -> dict[str, np.ndarray[Any, Any]]:
    """Valid inputs of exactly the shape of `variant`: integers inside the stated range (0 where none is
    stated), other numbers standard normal, an undeclared axis of size `EXAMPLE_SIZE`."""
    sizes = dict(variant.axes)
    inputs: dict[str, np.ndarray[Any, Any]] = {}
    for spec in metadata.inputs:
        shape = [
            size if axis is None else sizes.get(axis, EXAMPLE_SIZE)
            for size, axis in zip(spec.shape, spec.axes, strict=True)
        ]
        if metadata.batched:
            shape[0] = variant.rows
        inputs[spec.name] = _example(spec, shape, random)
    return inputs


def _example(spec: TensorSpec, shape: Sequence[int], random: np.random.Generator) -> np.ndarray[Any, Any]:
    dtype = np.dtype(NUMPY[spec.datatype])
    if dtype.kind in "iu":
        if spec.low is None or spec.high is None:
            return np.zeros(shape, dtype)
        return random.integers(spec.low, spec.high, shape).astype(dtype)
    if dtype.kind == "f":
        return random.standard_normal(shape).astype(dtype)
    if dtype.kind == "O":
        return np.full(shape, b"", dtype)
    return np.ones(shape, dtype)

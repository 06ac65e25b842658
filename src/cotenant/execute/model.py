"""What executors share about a model: its settings, its tensors' types, its batch axis, example inputs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cotenant.domain import JobClass, ModelMetadata, ModelSpec, TensorSpec, Variant

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

EXAMPLE_SIZE = 16
"""Size given to an undeclared dynamic axis in example inputs (warming, profiling)."""

NAME = re.compile(r"[A-Za-z0-9._-]+(@[0-9]+)?")
"""Of a model; behind `@` the version of one of a repository."""


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


def batch_axis(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], declared: set[str]) -> str | None:
    """The name of the batch axis, or None: dimension 0 where it is dynamic in every input and output, has one
    name in all inputs that name it, is nowhere else, and is not `declared` in buckets."""
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


def with_batch(spec: TensorSpec) -> TensorSpec:
    return TensorSpec(
        name=spec.name,
        datatype=spec.datatype,
        shape=spec.shape,
        axes=("batch", *spec.axes[1:]),
        low=spec.low,
        high=spec.high,
    )


def make_spec(
    settings: ModelSettings, batched: bool, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> ModelSpec:
    """The scheduler's view of a model with these tensors. Raises ValueError on settings that do not fit."""
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

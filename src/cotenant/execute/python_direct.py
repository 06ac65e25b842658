"""A Python model called directly, without a server: the same checks, batches and results."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from cotenant.domain import Axes, ModelMetadata, TensorSpec
from cotenant.execute.batch import Array, Batcher
from cotenant.execute.model import NUMPY
from cotenant.execute.python_metadata import metadata_of
from cotenant.execute.python_model import LONE_OUTPUT, Declaration, PythonModel


class Servable(PythonModel):
    """What `cotenant.model` makes of a function or class: it can be served, and called."""

    def __init__(self, target: Callable[..., Any] | type, declaration: Declaration) -> None:
        super().__init__(target, declaration)
        self._metadata: ModelMetadata | None = None
        self._signature = inspect.Signature(
            [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in self.parameters]
        )

    def __call__(self, *arrays: Any, **named: Any) -> Any:
        """The answer to a batch, or to a single row (then without the axis of rows): what a server would
        answer, padded and cut as there. A dict of arrays, or the array if the model gives just one. Raises
        TypeError and ValueError for what a server would refuse, and whatever the model raises."""
        given = self._signature.bind(*arrays, **named).arguments
        metadata = self._metadata = self._metadata or metadata_of(self, self.declaration.settings)
        inputs = {spec.name: _converted(spec, given[spec.name]) for spec in self.inputs}
        lone = metadata.batched and all(inputs[s.name].ndim == len(s.shape) - 1 for s in self.inputs)
        if lone:
            inputs = {name: array[None] for name, array in inputs.items()}
        variant = metadata.spec.bucket(_rows(metadata, inputs), _axes(metadata, inputs))
        instance = self.own_instance()

        def run(feed: Mapping[str, Array]) -> list[Array]:
            found, _ = self.run(instance, [feed[name] for name in self.parameters], metadata.outputs)
            return list(found.values())

        (answer,) = Batcher(metadata, np.empty).run(variant, [inputs], run)
        result = {name: array[0] if lone else array for name, array in answer.items()}
        return result[LONE_OUTPUT] if list(result) == [LONE_OUTPUT] else result


def _converted(spec: TensorSpec, value: Any) -> Array:
    """Lists and numbers become what the model takes; an array of another type is refused, as by a server."""
    dtype = np.dtype(NUMPY[spec.datatype])
    if not isinstance(value, np.ndarray | np.generic):
        return np.asarray(value, dtype)
    array = np.asarray(value)
    if array.dtype.kind in "US" and dtype.kind == "O":
        return array.astype(object)
    if array.dtype != dtype:
        raise TypeError(f"input {spec.name!r} is {array.dtype}; expected {dtype}")
    return array


def _rows(metadata: ModelMetadata, inputs: Mapping[str, Array]) -> int:
    """Rows of the batch. Raises ValueError where shapes do not fit."""
    for spec in metadata.inputs:
        shape = inputs[spec.name].shape
        fits = len(shape) == len(spec.shape) and all(
            size == wanted or (wanted == -1 and size > 0)
            for size, wanted in zip(shape, spec.shape, strict=True)
        )
        if not fits:
            raise ValueError(f"input {spec.name!r} has shape {list(shape)}; expected {list(spec.shape)}")
    rows = {len(inputs[spec.name]) for spec in metadata.inputs} if metadata.batched else {1}
    if len(rows) > 1:
        raise ValueError(f"inputs have unlike numbers of rows: {sorted(rows)}")
    return rows.pop()


def _axes(metadata: ModelMetadata, inputs: Mapping[str, Array]) -> Axes:
    """The buckets that hold the inputs' axes. Raises ValueError where sizes differ or are too large."""
    sizes: dict[str, int] = {}
    for spec in metadata.inputs:
        for axis, size in zip(spec.axes, inputs[spec.name].shape, strict=True):
            if axis is not None and sizes.setdefault(axis, size) != size:
                raise ValueError(f"axis {axis!r} is {size} in input {spec.name!r}, but {sizes[axis]} before")
    axes = []
    for axis, buckets in metadata.spec.axis_buckets:
        bucket = next((bucket for bucket in buckets if sizes[axis] <= bucket), None)
        if bucket is None:
            raise ValueError(f"axis {axis!r} is {sizes[axis]}, but its largest bucket is {buckets[-1]}")
        axes.append((axis, bucket))
    return tuple(sorted(axes))

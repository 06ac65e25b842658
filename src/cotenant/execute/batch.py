"""From requests to one padded batch, and from its outputs back to the requests'.

Rows are padded with copies of the last real row, which is valid whatever the model demands of its inputs;
declared axes with zeros (moved into the input's stated range). An undeclared dynamic axis is never padded:
requests of unlike sizes form groups, and each group is a run of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from cotenant.domain import ModelMetadata, TensorSpec, Variant
from cotenant.execute.model import NUMPY
from cotenant.ports import Tensors

Array = np.ndarray[Any, Any]
RunModel = Callable[[Mapping[str, Array]], Sequence[Array]]
"""Runs the model on named inputs; outputs in the order of the metadata."""

Allocate = Callable[[tuple[int, ...], Any], Array]
"""Makes an array of a shape and element type."""


class Batcher:
    """Assembles and cuts the batches of one model on one lane, in buffers of its own.

    Not thread-safe; the buffers are overwritten by the next batch of the same variant.
    """

    def __init__(self, metadata: ModelMetadata, allocate: Allocate | None = None) -> None:
        """`allocate` makes the buffers (by default plain memory); with it every batch is copied to them."""
        self._metadata = metadata
        self._always_copies = allocate is not None
        self._allocate = allocate or np.empty
        self._batched = metadata.batched
        self._padded = frozenset(axis for axis, _ in metadata.spec.axis_buckets)
        self._exact = tuple(
            (spec.name, index)
            for spec in metadata.inputs
            for index, axis in enumerate(spec.axes)
            if axis is not None and axis not in self._padded and not (metadata.batched and index == 0)
        )
        self._buffers: dict[tuple[Variant, str], Array] = {}

    def run(self, variant: Variant, inputs: Sequence[Tensors], run: RunModel) -> list[dict[str, Array]]:
        """Outputs per request, in order; each is valid for as long as it is held."""
        if len(inputs) == 1:
            return self._group(variant, inputs, run)
        results: list[dict[str, Array]] = [{} for _ in inputs]
        groups = self._groups(inputs)
        for members in groups:
            chosen = [inputs[i] for i in members]
            fit = variant if len(groups) == 1 else self._smaller(variant, chosen)
            answers = self._group(fit, chosen, run)
            for i, answer in zip(members, answers, strict=True):
                results[i] = answer
        return results

    def _smaller(self, variant: Variant, inputs: Sequence[Tensors]) -> Variant:
        """The smallest variant of the same axes that holds the rows of `inputs`."""
        first = self._metadata.inputs[0].name
        rows = sum(tensors[first].shape[0] for tensors in inputs) if self._batched else 1
        return self._metadata.spec.bucket(rows, variant.axes)

    def _groups(self, inputs: Sequence[Tensors]) -> list[list[int]]:
        """Indices of the requests that can share a run."""
        if not self._batched:
            return [[i] for i in range(len(inputs))]
        if not self._exact:
            return [list(range(len(inputs)))]
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, tensors in enumerate(inputs):
            groups.setdefault(tuple(tensors[name].shape[d] for name, d in self._exact), []).append(i)
        return list(groups.values())

    def _group(self, variant: Variant, inputs: Sequence[Tensors], run: RunModel) -> list[dict[str, Array]]:
        return self.answers(variant, inputs, run(self.feed(variant, inputs)))

    def feed(self, variant: Variant, inputs: Sequence[Tensors]) -> dict[str, Array]:
        """The padded batch of requests that can share a run. A lone request of just the right shape is
        handed on as it is, unless everything must lie in the batcher's own memory."""
        sizes = dict(variant.axes)
        feed: dict[str, Array] = {}
        for spec in self._metadata.inputs:
            parts = [tensors[spec.name] for tensors in inputs]
            target = self._target(spec, parts, variant.rows, sizes)
            if len(parts) == 1 and parts[0].shape == target and not self._always_copies:
                feed[spec.name] = parts[0] if spec.datatype != "BYTES" else _as_text(parts[0])
            else:
                feed[spec.name] = self._assemble(variant, spec, parts, target)
        return feed

    def answers(
        self, variant: Variant, inputs: Sequence[Tensors], outputs: Sequence[Array]
    ) -> list[dict[str, Array]]:
        """The outputs of a run cut into those of its requests; views of `outputs`."""
        if not self._batched:
            rows = [1] * len(inputs)
        else:
            first = self._metadata.inputs[0].name
            rows = [tensors[first].shape[0] for tensors in inputs]
        return self._cut(outputs, inputs, rows, whole=sum(rows) == variant.rows and len(rows) == 1)

    def _target(
        self, spec: TensorSpec, parts: Sequence[Array], rows: int, sizes: Mapping[str, int]
    ) -> tuple[int, ...]:
        """Shape of the padded batch. An axis that is not of the variant keeps the requests' own size."""
        shape = list(parts[0].shape)
        for index, axis in enumerate(spec.axes):
            if axis in self._padded and axis in sizes:
                shape[index] = sizes[axis]
        if self._batched:
            shape[0] = rows
        return tuple(shape)

    def _assemble(
        self, variant: Variant, spec: TensorSpec, parts: Sequence[Array], target: tuple[int, ...]
    ) -> Array:
        if spec.datatype == "BYTES":
            parts = [_as_text(part) for part in parts]
        key = (variant, spec.name)
        buffer = self._buffers.get(key)
        if buffer is None or buffer.shape != target:
            buffer = self._buffers[key] = self._allocate(target, NUMPY[spec.datatype])
        pad = _padding(spec)
        if not self._batched:
            _place(buffer, parts[0], pad)
            return buffer
        row = 0
        for part in parts:
            end = row + part.shape[0]
            _place(buffer[row:end], part, pad)
            row = end
        buffer[row:] = buffer[row - 1]
        return buffer

    def _cut(
        self, outputs: Sequence[Array], inputs: Sequence[Tensors], rows: Sequence[int], *, whole: bool
    ) -> list[dict[str, Array]]:
        results: list[dict[str, Array]] = []
        row = 0
        for tensors, n in zip(inputs, rows, strict=True):
            own = self._own_sizes(tensors) if self._padded else {}
            answer: dict[str, Array] = {}
            for spec, output in zip(self._metadata.outputs, outputs, strict=True):
                if self._batched and not whole:
                    output = output[row : row + n]
                if own:
                    output = _cut_axes(output, spec, own)
                answer[spec.name] = output
            results.append(answer)
            row += n
        return results

    def _own_sizes(self, tensors: Tensors) -> dict[str, int]:
        """The request's own size of every padded axis."""
        own: dict[str, int] = {}
        for spec in self._metadata.inputs:
            for axis, size in zip(spec.axes, tensors[spec.name].shape, strict=True):
                if axis in self._padded:
                    own[str(axis)] = size
        return own


def _cut_axes(output: Array, spec: TensorSpec, own: Mapping[str, int]) -> Array:
    cuts = [slice(own.get(axis or "")) for axis in spec.axes]
    return output[tuple(cuts)]


def _place(buffer: Array, part: Array, pad: Any) -> None:
    """Copy `part` to the corner of `buffer`; fill what is beyond it."""
    if part.shape == buffer.shape:
        buffer[...] = part
        return
    buffer[...] = pad
    buffer[tuple(slice(size) for size in part.shape)] = part


def _padding(spec: TensorSpec) -> Any:
    if spec.datatype == "BYTES":
        return ""
    if spec.low is None or spec.high is None:
        return 0
    return min(max(0, spec.low), spec.high - 1)


def _as_text(array: Array) -> Array:
    """ONNX Runtime wants str where the front end has bytes."""
    text = np.empty(array.shape, np.object_)
    for index, value in np.ndenumerate(array):
        text[index] = value.decode() if isinstance(value, bytes) else value
    return text

"""What a Python model gives, and what its users see of it.

How this works. Outputs that are not declared are found by running the model on examples: once as they are,
and once with each variable axis of another size, to see which axes of the outputs follow. How often a
generator yields on its example says in how many segments the model runs.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from msgspec import structs

from cotenant.domain import ModelMetadata, TensorSpec, Variant
from cotenant.execute.batch import Array
from cotenant.execute.model import EXAMPLE_SIZE, ModelSettings, example_inputs, make_spec
from cotenant.execute.python_model import PythonModel

PLATFORM = "python"


def metadata_of(model: PythonModel, settings: ModelSettings) -> ModelMetadata:
    """The model served with these settings. Runs it a few times; raises ValueError, and what it raises."""
    declaration = model.declaration
    rows = min(2, settings.max_batch) if declaration.batched else 1
    n_segments = 1
    found: Mapping[str, Array] = {}
    if declaration.outputs is None or model.in_segments:
        found, n_segments = _run(model, settings, rows, {})
    if declaration.outputs is not None:
        outputs = tuple(model.tensor(name, *entry) for name, entry in declaration.outputs.items())
    else:
        outputs = _outputs(model, settings, rows, found)
    if not outputs:
        raise ValueError(f"model {model.name!r}: it gives no outputs")
    if n_segments > 1 and declaration.batched:
        _check_padded(model, settings)
    return ModelMetadata(
        name=settings.name,
        platform=PLATFORM,
        versions=("1",),
        inputs=model.inputs,
        outputs=outputs,
        batched=declaration.batched,
        spec=structs.replace(
            make_spec(settings, declaration.batched, model.inputs, outputs), n_segments=n_segments
        ),
        memory_bytes=model.instance_bytes,
    )


def _check_padded(model: PythonModel, settings: ModelSettings) -> None:
    """Requests of unlike sizes cannot share a run unless they are padded, and a batch in segments is one."""
    for spec in model.inputs:
        for axis in spec.axes[1:]:
            if axis is not None and axis not in settings.buckets:
                raise ValueError(
                    f"model {model.name!r} runs in segments, so the variable axis {axis!r} of "
                    f"{spec.name!r} needs buckets (sizes to which it is padded)"
                )


def example_of(model: PythonModel, rows: int, sizes: Mapping[str, int]) -> dict[str, Array]:
    """Valid inputs with so many rows and axes of these sizes: its own example, repeated or cut; without one,
    zeros for integers and standard normal numbers."""
    batched = model.declaration.batched
    shapes = ModelMetadata(
        name=model.name,
        platform=PLATFORM,
        versions=("1",),
        inputs=model.inputs,
        outputs=(),
        batched=batched,
        spec=make_spec(ModelSettings(name=model.name, max_batch=rows), batched, model.inputs, ()),
    )
    variant = Variant(model.name, rows, tuple(sizes.items()))
    made = example_inputs(shapes, variant, np.random.default_rng(0))
    for name, known in model.examples.items():
        for index, size in enumerate(made[name].shape):
            known = known.take(np.arange(size) % known.shape[index], index)
        made[name] = known.astype(made[name].dtype)
    return made


def _run(
    model: PythonModel, settings: ModelSettings, rows: int, sizes: Mapping[str, int]
) -> tuple[dict[str, Array], int]:
    """Outputs by name and number of segments on an example, its axes of the smallest sizes unless given."""
    smallest = {axis: buckets[0] for axis, buckets in settings.buckets.items()}
    inputs = example_of(model, rows, {**smallest, **sizes})
    return model.run(model.own_instance(), [inputs[name] for name in model.parameters], None)


def _outputs(
    model: PythonModel, settings: ModelSettings, rows: int, found: Mapping[str, Array]
) -> tuple[TensorSpec, ...]:
    """Types and shapes of what came of an example; axes that follow an input's are named after it."""
    first = model.declaration.batched
    for name, array in found.items():
        if first and array.shape[:1] != (rows,):
            raise ValueError(
                f"model {model.name!r}: output {name!r} has shape {list(array.shape)} for {rows} rows, but "
                "its first axis should be the rows; say batched=False if it takes one request at a time"
            )
    shapes: dict[str, list[int | str | None]] = {n: list(a.shape[first:]) for n, a in found.items()}
    for axis in sorted({axis for spec in model.inputs for axis in spec.axes[first:] if axis is not None}):
        was, size = _two_sizes(settings, axis)
        other, _ = _run(model, settings, rows, {axis: size})
        for name, array in found.items():
            if name not in other or other[name].ndim != array.ndim:
                raise ValueError(f"model {model.name!r}: output {name!r} depends on the size of {axis!r}")
            for index in range(len(shapes[name])):
                before, now = array.shape[first + index], other[name].shape[first + index]
                if now != before:
                    shapes[name][index] = axis if (before, now) == (was, size) else None
    return tuple(model.tensor(name, array.dtype, shapes[name]) for name, array in found.items())


def _two_sizes(settings: ModelSettings, axis: str) -> tuple[int, int]:
    """The size that an axis has in examples, and another that it may have."""
    buckets = settings.buckets.get(axis, (EXAMPLE_SIZE, EXAMPLE_SIZE + 1))
    return buckets[0], buckets[1] if len(buckets) > 1 else max(1, buckets[0] - 1)

"""Torch models from a user's own code: `torch.export` archives and factories.

Both can run any code when they are loaded (torch's loader may fall back to unpickling), so the configuration
must allow it. A factory is a function without arguments that returns `(module, inputs)`: an `nn.Module` and
example tensors by name, in the order of its arguments, the first dimension of each being rows.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cotenant.domain import TensorSpec
from cotenant.execute.torch.exported import flatten
from cotenant.execute.torch.model import TYPES, Blueprint, Whole
from cotenant.execute.user_code import find_attribute

ARCHIVE_MARKS = {"archive_format", "serialized_exported_program.json"}
"""Names of which an archive has one, by the version of torch."""
ROWS = 2
"""Rows at which a factory's module is tried, to see which outputs have them."""


def from_archive(path: Path) -> Blueprint:
    """A model saved by `torch.export.save`. Raises ValueError naming the file and the reason."""
    _check_kind(path)
    try:
        program: Any = torch.export.load(path)
        values = {node.name: node.meta.get("val") for node in program.graph.nodes}
        inputs = tuple(_spec(name, values[name]) for name in program.graph_signature.user_inputs)
        outputs = tuple(
            _spec(f"output_{n}", values.get(name))
            for n, name in enumerate(program.graph_signature.user_outputs)
        )
        return Blueprint(
            module=flatten(program.module()),
            inputs=inputs,
            outputs=outputs,
            platform="pytorch_export",
        )
    except Exception as error:
        raise ValueError(f"model file {path.name}: {str(error).partition(chr(10))[0]}") from error


def _check_kind(path: Path) -> None:
    """Raises ValueError where torch would only say that there is an error: what is no archive of its."""
    written_by = "expected what torch.export.save writes"
    if not zipfile.is_zipfile(path):
        raise ValueError(f"model file {path.name} is cut short or no archive; {written_by}")
    with zipfile.ZipFile(path) as file:
        names = {name.rpartition("/")[2] for name in file.namelist()}
    if not names & ARCHIVE_MARKS:
        raise ValueError(
            f"model file {path.name} is no exported program; {written_by}. Weights alone, as torch.save "
            "writes them, can be served as safetensors of a built-in architecture or by a factory"
        )


def from_factory(source: str, folder: Path) -> Blueprint:
    """`module:factory`, the module found in `folder` or among what is installed. Raises ValueError."""
    factory = find_attribute(source, folder)
    try:
        made = factory()
    except (Exception, SystemExit) as error:
        raise ValueError(f"{source}: {type(error).__name__}: {error}") from error
    if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module)):
        raise ValueError(f"{source}: a factory returns (nn.Module, example inputs by name)")
    body, examples = made
    if not (
        isinstance(examples, Mapping) and examples and all(isinstance(x, Tensor) for x in examples.values())
    ):
        raise ValueError(f"{source}: the example inputs must be tensors by name")
    flat = [name for name, x in examples.items() if x.dim() == 0]
    if flat:
        raise ValueError(f"{source}: example input {flat[0]!r} has no dimensions; the first should be rows")
    rows = [x[:1].repeat(ROWS, *(1,) * (x.dim() - 1)) for x in examples.values()]
    named = _tried(source, body, rows)
    return Blueprint(
        module=Whole(body),
        inputs=tuple(_batched(source, str(name), x) for name, x in examples.items()),
        outputs=tuple(_batched(source, str(name), x) for name, x in named.items()),
    )


def _tried(source: str, body: nn.Module, rows: list[Tensor]) -> Mapping[str, Tensor]:
    """What the module gives for its example inputs, by name."""
    try:
        with torch.inference_mode():
            found: Any = body.eval()(*rows)
    except Exception as error:
        shapes = ", ".join(str(list(x.shape)) for x in rows)
        raise ValueError(
            f"{source}: the module fails on its example inputs ({shapes}): {type(error).__name__}: {error}"
        ) from error
    if isinstance(found, Tensor):
        found = (found,)
    named = found if isinstance(found, Mapping) else None
    if isinstance(found, tuple | list):
        named = {f"output_{n}": x for n, x in enumerate(found)}
    if not named or not all(isinstance(x, Tensor) and x.dim() for x in named.values()):
        raise ValueError(
            f"{source}: the module gives {type(found).__name__}; expected a tensor, a tuple of tensors or "
            "tensors by name, each with rows as its first dimension"
        )
    return named


def _batched(source: str, name: str, tensor: Tensor) -> TensorSpec:
    try:
        datatype = _datatype(name, tensor.dtype)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    return TensorSpec(
        name=name,
        datatype=datatype,
        shape=(-1, *tensor.shape[1:]),
        axes=("batch", *(None for _ in tensor.shape[1:])),
    )


def _spec(name: str, value: Any) -> TensorSpec:
    """From a traced value, whose variable sizes are symbols."""
    if not hasattr(value, "dtype"):
        raise ValueError(f"'{name}' is no tensor")
    fixed = [isinstance(size, int) for size in value.shape]
    return TensorSpec(
        name=name,
        datatype=_datatype(name, value.dtype),
        shape=tuple(size if known else -1 for size, known in zip(value.shape, fixed, strict=True)),
        axes=tuple(None if known else str(size) for size, known in zip(value.shape, fixed, strict=True)),
    )


def _datatype(name: str, dtype: torch.dtype) -> str:
    found = TYPES.get(dtype)
    if found is None:
        raise ValueError(
            f"'{name}' has element type {dtype}, which cannot be served; it can take and give "
            f"{', '.join(TYPES.values())}"
        )
    return found

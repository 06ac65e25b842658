"""Weights from a safetensors file, for an architecture of the torch zoo.

The file holds tensors and text only, no code; which architecture they belong to stands in the configuration
or in the file's own metadata, under `architecture`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from cotenant.execute.torch.model import Blueprint
from cotenant.execute.torch.zoo import SMALL, ZOO, blueprint

KEY = "architecture"
"""Key of the architecture's name in a file's metadata."""
N_NAMED = 3
"""Most tensors that an error names of each kind."""


def from_weights(path: Path, architecture: str | None, dtype: torch.dtype | None = None) -> Blueprint:
    """The architecture (`architecture_of`) with the file's weights, converted to `dtype`, else to the
    architecture's own. Raises ValueError naming the file and what was expected."""
    name = architecture_of(path, architecture)
    made = _make(name, dtype)
    expected = made.module.state_dict()
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        _check(path, name, {key: tuple(tensor.shape) for key, tensor in expected.items()}, shapes)
        made.module.load_state_dict(load_file(path))
    except SafetensorError as error:
        raise ValueError(f"{path.name} cannot be read: {error}") from error
    return made


def architecture_of(path: Path, configured: str | None) -> str:
    """The configured name, else that in the file's metadata. Raises ValueError when it is not a model of the
    zoo, there is none, or the file is no safetensors file."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata: Mapping[str, str] = file.metadata() or {}
    except FileNotFoundError as error:
        raise ValueError(f"there is no file {path}") from error
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path.name} is not a safetensors file: {error}") from error
    name = configured or metadata.get(KEY)
    if not name:
        raise ValueError(
            f"{path.name} says no architecture in its metadata; give `architecture`, one of: {_known()}"
        )
    if name.removesuffix(SMALL) not in ZOO:
        raise ValueError(f"there is no architecture {name!r} for {path.name}; there are: {_known()}")
    return name


def save_weights(architecture: str, path: Path, *, seed: int = 0, dtype: torch.dtype | None = None) -> None:
    """Write the weights that `torch:ARCHITECTURE` has by this seed, in `dtype` or the architecture's own.

    The file says its architecture. Raises ValueError for one that the zoo has not."""
    weights = _make(architecture, dtype, seed).module.state_dict()
    save_file({key: tensor.contiguous() for key, tensor in weights.items()}, path, {KEY: architecture})


def _make(name: str, dtype: torch.dtype | None, seed: int = 0) -> Blueprint:
    return blueprint(name.removesuffix(SMALL), small=name.endswith(SMALL), seed=seed, dtype=dtype)


def _known() -> str:
    return f"{', '.join(sorted(ZOO))}; or NAME{SMALL}"


Shapes = Mapping[str, Sequence[int]]


def _check(path: Path, name: str, expected: Shapes, found: Shapes) -> None:
    """Raises ValueError unless the file has exactly the architecture's tensors."""
    missing = [key for key in expected if key not in found]
    unexpected = [key for key in found if key not in expected]
    misshapen = [
        f"{key} is {list(found[key])}, expected {list(expected[key])}"
        for key in expected
        if key in found and tuple(found[key]) != tuple(expected[key])
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    wrong = "; ".join(f"{len(keys)} {kind} ({_few(keys)})" for kind, keys in kinds.items() if keys)
    if wrong:
        raise ValueError(
            f"the tensors in {path.name} are not the {len(expected)} of architecture {name!r}: {wrong}"
        )


def _few(names: Sequence[str]) -> str:
    more = [f"and {len(names) - N_NAMED} more"] if len(names) > N_NAMED else []
    return ", ".join([*names[:N_NAMED], *more])

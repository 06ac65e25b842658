"""Where zoo models lie and how they get there."""

from __future__ import annotations

import difflib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from onnx import ModelProto

from cotenant.zoo import architectures

RECIPES: dict[str, Callable[[], ModelProto]] = {
    "resnet18": architectures.resnet18,
    "mobilenet": architectures.mobilenet,
    "vit_tiny": architectures.vit_tiny,
    "bert_mini": architectures.bert_mini,
    "dlrm": architectures.dlrm,
    "gpt_mini": architectures.gpt_mini,
    "echo": architectures.echo,
}
NAMES: tuple[str, ...] = tuple(RECIPES)
DEFAULT_BUCKETS: dict[str, dict[str, tuple[int, ...]]] = {"bert_mini": {"seq": (32, 64, 128)}}
"""Buckets that a zoo model gets when its config declares none."""
RECIPE_VERSION = 1
"""Part of the file's name: a changed recipe is built anew beside the old file."""


def build(name: str) -> ModelProto:
    """The model called `name`. Raises ValueError that names the nearest known one."""
    recipe = RECIPES.get(name)
    if recipe is None:
        close = difflib.get_close_matches(name, NAMES, 1, 0.3)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"the zoo has no model {name!r}; {hint}known: {', '.join(NAMES)}")
    return recipe()


def path_of(name: str, cache_dir: Path) -> Path:
    """Where the model's file lies once it was made."""
    return cache_dir / f"{name}-v{RECIPE_VERSION}.onnx"


def ensure(name: str, cache_dir: Path) -> Path:
    """Path of the model's file, made first if it is not there. Whole or absent, whoever builds at once."""
    path = path_of(name, cache_dir)
    if name in RECIPES and path.exists():
        return path
    body = build(name).SerializeToString()
    cache_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=cache_dir, prefix=f".{name}-", delete=False) as file:
        file.write(body)
    os.replace(file.name, path)
    return path

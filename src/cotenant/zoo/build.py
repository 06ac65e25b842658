"""Where zoo models lie and how they get there."""

from __future__ import annotations

import difflib
import os
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from onnx import ModelProto

from cotenant.zoo import architectures as arch

SEED = 20261123
RECIPES: Mapping[str, Callable[[], ModelProto]] = {
    "resnet18": partial(arch.resnet18, arch.ResnetSizes(), SEED + 1),
    "mobilenet": partial(arch.mobilenet, arch.MobilenetSizes(), SEED + 2),
    "vit_tiny": partial(arch.vit_tiny, arch.VitSizes(), SEED + 3),
    "bert_mini": partial(arch.bert_mini, arch.BertSizes(), SEED + 4),
    "dlrm": partial(arch.dlrm, arch.DlrmSizes(), SEED + 5),
    "gpt_mini": partial(arch.gpt_mini, arch.GptSizes(), SEED + 6),
    "wide_mlp": partial(arch.wide_mlp, arch.WideMlpSizes(), SEED + 7),
    "echo": partial(arch.echo, arch.EchoSizes(), SEED),
}
NAMES: tuple[str, ...] = tuple(RECIPES)
DEFAULT_BUCKETS: dict[str, dict[str, tuple[int, ...]]] = {"bert_mini": {"seq": (32, 64, 128)}}
"""Buckets that a zoo model gets when its config declares none."""
RECIPE_VERSION = 1
"""Part of the file's name. Raise it with every change of a recipe: the model is then built anew."""


def build(name: str) -> ModelProto:
    """The model called `name`. Raises ValueError that names the nearest known ones."""
    recipe = RECIPES.get(name)
    if recipe is None:
        close = difflib.get_close_matches(name, NAMES, 3, 0.3)
        hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
        raise ValueError(f"the zoo has no model {name!r}; {hint}known: {', '.join(NAMES)}")
    return recipe()


def path_of(name: str, cache_dir: Path) -> Path:
    """Where the model's file lies once it was made."""
    return cache_dir / f"{name}-v{RECIPE_VERSION}.onnx"


def ensure(name: str, cache_dir: Path) -> Path:
    """Path of the model's file, made first if it is not there; takes up to a few seconds.

    The file is whole or absent: processes that build at once each write their own and put the same bytes in
    its place. Raises ValueError for an unknown name, OSError when the folder cannot be written.
    """
    path = path_of(name, cache_dir)
    if name in RECIPES and path.is_file():
        return path
    body = build(name).SerializeToString(deterministic=True)
    cache_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=cache_dir, prefix=f".{name}-", delete=False) as file:
        try:
            file.write(body)
            file.close()
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
    return path

"""Objects from a user's own modules: `module:attribute`. Finding one runs its module."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any


def find_attribute(source: str, folder: Path) -> Any:
    """What `module:attribute` names, the module found in `folder` (and run anew every time) or among what is
    installed. Raises ValueError naming the source and the reason, whatever the module raises."""
    module_name, _, name = source.partition(":")
    try:
        return getattr(_module(module_name, folder), name)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{source}: {type(error).__name__}: {error}") from error


def _module(name: str, folder: Path) -> Any:
    """A file of the folder goes before an installed module of the same name; its own name is not taken."""
    path = folder / (name.replace(".", "/") + ".py")
    if not path.is_file():
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location(f"cotenant_models.{name}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path.name} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise
    return module

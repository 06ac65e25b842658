"""Objects from a user's own modules: `module:attribute`. Finding one runs its module."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any


class _Fresh(SourceFileLoader):
    """Runs what the file says now. Python's cache of bytecode takes a file of the same size and second for
    the same."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


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
    full_name = f"cotenant_models.{name}"
    spec = importlib.util.spec_from_file_location(full_name, path, loader=_Fresh(full_name, str(path)))
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

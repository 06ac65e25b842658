"""The front end: V2 protocol types, the data plane, HTTP. Holds no device code.

`cotenant.serve(...)` runs a server: Python has one name for this package and for that function, so the
package can be called. What it calls (`cotenant.api.serve`) is imported only then.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    def __call__(self, *models: Any, **options: Any) -> Any:
        return importlib.import_module("cotenant.api").serve(*models, **options)


sys.modules[__name__].__class__ = _CallablePackage

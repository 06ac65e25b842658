"""An inference server that lets many models share one accelerator and keeps their deadlines.

The Python face is imported when it is used, so that a client needs neither a runtime nor a compiler:
`cotenant.model`, `cotenant.source`, `cotenant.serve`, `cotenant.Client`, `cotenant.AsyncClient`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cotenant.api import Server, model, serve, source
    from cotenant.client import (
        AsyncClient,
        Cancelled,
        Client,
        Expired,
        Failed,
        InvalidRequest,
        Rejected,
        Result,
        ServerError,
        Unavailable,
    )

__version__ = "0.1.0"

__all__ = [
    "AsyncClient",
    "Cancelled",
    "Client",
    "Expired",
    "Failed",
    "InvalidRequest",
    "Rejected",
    "Result",
    "Server",
    "ServerError",
    "Unavailable",
    "model",
    "serve",
    "source",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'cotenant' has no attribute {name!r}")
    if name == "serve":  # the package of that name, which can be called
        return importlib.import_module("cotenant.serve")
    home = "cotenant.api" if name in ("Server", "model", "source") else "cotenant.client"
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]

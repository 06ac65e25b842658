"""Clients of a server, synchronous and asynchronous: numpy arrays by name in and out, deadlines, typed
refusals.

Imports neither the server nor any runtime: numpy, httptools and the standard library are enough.
"""

from cotenant.client.aio import AsyncClient
from cotenant.client.errors import (
    Cancelled,
    Expired,
    Failed,
    InvalidRequest,
    Rejected,
    ServerError,
    Unavailable,
)
from cotenant.client.sync import Client
from cotenant.client.wire import Result

__all__ = [
    "AsyncClient",
    "Cancelled",
    "Client",
    "Expired",
    "Failed",
    "InvalidRequest",
    "Rejected",
    "Result",
    "ServerError",
    "Unavailable",
]

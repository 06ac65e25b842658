"""Runs an ASGI app on uvicorn: binds, announces the port, drains on shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

DRAIN_LIMIT_S = 10
BACKLOG = 2048
KEEP_ALIVE_S = 75


def uvicorn_config(app: Any, *, drain_limit_s: int = DRAIN_LIMIT_S) -> uvicorn.Config:
    """uvicorn's settings: the fast loop and parser, no access log, no lifespan, no headers of its own but
    Date, no trust in forwarding headers."""
    return uvicorn.Config(
        app,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=drain_limit_s,
    )


class _Server(uvicorn.Server):
    """uvicorn's server without its signal handlers, which announces that it listens."""

    def __init__(self, config: uvicorn.Config, announce: Callable[[], None]) -> None:
        super().__init__(config)
        self._announce = announce

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._announce()


def bind(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A socket bound to `host` (a name or address) and `port` (0: any free one); `shared`: others may be
    bound to the same by this user, and connections are spread over them. Raises OSError."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"cannot listen on {host}:{port}: {error.strerror}") from None
    return listener


def bind_several(host: str, port: int, n: int) -> list[socket.socket]:
    """`n` sockets bound to one address, for as many processes. Raises OSError, also where another server has
    the port: sharing is for the sockets of one."""
    first = bind(host, port)
    if n == 1:
        return [first]
    port = first.getsockname()[1]
    first.close()
    found: list[socket.socket] = []
    try:
        for _ in range(n):
            found.append(bind(host, port, shared=True))
    except OSError:
        for listener in found:
            listener.close()
        raise
    return found


async def serve_http(
    app: Any,
    host: str,
    port: int,
    on_ready: Callable[[int], None],
    shutdown: asyncio.Event,
    *,
    drain_limit_s: int = DRAIN_LIMIT_S,
) -> None:
    """Serve until `shutdown` is set; then take no more connections and let requests in flight finish, at
    most `drain_limit_s` seconds, after which they are cancelled. `on_ready(port)` is called once, when
    connections are accepted. Call it on a uvloop event loop (`uvloop.run`) for speed; any will do."""
    listener = bind(host, port)
    bound_port: int = listener.getsockname()[1]
    await serve_on(app, listener, lambda: on_ready(bound_port), shutdown, drain_limit_s=drain_limit_s)


async def serve_on(
    app: Any,
    listener: socket.socket,
    on_ready: Callable[[], None],
    shutdown: asyncio.Event,
    *,
    drain_limit_s: int = DRAIN_LIMIT_S,
) -> None:
    """`serve_http` on a socket that is bound already, and closed at the end."""
    server = _Server(uvicorn_config(app, drain_limit_s=drain_limit_s), on_ready)

    async def stop_when_told() -> None:
        await shutdown.wait()
        server.should_exit = True

    stopper = asyncio.create_task(stop_when_told())
    try:
        await server.serve(sockets=[listener])
    finally:
        stopper.cancel()
        listener.close()

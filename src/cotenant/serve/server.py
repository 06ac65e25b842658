"""Runs an ASGI app on uvicorn: binds, announces the port, keeps connections within limits, drains."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from cotenant.serve.connections import GuardedProtocol, limited
from cotenant.serve.settings import FrontDoor

OPEN_DOOR = FrontDoor()
DRAIN_LIMIT_S = 10
BACKLOG = 2048
TLS_HANDSHAKE_S = 10.0
SPARE_FILES = 256
"""Open files that are not connections: models, logs, libraries."""
TICKS_PER_SWEEP = 10
"""Most of uvicorn's ticks (0.1 s) from one look at slow connections to the next."""


def uvicorn_config(
    app: Any, door: FrontDoor = OPEN_DOOR, *, drain_limit_s: int = DRAIN_LIMIT_S
) -> uvicorn.Config:
    """uvicorn's settings: the fast loop and parser, limited connections, no access log, no lifespan, no
    headers of its own but Date, no trust in forwarding headers."""
    return uvicorn.Config(
        app,
        loop="uvloop",
        http=limited(door),
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=door.keep_alive_s,
        timeout_graceful_shutdown=drain_limit_s,
    )


class _Server(uvicorn.Server):
    """uvicorn's server without its signal handlers, which announces that it listens, speaks TLS with our
    context, and looks for slow clients."""

    def __init__(
        self,
        config: uvicorn.Config,
        announce: Callable[[], None],
        door: FrontDoor,
        tls: ssl.SSLContext | None,
    ) -> None:
        super().__init__(config)
        self._announce = announce
        self._tls = tls
        shortest_s = min(door.header_timeout_s, door.body_timeout_s)
        self._ticks = max(1, min(TICKS_PER_SWEEP, int(shortest_s)))

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        loop = asyncio.get_running_loop()

        def connection() -> asyncio.Protocol:
            return self.config.http_protocol_class(  # type: ignore[call-arg]
                config=self.config, server_state=self.server_state, app_state={}, _loop=loop
            )

        self.servers = [
            await loop.create_server(
                connection,
                sock=listener,
                ssl=self._tls,
                ssl_handshake_timeout=None if self._tls is None else TLS_HANDSHAKE_S,
                backlog=self.config.backlog,
            )
            for listener in sockets or []
        ]
        self.started = True
        self._announce()

    async def on_tick(self, counter: int) -> bool:
        if counter % self._ticks == 0:
            now = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                if isinstance(connection, GuardedProtocol):
                    connection.sweep(now)
        return await super().on_tick(counter)


def allow_open_files(n_connections: int) -> None:
    """Raise this process's limit of open files, as far as it may, to hold so many connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = n_connections + SPARE_FILES
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


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
    door: FrontDoor = OPEN_DOOR,
    tls: ssl.SSLContext | None = None,
) -> None:
    """Serve until `shutdown` is set; then take no more connections and let requests in flight finish, at
    most `drain_limit_s` seconds, after which they are cancelled. `on_ready(port)` is called once, when
    connections are accepted, over TLS with `tls`. Call it on a uvloop event loop (`uvloop.run`) for speed;
    any will do."""
    listener = bind(host, port)
    bound_port: int = listener.getsockname()[1]
    await serve_on(
        app,
        listener,
        lambda: on_ready(bound_port),
        shutdown,
        drain_limit_s=drain_limit_s,
        door=door,
        tls=tls,
    )


async def serve_on(
    app: Any,
    listener: socket.socket,
    on_ready: Callable[[], None],
    shutdown: asyncio.Event,
    *,
    drain_limit_s: int = DRAIN_LIMIT_S,
    door: FrontDoor = OPEN_DOOR,
    tls: ssl.SSLContext | None = None,
) -> None:
    """`serve_http` on a socket that is bound already, and closed at the end."""
    allow_open_files(door.max_connections)
    server = _Server(uvicorn_config(app, door, drain_limit_s=drain_limit_s), on_ready, door, tls)

    async def stop_when_told() -> None:
        await shutdown.wait()
        server.should_exit = True

    stopper = asyncio.create_task(stop_when_told())
    try:
        await server.serve(sockets=[listener])
    finally:
        stopper.cancel()
        listener.close()

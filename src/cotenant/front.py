"""A front end: HTTP on a listening socket, an engine at the other end of a link.

`python -m cotenant.front DESCRIPTOR` is one more front-end process of a server that has several, started by
its supervisor, never by hand. Nothing here, nor in what it imports, belongs to a device.
"""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from cotenant import control
from cotenant.clock import MonotonicClock
from cotenant.config import ServerConfig
from cotenant.engine_client import EngineClient, EngineDownError
from cotenant.launch import FrontSettings, decode
from cotenant.remote_link import RemoteLink
from cotenant.serve.access_log import AccessLog, Application
from cotenant.serve.http import ServeConfig, make_app
from cotenant.serve.server import serve_on
from cotenant.serve.traced import Traced
from cotenant.telemetry.logs import Logger, logging_to
from cotenant.telemetry.tracing import traces

_LOG = Logger("front")
METRICS_S = 5.0
"""How long the engine may take to render its metrics (s)."""
TEXT = "text/plain; version=1.0.0; charset=utf-8"
END = b"# EOF\n"
"""How an OpenMetrics page ends."""
GC_THRESHOLDS = (5_000, 20, 50)
"""As the engine's: requests hold no cycles."""
DRAIN_LIMIT_S = 2
MEET_S = 2.0
"""How long a further front end waits for word from the engine before it answers without (s)."""


def serve_config(settings: ServerConfig) -> ServeConfig:
    """The front end's part of a configuration."""
    return ServeConfig(
        max_body_bytes=settings.max_body_mib << 20,
        allow_model_control=settings.allow_model_control,
        access_log=settings.access_log,
        log_format=settings.log_format,
        log_level=settings.log_level,
    )


@dataclass(frozen=True, slots=True)
class FrontPage:
    """The engine's page of metrics with what only a front end knows; without an engine, that alone."""

    link: RemoteLink

    async def render(self, accept: str) -> tuple[bytes, str]:
        """The page and its content type."""
        try:
            page, kind = await asyncio.wait_for(self.link.metrics(accept), METRICS_S)
        except (EngineDownError, TimeoutError):
            page, kind = b"", TEXT
        body, ended = page.removesuffix(END), page.endswith(END)
        return body + self._own(ended) + (END if ended else b""), kind

    def _own(self, open_metrics: bool) -> bytes:
        up, losses = int(self.link.absence() is None), "cotenant_engine_losses"
        family = losses if open_metrics else f"{losses}_total"
        return (
            "# HELP cotenant_engine_up Whether the engine takes requests.\n"
            "# TYPE cotenant_engine_up gauge\n"
            f"cotenant_engine_up {up}\n"
            f"# HELP {family} Engines that this front end has lost.\n"
            f"# TYPE {family} counter\n"
            f"{losses}_total {self.link.n_lost}\n"
        ).encode()


class Watched:
    """An application with what watches over it: a log line and a span per request, where they are wanted."""

    def __init__(self, app: Application, client: EngineClient, config: ServeConfig) -> None:
        self.app = app

        async def explain(call_id: str) -> dict[str, Any] | None:
            try:
                return await client.explain(call_id)
            except EngineDownError:
                return None

        self._tracing = traces(os.environ, MonotonicClock(), explain)
        if self._tracing is not None:
            self.app = Traced(self.app, self._tracing, client.now, client.new_id)
        if config.access_log:
            self.app = AccessLog(self.app, client.now)

    async def close(self) -> None:
        """Export what is left."""
        if self._tracing is not None:
            await self._tracing.close()


@asynccontextmanager
async def grpc_beside(
    client: EngineClient, config: ServeConfig, host: str, port: int | None
) -> AsyncIterator[None]:
    """gRPC on `port` (0: any that is free; None: none) while the context lasts. The log says where."""
    if port is None:
        yield
        return
    from cotenant.serve.grpc.server import serving_grpc  # a server without gRPC does not load it

    async with serving_grpc(client, config, host, port, drain_limit_s=DRAIN_LIMIT_S) as bound_port:
        url = f"grpc://{host}:{bound_port}"
        _LOG.info("grpc.listening", f"serving {url}", url=url)
        yield


async def serve_front(
    link: RemoteLink,
    config: ServeConfig,
    listener: socket.socket,
    on_listening: Callable[[], None],
    shutdown: asyncio.Event,
    grpc_at: tuple[str, int] | None = None,
) -> None:
    """Serve on `listener` until `shutdown` is set, and what is then in flight; gRPC at a host and port, if
    any. The link is kept by the caller."""
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    client = EngineClient(link)
    watched = Watched(make_app(client, FrontPage(link), config, client.answered), client, config)
    host, port = grpc_at or ("", None)
    try:
        async with grpc_beside(client, config, host, port):
            await serve_on(watched.app, listener, on_listening, shutdown, drain_limit_s=DRAIN_LIMIT_S)
    finally:
        await watched.close()


async def run(descriptor: int) -> int:
    """Be launched, and serve; the exit status."""
    parent = control.Parent()
    try:
        launch = await parent.launched(descriptor)
    except EOFError:
        return 0
    except ValueError as error:
        parent.say(control.Failed(str(error), str(error)))
        await parent.close()
        return 2
    settings = decode(launch.settings, FrontSettings)
    link = RemoteLink(settings.engine, settings.models, settings.arena_bytes)

    def told(frame: control.ToChild) -> None:
        match frame:
            case control.Notice(absence):
                link.absent(absence)

    listening, met, serving = asyncio.Event(), asyncio.Event(), asyncio.Event()

    def looked() -> None:
        met.set()
        if link.absence() is None:
            serving.set()

    async def announce() -> None:
        await listening.wait()
        await serving.wait()
        parent.say(control.Ready())

    link.on_state, parent.on_frame = looked, told
    tasks = [asyncio.create_task(work) for work in (link.run(), announce())]
    listener = socket.socket(fileno=launch.socket)
    try:
        with logging_to(sys.stderr, settings.serve.log_format, settings.serve.log_level):
            with suppress(TimeoutError):  # connections wait: better than an early refusal
                await asyncio.wait_for(met.wait(), MEET_S)
            await serve_front(link, settings.serve, listener, listening.set, parent.stopped)
    finally:
        for task in tasks:
            task.cancel()
        await parent.close()
    return 0


def main() -> None:
    """Entry point of a further front-end process."""
    import uvloop

    control.become_child()
    status = uvloop.run(run(int(sys.argv[1])))
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()

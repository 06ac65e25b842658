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
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from cotenant import control
from cotenant.config import ServerConfig
from cotenant.engine_client import EngineClient, EngineDownError
from cotenant.launch import FrontSettings, decode
from cotenant.remote_link import RemoteLink
from cotenant.serve.http import ServeConfig, make_app
from cotenant.serve.server import serve_on

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
        max_body_bytes=settings.max_body_mib << 20, allow_model_control=settings.allow_model_control
    )


@dataclass(frozen=True, slots=True)
class FrontPage:
    """The engine's page of metrics with what only a front end knows; without an engine, that alone."""

    link: RemoteLink

    async def render(self) -> tuple[bytes, str]:
        """The page and its content type."""
        try:
            page, kind = await asyncio.wait_for(self.link.metrics(), METRICS_S)
        except (EngineDownError, TimeoutError):
            page, kind = b"", TEXT
        body, ended = page.removesuffix(END), page.endswith(END)
        return body + self._own() + (END if ended else b""), kind

    def _own(self) -> bytes:
        up = int(self.link.absence() is None)
        return (
            "# HELP cotenant_engine_up Whether the engine takes requests.\n"
            "# TYPE cotenant_engine_up gauge\n"
            f"cotenant_engine_up {up}\n"
            "# HELP cotenant_engine_losses_total Engines that this front end has lost.\n"
            "# TYPE cotenant_engine_losses_total counter\n"
            f"cotenant_engine_losses_total {self.link.n_lost}\n"
        ).encode()


async def serve_front(
    link: RemoteLink,
    config: ServeConfig,
    listener: socket.socket,
    on_listening: Callable[[], None],
    shutdown: asyncio.Event,
) -> None:
    """Serve on `listener` until `shutdown` is set, and what is then in flight. The link is kept by the
    caller."""
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    app = make_app(EngineClient(link), FrontPage(link), config)
    await serve_on(app, listener, on_listening, shutdown, drain_limit_s=DRAIN_LIMIT_S)


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
        with suppress(TimeoutError):  # connections wait: better than to be told that there is no engine yet
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

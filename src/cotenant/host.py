"""A server in one process: engine and HTTP front end on one event loop, until a signal says stop."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from cotenant.assemble import Prepared, make_engine
from cotenant.clock import MonotonicClock
from cotenant.engine_client import EngineClient
from cotenant.front import DRAIN_LIMIT_S, Watched, grpc_beside, serve_config
from cotenant.front_door import gate_of, open_door
from cotenant.local_link import LocalLink
from cotenant.notify import STOPPING, notify
from cotenant.observing import Observing
from cotenant.ports import Observer
from cotenant.predictors import Served
from cotenant.reload import Reloader
from cotenant.repository_control import control_of
from cotenant.serve.http import make_app
from cotenant.serve.server import serve_http
from cotenant.serve.shared_memory import regions_of
from cotenant.stopping import StopSignals
from cotenant.telemetry.logs import Logger

_LOG = Logger("server")


@dataclass(frozen=True, slots=True, kw_only=True)
class HostConfig:
    """Where and how to serve."""

    host: str = "127.0.0.1"
    """Address to bind."""
    http_port: int = 8000
    """TCP port; 0: any that is free."""
    grpc_port: int | None = None
    """TCP port of gRPC; 0: any that is free; None: no gRPC."""
    policy: str = "default"
    """Scheduling policy."""
    log_path: Path | None = None
    """Event log to write, if any."""
    slow_path: Path | None = None
    """Where explanations of slow requests are kept, if anywhere."""


@dataclass(frozen=True, slots=True)
class EnginePage:
    """The engine's page of metrics, for `GET /metrics`."""

    client: EngineClient

    async def render(self, accept: str) -> tuple[bytes, str]:
        """The page and its content type."""
        return await self.client.metrics(accept)


async def serve(
    prepared: Prepared,
    config: HostConfig,
    on_ready: Callable[[str], None],
    observers: Sequence[Observer] = (),
    predictor: Served | None = None,
    *,
    told: asyncio.Event | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain and return; SIGHUP reads the configuration anew, if
    there is a file.
    `on_ready(url)` is called once, when requests are accepted. `predictor`: one that may have learned
    already. `told`: serve until this is set instead, and leave signals alone. `tell` is given lines for the
    operator."""
    settings = prepared.scenario.server
    door = open_door(settings, prepared.scenario.path, config.host)
    clock = MonotonicClock()
    observing = Observing(prepared, config.policy, config.slow_path)
    engine = make_engine(
        prepared,
        config.policy,
        predictor=predictor,
        clock=clock,
        observers=[*observing.metrics.observers, *observers],
        log_path=config.log_path,
        told_slow=observing.told_slow,
    )
    observing.metrics.watch(engine)
    engine.start()
    control = control_of(engine, prepared.scenario, prepared.stamps, prepared.configured)
    metrics = observing.metrics
    client = EngineClient(LocalLink(engine, clock, metrics.render, metrics.refused, control))
    serving = serve_config(prepared.scenario)
    gate, regions = gate_of(door, settings, client), regions_of(serving)
    app = make_app(client, EnginePage(client), serving, gate, client.answered, regions)
    watched = Watched(app, client, serving)
    shutdown = asyncio.Event()
    signals = StopSignals(told)
    if told is None and prepared.scenario.path.is_file():
        with suppress(NotImplementedError):
            reloader = Reloader(engine, prepared, tell)
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reloader.request)

    async def stop_when_told() -> None:
        await signals.told.wait()
        notify(STOPPING)
        _LOG.info("server.draining", "told to stop: what was admitted is answered first")
        draining = asyncio.create_task(engine.drain(settings.drain_s))
        at_once = asyncio.create_task(signals.at_once.wait())
        await asyncio.wait({draining, at_once}, return_when=asyncio.FIRST_COMPLETED)
        if not draining.done():
            draining.cancel()
            await engine.drain(0)
        at_once.cancel()
        shutdown.set()

    def ready(port: int) -> None:
        url = f"{door.scheme}://{config.host}:{port}"
        on_ready(url)
        _LOG.info("server.ready", f"serving {len(engine.models)} models", url=url, policy=config.policy)

    stopper = asyncio.create_task(stop_when_told())
    try:
        async with AsyncExitStack() as stack:
            grpc = grpc_beside(client, serving, config.host, config.grpc_port, gate, door, regions)
            await stack.enter_async_context(grpc)
            await serve_http(
                watched.app,
                config.host,
                config.http_port,
                ready,
                shutdown,
                drain_limit_s=DRAIN_LIMIT_S,
                door=settings,
                tls=door.tls,
            )
    finally:
        stopper.cancel()
        await watched.close()
        if control is not None:
            control.stop()
        engine.stop()
        observing.close()
        _LOG.info("server.stopped", "stopped")

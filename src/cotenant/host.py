"""A server in one process: engine and HTTP front end on one event loop, until a signal says stop."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cotenant.assemble import Prepared, make_engine
from cotenant.clock import MonotonicClock
from cotenant.engine import Engine
from cotenant.engine_client import EngineClient
from cotenant.front_door import open_door
from cotenant.local_link import LocalLink
from cotenant.ports import Observer
from cotenant.predictors import Served
from cotenant.serve.gate import Gate
from cotenant.serve.http import ServeConfig, make_app
from cotenant.serve.server import serve_http
from cotenant.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class HostConfig:
    """Where and how to serve."""

    host: str = "127.0.0.1"
    """Address to bind."""
    http_port: int = 8000
    """TCP port; 0: any that is free."""
    policy: str = "default"
    """Scheduling policy."""
    log_path: Path | None = None
    """Event log to write, if any."""


@dataclass(frozen=True, slots=True)
class CurrentMetrics:
    """The page of metrics, with what the engine has put off telling them."""

    engine: Engine
    metrics: Metrics

    def render(self) -> tuple[bytes, str]:
        """The page and its content type."""
        self.engine.catch_up()
        return self.metrics.render()


async def serve(
    prepared: Prepared,
    config: HostConfig,
    on_ready: Callable[[str], None],
    observers: Sequence[Observer] = (),
    predictor: Served | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain and return. `on_ready(url)` is called once, when requests
    are accepted. `predictor`: one that may have learned already."""
    settings = prepared.scenario.server
    door = open_door(settings, prepared.scenario.path, config.host)
    clock = MonotonicClock()
    metrics = Metrics()
    engine = make_engine(
        prepared,
        config.policy,
        predictor=predictor,
        clock=clock,
        observers=[metrics, *observers],
        log_path=config.log_path,
    )
    engine.start()
    serve_config = ServeConfig(
        max_body_bytes=settings.max_body_mib << 20,
        body_timeout_s=settings.body_timeout_s,
        allow_model_control=settings.allow_model_control,
        door=settings,
    )
    client = EngineClient(LocalLink(engine, clock))
    gate = Gate(door.keys, settings, client.now)
    gate.on_refused, gate.on_denied = metrics.refused, metrics.denied
    app = make_app(client, CurrentMetrics(engine, metrics), serve_config, gate)
    shutdown, told = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        with suppress(NotImplementedError):
            loop.add_signal_handler(number, told.set)

    async def stop_when_told() -> None:
        await told.wait()
        await engine.drain(settings.drain_s)
        shutdown.set()

    stopper = asyncio.create_task(stop_when_told())
    try:
        await serve_http(
            app,
            config.host,
            config.http_port,
            lambda port: on_ready(f"{door.scheme}://{config.host}:{port}"),
            shutdown,
            drain_limit_s=2,
            door=settings,
            tls=door.tls,
        )
    finally:
        stopper.cancel()
        engine.stop()

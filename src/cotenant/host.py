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
from cotenant.engine import Engine
from cotenant.engine_client import EngineClient
from cotenant.local_link import LocalLink
from cotenant.ports import Observer
from cotenant.predictors import Served
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
    grpc_port: int | None = None
    """TCP port of gRPC; 0: any that is free; None: no gRPC."""
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
    on_grpc: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain and return. `on_ready(url)` is called once, when requests
    are accepted, and before that `on_grpc(url)`, if there is gRPC. `predictor`: one that may have learned
    already."""
    settings = prepared.scenario.server
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
        max_body_bytes=settings.max_body_mib << 20, allow_model_control=settings.allow_model_control
    )
    client = EngineClient(LocalLink(engine, clock))
    app = make_app(client, CurrentMetrics(engine, metrics), serve_config)
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
        async with AsyncExitStack() as stack:
            if config.grpc_port is not None:
                from cotenant.serve.grpc.server import serving_grpc  # a server without gRPC does not load it

                grpc = serving_grpc(client, serve_config, config.host, config.grpc_port, drain_limit_s=2)
                on_grpc(f"grpc://{config.host}:{await stack.enter_async_context(grpc)}")
            await serve_http(
                app,
                config.host,
                config.http_port,
                lambda port: on_ready(f"http://{config.host}:{port}"),
                shutdown,
                drain_limit_s=2,
            )
    finally:
        stopper.cancel()
        engine.stop()

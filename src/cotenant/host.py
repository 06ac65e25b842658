"""A server in one process: engine and HTTP front end on one event loop, until a signal says stop."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cotenant.assemble import Prepared, make_engine
from cotenant.clock import MonotonicClock
from cotenant.engine import Engine
from cotenant.engine_client import EngineClient
from cotenant.local_link import LocalLink
from cotenant.notify import STOPPING, notify
from cotenant.ports import Observer
from cotenant.predictors import Served
from cotenant.reload import Reloader
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
    app = make_app(EngineClient(LocalLink(engine, clock)), CurrentMetrics(engine, metrics), serve_config)
    shutdown = asyncio.Event()
    if told is None:
        told = asyncio.Event()
        _on_signals({signal.SIGTERM: told.set, signal.SIGINT: told.set})
        if prepared.scenario.path.is_file():
            _on_signals({signal.SIGHUP: Reloader(engine, prepared, tell).request})

    async def stop_when_told() -> None:
        await told.wait()
        notify(STOPPING)
        await engine.drain(settings.drain_s)
        shutdown.set()

    stopper = asyncio.create_task(stop_when_told())
    try:
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


def _on_signals(handlers: Mapping[signal.Signals, Callable[[], None]]) -> None:
    loop = asyncio.get_running_loop()
    for number, handler in handlers.items():
        with suppress(NotImplementedError):
            loop.add_signal_handler(number, handler)

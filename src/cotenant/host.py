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
from cotenant.engine_client import EngineClient
from cotenant.local_link import LocalLink
from cotenant.observing import MetricsOfEngine, facts_of, traces
from cotenant.ports import Observer
from cotenant.predictors import Served
from cotenant.serve.access_log import AccessLog, Application
from cotenant.serve.http import ServeConfig, make_app
from cotenant.serve.server import serve_http
from cotenant.serve.traced import Traced
from cotenant.telemetry.logs import Logger
from cotenant.telemetry.slow_store import SlowWriter

_LOG = Logger("server")


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
    slow_path: Path | None = None
    """Where explanations of slow requests are kept, if anywhere."""


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
    clock = MonotonicClock()
    metrics = MetricsOfEngine(facts_of(prepared, config.policy), triton=settings.triton_metrics)
    slow = SlowWriter(config.slow_path, _complain) if config.slow_path else None
    engine = make_engine(
        prepared,
        config.policy,
        predictor=predictor,
        clock=clock,
        observers=[*metrics.observers, *observers],
        log_path=config.log_path,
        told_slow=[slow.put] if slow else [],
    )
    metrics.watch(engine)
    engine.start()
    serve_config = ServeConfig(
        max_body_bytes=settings.max_body_mib << 20, allow_model_control=settings.allow_model_control
    )
    client = EngineClient(LocalLink(engine, clock))
    app: Application = make_app(client, metrics, serve_config, engine.answered)
    tracing = traces(clock, engine.explain)
    if tracing is not None:
        app = Traced(app, tracing, clock.now, client.new_id)
    if settings.access_log:
        app = AccessLog(app, clock.now)
    shutdown, told = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        with suppress(NotImplementedError):
            loop.add_signal_handler(number, told.set)

    async def stop_when_told() -> None:
        await told.wait()
        _LOG.info("server.draining", "told to stop: what was admitted is answered first")
        await engine.drain(settings.drain_s)
        shutdown.set()

    def ready(port: int) -> None:
        url = f"http://{config.host}:{port}"
        on_ready(url)
        _LOG.info("server.ready", f"serving {len(engine.models)} models", url=url, policy=config.policy)

    stopper = asyncio.create_task(stop_when_told())
    try:
        await serve_http(
            app,
            config.host,
            config.http_port,
            ready,
            shutdown,
            drain_limit_s=2,
        )
    finally:
        stopper.cancel()
        if tracing is not None:
            await tracing.close()
        engine.stop()
        if slow is not None:
            slow.close()
        _LOG.info("server.stopped", "stopped")


def _complain(message: str) -> None:
    _LOG.warning("slow_requests.not_kept", message)

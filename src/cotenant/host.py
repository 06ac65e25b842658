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
from cotenant.config import Scenario
from cotenant.engine import Engine
from cotenant.engine_client import EngineClient
from cotenant.local_link import LocalLink
from cotenant.ports import Observer
from cotenant.predictors import Served
from cotenant.repository import repository_of
from cotenant.repository_control import RepositoryControl
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
    control = control_of(engine, prepared)
    serve_config = ServeConfig(
        max_body_bytes=settings.max_body_mib << 20,
        allow_model_control=settings.allow_model_control or is_explicit(prepared.scenario),
        shared_memory=settings.shared_memory,
        repository=control is not None,
    )
    app = make_app(
        EngineClient(LocalLink(engine, clock, control)), CurrentMetrics(engine, metrics), serve_config
    )
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
            lambda port: on_ready(f"http://{config.host}:{port}"),
            shutdown,
            drain_limit_s=2,
        )
    finally:
        stopper.cancel()
        if control is not None:
            control.stop()
        engine.stop()


def control_of(engine: Engine, prepared: Prepared) -> RepositoryControl | None:
    """What loads and unloads the models of the scenario's repository, begun; None where it has none. Call it
    on the engine's event loop."""
    repository, config = repository_of(prepared.scenario), prepared.scenario.repository
    if repository is None or config is None:
        return None
    names = {model.name for model in prepared.scenario.models if "@" not in model.name}
    control = RepositoryControl(engine, repository, config, configured=names, stamps=prepared.stamps)
    control.start()
    return control


def is_explicit(scenario: Scenario) -> bool:
    """Whether a repository is there to be controlled over the API."""
    return scenario.repository is not None and scenario.repository.mode == "explicit"

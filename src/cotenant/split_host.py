"""A server in several processes: this one answers HTTP, and starts and watches over the others.

The engine (scheduler and executor of one device) is a process of its own, so that what takes it down, a
native library that crashes or memory that runs out, leaves somebody to say so, and to start it anew. With
more than one front end the further ones are processes too, on sockets bound to the same port.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Coroutine
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from cotenant import control
from cotenant.config import Scenario
from cotenant.domain import NS_PER_MS, NS_PER_S
from cotenant.engine_client import Absence
from cotenant.front import serve_config, serve_front
from cotenant.handshake import listening
from cotenant.launch import EngineSettings, FrontSettings, encode
from cotenant.notify import STOPPING, notify
from cotenant.remote_link import RemoteLink
from cotenant.serve.server import bind_several
from cotenant.stopping import StopSignals
from cotenant.supervisor import Ended, Program, Supervisor
from cotenant.telemetry.logs import Logger

_LOG = Logger("server")
MIB = 1 << 20
FRONT_STOP_S = 4.0
"""How long a further front end may take to end (s)."""
DRAINED_S = 5.0
"""How much longer than it may the engine may take to drain (s), before it is stopped all the same."""
ENGINE_STOP_S = 15.0
"""How long the engine may take to write what it has learned and recorded, and end (s)."""
AT_ONCE_S = 1.0
"""The same when told to stop at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitConfig:
    """Where and how to serve."""

    host: str = "127.0.0.1"
    """Address to bind."""
    http_port: int = 8000
    """TCP port; 0: any that is free."""
    grpc_port: int | None = None
    """TCP port for gRPC, in the first front end; 0: any that is free; None: no gRPC."""
    n_fronts: int = 1
    """Front-end processes."""
    policy: str = "default"
    """Scheduling policy."""
    record: Path | None = None
    """Base of recordings; None: in the store."""
    record_mb: float = 32.0
    """Disk for recordings, MB."""
    store: Path | None = None
    """Folder of profiles, learned state and logs; None: the user's."""


class Operator(Protocol):
    """Who is told what happens."""

    def progress(self, what: str, done: int, total: int) -> None:
        """How far the first start is."""
        ...

    def said(self, kind: str, text: str) -> None:
        """A `note` on what was learned, a `warning`, something `not served`, or about a `process`."""
        ...

    def ready(self, url: str) -> None:
        """Requests are served; called once."""
        ...


async def serve_split(scenario: Scenario, config: SplitConfig, operator: Operator) -> None:
    """Serve until SIGTERM or SIGINT, then drain and return. Raises StartError when the engine cannot start
    for a reason that another try would not change, OSError when the port cannot be had."""
    signals = StopSignals()
    with ExitStack() as stack:
        listeners = bind_several(config.host, config.http_port, config.n_fronts)
        for listener in listeners:
            stack.callback(listener.close)
        engine_socket, path = stack.enter_context(listening())
        server = _Server(scenario, config, operator, listeners, engine_socket, path)
        if scenario.path.is_file():
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, server.reload)
        await server.run(signals)
        _LOG.info("server.stopped", "stopped")


class _Server:
    """The processes of one server."""

    def __init__(
        self,
        scenario: Scenario,
        config: SplitConfig,
        operator: Operator,
        listeners: list[socket.socket],
        engine_socket: socket.socket,
        path: Path,
    ) -> None:
        self._policy = config.policy
        self._settings, self._operator, self._listeners = scenario.server, operator, listeners
        port = listeners[0].getsockname()[1]
        self._url = f"http://{config.host}:{port}"
        self._grpc_at = None if config.grpc_port is None else (config.host, config.grpc_port)
        server = scenario.server
        arena_bytes = (server.shared_memory_mib or 8 * server.max_body_mib) * MIB
        front = FrontSettings(
            engine=path,
            models=tuple(model.name for model in scenario.models),
            arena_bytes=arena_bytes,
            serve=serve_config(scenario.server),
        )
        engine = EngineSettings(
            scenario=replace(scenario, phases=()),  # load generators read them, no server
            policy=config.policy,
            record=config.record,
            record_mb=config.record_mb,
            store=config.store,
            arena_bytes=arena_bytes,
        )
        self._front = front
        self._link = RemoteLink(path, front.models, arena_bytes)
        self._link.on_state = self._looked
        self._engine = Supervisor(
            Program(
                name="engine", module="cotenant.engine_process", settings=encode(engine), socket=engine_socket
            ),
            self._told,
            self._engine_ended,
            silence_s=server.engine_silence_s,
        )
        self._fronts = [
            Supervisor(
                Program(name="front end", module="cotenant.front", settings=encode(front), socket=listener),
                on_ended=partial(self._ended, "a front end"),
            )
            for listener in listeners[1:]
        ]
        self._serving, self._listening = asyncio.Event(), asyncio.Event()
        self._shutdown, self._drained = asyncio.Event(), asyncio.Event()
        self._engine_anew = self._reloaded = False
        """Whether the configuration was read anew: an engine that starts again begins with the first one."""

    def reload(self) -> None:
        """Have the engine read the configuration anew."""
        self._reloaded = True
        self._engine.send(control.Reload())

    async def run(self, signals: StopSignals) -> None:
        linking = asyncio.create_task(self._link.run())
        announcing = asyncio.create_task(self._announce())
        told = asyncio.create_task(signals.told.wait())
        at_once = asyncio.create_task(signals.at_once.wait())
        serving = asyncio.create_task(self._serve())
        watching = [asyncio.create_task(child.run()) for child in (self._engine, *self._fronts)]
        working = [*watching, serving]
        try:
            await asyncio.wait({told, *working}, return_when=asyncio.FIRST_COMPLETED)
            if told.done():
                await self._drain(at_once)
            await self._stop(at_once, serving)
            for work in working:
                await work
        finally:
            for task in (linking, announcing, told, at_once, *working):
                task.cancel()

    async def _serve(self) -> None:
        await serve_front(
            self._link,
            self._front.serve,
            self._listeners[0],
            self._listening.set,
            self._shutdown,
            self._grpc_at,
        )

    async def _announce(self) -> None:
        """Once everything is there."""
        await self._listening.wait()
        for child in (self._engine, *self._fronts):
            await child.ready.wait()
        await self._serving.wait()
        self._operator.ready(self._url)
        n_models = len(self._link.metadata())
        _LOG.info("server.ready", f"serving {n_models} models", url=self._url, policy=self._policy)

    # --- stopping -------------------------------------------------------------------------------------

    async def _drain(self, at_once: asyncio.Task[bool]) -> None:
        """Have the engine refuse what arrives, and wait until what was admitted has ended."""
        notify(STOPPING)
        _LOG.info("server.draining", "told to stop: what was admitted is answered first")
        self._engine.let_end()
        if self._engine.ready.is_set():
            self._engine.send(control.Drain(self._settings.drain_s))
            await _first(
                at_once,
                self._drained.wait(),
                self._engine.gone.wait(),
                asyncio.sleep(self._settings.drain_s + DRAINED_S),
            )

    async def _stop(self, at_once: asyncio.Task[bool], serving: asyncio.Task[None]) -> None:
        """Front ends first: they have answers to send."""
        if at_once.done():
            self._engine.kill()
        self._shutdown.set()
        for listener in self._listeners[1:]:
            listener.close()
        limit_s = AT_ONCE_S if at_once.done() else FRONT_STOP_S
        await asyncio.gather(*(front.stop(limit_s) for front in self._fronts))
        await _first(at_once, serving)
        stopping = asyncio.create_task(self._engine.stop(ENGINE_STOP_S))
        await _first(at_once, asyncio.shield(stopping))
        if not stopping.done():
            self._engine.kill()
            await stopping

    # --- what happens ---------------------------------------------------------------------------------

    def _told(self, frame: control.ToParent) -> None:
        match frame:
            case control.Progress(what, done, total):
                if not self._serving.is_set():
                    self._operator.progress(what, done, total)
            case control.Said(kind, text):
                self._operator.said(kind, text)
            case control.Drained():
                self._drained.set()

    def _looked(self) -> None:
        if self._link.absence() is None:
            self._serving.set()
            if self._reloaded and self._engine_anew:
                self.reload()
            self._engine_anew = False

    def _engine_ended(self, ended: Ended) -> None:
        self._engine_anew = True
        self._ended("the engine", ended)
        again = f", {ended.n_in_row} times in a row" if ended.n_in_row > 1 else ""
        absence = Absence(
            reason=f"the engine {ended.public}{again}; it starts anew",
            retry_after_ms=(ended.wait_s + ended.start_s) * NS_PER_S / NS_PER_MS,
        )
        self._link.absent(absence)
        for front in self._fronts:
            front.send(control.Notice(absence))

    def _ended(self, what: str, ended: Ended) -> None:
        self._operator.said("process", f"{what} {ended.how}; it is started anew in {ended.wait_s:g} s")


async def _first(*ways: Coroutine[Any, Any, Any] | asyncio.Future[Any]) -> None:
    """Wait for the first; the others go on where they are tasks, else end."""
    tasks = [asyncio.ensure_future(way) for way in ways]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way, task in zip(ways, tasks, strict=True):
            if way is not task:
                task.cancel()

"""The engine process: `python -m cotenant.engine_process DESCRIPTOR`, started by a supervisor, never by hand.

It accepts front ends before it has anything to serve, so that they can say what they wait for. Models are
loaded and profiled in a thread meanwhile.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Callable

import uvloop

from cotenant import control
from cotenant.assemble import Prepared, make_engine, predictor_of, prepare
from cotenant.catalogue import Places, places
from cotenant.clock import MonotonicClock
from cotenant.domain import NS_PER_MS
from cotenant.engine import Engine
from cotenant.engine_client import ModelStatus
from cotenant.engine_server import EngineServer
from cotenant.execute.onnx_session import without_paths
from cotenant.experiment.coruns import recorded_live
from cotenant.launch import EngineSettings, decode
from cotenant.learned import kept
from cotenant.local_link import LocalLink
from cotenant.observing import Observing
from cotenant.ports import Observer
from cotenant.predictors import Served
from cotenant.reload import Reloader
from cotenant.schedule.policies import make_policy
from cotenant.schedule.policy import Policy
from cotenant.telemetry.logs import logging_to

TELL_EVERY_NS = 100 * NS_PER_MS
"""How often the progress of the start is told (ns)."""
CANNOT_START = 2
"""Exit status of an engine whose configuration cannot be served."""


class EngineProcess:
    """One engine process, from its launch to its end."""

    def __init__(self, parent: control.Parent, settings: EngineSettings, listener: socket.socket) -> None:
        self._parent, self._settings = parent, settings
        self._loop = asyncio.get_running_loop()
        self._told_at = 0
        self._engine: Engine | None = None
        self._reloader: Reloader | None = None
        self._draining: asyncio.Task[None] | None = None
        status = [ModelStatus(name=model.name, state="LOADING") for model in settings.scenario.models]
        self._server = EngineServer(listener, settings.arena_bytes, status)
        parent.on_frame = self._told

    async def run(self) -> None:
        """Serve until the parent says stop. Raises ConfigError and other ValueErrors, OSError."""
        settings, where = self._settings, places(self._settings.store)
        make_policy(settings.policy)  # an unknown name should not wait until everything is loaded
        self._server.open()
        prepared = await self._unless_stopped(where)
        for reason in prepared.failed.values():
            self._parent.say(control.Said("not served", reason))
        policy = make_policy(settings.policy, prepared.executor.lanes)
        try:
            predictor = await asyncio.to_thread(predictor_of, prepared, policy)
        except ValueError:
            prepared.executor.close()
            raise
        base = settings.record or where.coruns / "live" / settings.scenario.path.stem
        learned = where.learned(settings.scenario.path)
        with (
            recorded_live(prepared, base, settings.record_mb, self._say("warning")) as recorders,
            kept(prepared, policy, predictor, learned, self._say("note")) as keepers,
        ):
            await self._serve(prepared, policy, predictor, where, [*recorders, *keepers])

    async def _unless_stopped(self, where: Places) -> Prepared:
        """The device, prepared. Ends the process when told to stop meanwhile: a thread that loads a model
        cannot be interrupted, and nothing is lost with it."""
        preparing = asyncio.ensure_future(
            asyncio.to_thread(prepare, self._settings.scenario, where, progress=self._progress)
        )
        stopped = asyncio.create_task(self._parent.stopped.wait())
        await asyncio.wait({preparing, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not preparing.done():
            os._exit(0)
        stopped.cancel()
        return preparing.result()

    async def _serve(
        self,
        prepared: Prepared,
        policy: Policy,
        predictor: Served,
        where: Places,
        observers: list[Observer],
    ) -> None:
        clock = MonotonicClock()
        observing = Observing(prepared, policy.name, where.slow)
        engine = self._engine = make_engine(
            prepared,
            policy,
            predictor=predictor,
            clock=clock,
            observers=[*observing.metrics.observers, *observers],
            log_path=where.store / "logs" / "events.log" if prepared.scenario.server.event_log else None,
            told_slow=observing.told_slow,
        )
        observing.metrics.watch(engine)
        engine.start()
        engine.on_models = self._server.tell
        if prepared.scenario.path.is_file():
            self._reloader = Reloader(engine, prepared, self._say("note"))
        self._server.serve(LocalLink(engine, clock, observing.metrics.render))
        self._parent.say(control.Ready())
        try:
            await self._parent.stopped.wait()
        finally:
            self._server.close()
            engine.stop()
            observing.close()

    # --- telling and being told -----------------------------------------------------------------------

    def _say(self, kind: str) -> Callable[[str], None]:
        return lambda text: self._parent.say(control.Said(kind, text))

    def _progress(self, what: str, done: int, total: int) -> None:
        """In the thread that prepares."""
        now = MonotonicClock.now()
        if now - self._told_at >= TELL_EVERY_NS:
            self._told_at = now
            self._parent.say(control.Progress(what, done, total))
            waiting = f"the engine is starting: {what} ({done} of {total})"
            self._loop.call_soon_threadsafe(self._server.starting, waiting)

    def _told(self, frame: control.ToChild) -> None:
        match frame:
            case control.Drain(limit_s):
                self._draining = self._loop.create_task(self._drain(limit_s))
            case control.Reload():
                if self._reloader is not None:
                    self._reloader.request()

    async def _drain(self, limit_s: float) -> None:
        if self._engine is not None:
            draining = asyncio.create_task(self._engine.drain(limit_s))
            await asyncio.sleep(0)
            self._server.tell()
            await draining
        self._parent.say(control.Drained())


async def run(descriptor: int) -> int:
    """Be launched, and serve; the exit status."""
    parent = control.Parent()
    try:
        launch = await parent.launched(descriptor)
        listener = socket.socket(fileno=launch.socket)
        listener.setblocking(False)
        settings = decode(launch.settings, EngineSettings)
        server = settings.scenario.server
        with logging_to(sys.stderr, server.log_format, server.log_level):
            await EngineProcess(parent, settings, listener).run()
    except EOFError:
        return 0
    except (ValueError, OSError) as error:
        parent.say(control.Failed(str(error), without_paths(str(error))))
        return CANNOT_START
    finally:
        await parent.close()
    return 0


def main() -> None:
    """Entry point."""
    control.become_child()
    control.be_ended_first()
    status = uvloop.run(run(int(sys.argv[1])))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # a thread that still loads or runs a model is not waited for


if __name__ == "__main__":
    main()

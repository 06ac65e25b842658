"""The engine in a process of its own, as the front end sees it: implements `EngineLink` with frames.

A lost engine is not an error here: what was in flight is answered as cancelled with a reason that makes it a
503, calls are refused until the next engine has said that it is ready, and what is known of the models stays,
so that a client hears 503 and not 404 meanwhile. The connection to the next engine is made at once; it waits
at the socket, which the supervisor holds, until there is one.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from msgspec import structs

from cotenant import wire
from cotenant.channel import Channel, FrameError
from cotenant.clock import MonotonicClock
from cotenant.domain import JobClass, ModelMetadata, Outcome, OutcomeKind, Request
from cotenant.engine_client import Absence, Call, EngineDownError, ModelStatistics, ModelStatus, Reply
from cotenant.handshake import connected, exchange
from cotenant.ports import Tensors
from cotenant.shm import Arena, ArenaFullError, Slot, SlotError, Window

LOST = "not available: the engine was lost; it starts anew"
FULL = "not available: the memory for tensors on their way is full"
BEHIND = "not available: the engine does not keep up"
STARTING = Absence(reason="the engine is starting")
ANEW = Absence(reason="the engine was lost; it starts anew")
RETRY_S = 0.2
"""How long after a connection that could not be made the next is tried (s)."""
TELL_SENT_S = 0.02
"""How long what is known of sent answers may wait to be told (s)."""
NO_TENSORS: Tensors = {}


class _Connection:
    """What belongs to one connection and goes with it."""

    def __init__(self, link: RemoteLink, n_bytes: int) -> None:
        self.arena = Arena(n_bytes)
        self.window: Window | None = None
        self.calls: dict[str, tuple[Call, Callable[[Reply], None]]] = {}
        self.questions: dict[int, Callable[[wire.Told | None], None]] = {}
        self.lost = asyncio.Event()
        self.channel = Channel(wire.FromEngine, partial(link.took, self), self._on_lost)
        self.returns = wire.Returns(self.channel, n_bytes)

    def _on_lost(self, why: str) -> None:
        self.lost.set()

    def close(self) -> None:
        """Let go of everything; arrays on the window stay until their users are done."""
        self.channel.fail("closed")
        self.arena.close()
        self.window = None


class RemoteLink:
    """Implements `EngineLink` over the socket at `path`, which is connected to while `run` runs.

    `models`: names of the configured models, for what is asked before the first engine has said anything.
    `arena_bytes`: the most memory that tensors on their way may take, in each direction."""

    def __init__(self, path: Path, models: Sequence[str], arena_bytes: int) -> None:
        self.now = MonotonicClock.now
        self.on_state: Callable[[], None] = lambda: None
        """Called when the engine has said something of its state, or was lost."""
        self._path, self._arena_bytes = path, arena_bytes
        self._models: dict[str, ModelMetadata] = {}
        self._status = tuple(ModelStatus(name=name, state="LOADING") for name in models)
        self._absence: Absence | None = STARTING
        self._before: Absence | None = None
        self._connection: _Connection | None = None
        self._questions = itertools.count()
        self._sent: list[tuple[str, int]] = []
        self.n_lost = 0
        """Engines that were lost so far."""

    # --- the connection -------------------------------------------------------------------------------

    async def run(self) -> None:
        """Connect, and connect anew whenever the engine is lost; until cancelled."""
        while True:
            try:
                await self._hold(_Connection(self, self._arena_bytes))
            except OSError as error:
                if self._absence in (STARTING, ANEW):
                    reason = f"the engine cannot be reached: {error.strerror or error}"
                    self._absence = Absence(reason=reason)
                await asyncio.sleep(RETRY_S)

    async def _hold(self, connection: _Connection) -> None:
        try:
            await self._meet(connection)
            await connection.lost.wait()
            self.n_lost += 1
        finally:
            self._connection = None
            connection.close()
            self._abandon(connection)

    async def _meet(self, connection: _Connection) -> None:
        sock = connected(self._path)
        try:
            connection.window = await exchange(sock, connection.arena, connection.returns.add)
            self._connection = connection
            await asyncio.get_running_loop().create_unix_connection(lambda: connection.channel, sock=sock)
        except BaseException:
            sock.close()
            raise

    def _abandon(self, connection: _Connection) -> None:
        """Nothing more will come over this connection: answer whoever waits."""
        self._status = tuple(_waiting(status) for status in self._status)
        if self._absence is None:
            self._absence = ANEW
        calls, connection.calls = connection.calls, {}
        for call, reply in calls.values():
            reply(Reply(outcome=self._outcome(call, OutcomeKind.CANCELLED, LOST)))
        questions, connection.questions = connection.questions, {}
        for told in questions.values():
            told(None)
        self.on_state()

    def absent(self, absence: Absence) -> None:
        """Whoever watches over the engine knows why there is none, and for how long."""
        self._absence = self._before = absence
        self.on_state()

    # --- what comes from the engine -------------------------------------------------------------------

    def took(self, connection: _Connection, frame: wire.FromEngine) -> None:
        """Take a frame. Raises FrameError."""
        match frame:
            case wire.Answer(outcome, parts, slot):
                self._answered(connection, outcome, parts, slot)
            case wire.Release(slots):
                try:
                    for slot in slots:
                        connection.arena.release(slot)
                except SlotError as error:
                    raise FrameError(str(error)) from None
            case wire.State():
                self._told_state(frame)
            case wire.Told():
                told = connection.questions.pop(frame.n, None)
                if told is None:
                    raise FrameError("an answer to a question that was not asked")
                told(frame)

    def _answered(
        self, connection: _Connection, outcome: Outcome, parts: wire.Parts | None, slot: Slot | None
    ) -> None:
        found = connection.calls.pop(outcome.request.id, None)
        if found is None:
            raise FrameError("an answer to a call that was not made")
        assert connection.window is not None
        try:
            outputs = None if parts is None else wire.unpack(parts, slot, connection.window)
        except FrameError:
            connection.calls[outcome.request.id] = found
            raise
        found[1](Reply(outcome=outcome, outputs=outputs))

    def _told_state(self, state: wire.State) -> None:
        before = self._models
        if state.models or state.absence is None:
            # what has not changed stays the same object: codecs are kept by it
            self._models = {
                model.name: before[model.name] if before.get(model.name) == model else model
                for model in state.models
            }
        self._status = state.status or self._status
        self._absence = state.absence
        if self._absence is None:
            self._before = None
        elif self._before is not None:
            reason = f"{self._absence.reason} (before: {self._before.reason})"
            self._absence = structs.replace(self._before, reason=reason)
        self.on_state()

    # --- EngineLink -----------------------------------------------------------------------------------

    def submit(self, call: Call, reply: Callable[[Reply], None]) -> None:
        connection = self._connection
        if connection is None or self._absence is not None:
            reason = (self._absence or ANEW).reason
            return self._refuse(call, reply, f"not available: {reason}")
        if connection.channel.clogged:
            return self._refuse(call, reply, BEHIND)
        slot: Slot | None = None
        connection.returns.send()
        try:
            parts, slot = wire.pack(call.inputs, connection.arena)
            connection.channel.send(wire.Submit(structs.replace(call, inputs=NO_TENSORS), parts, slot))
        except (ArenaFullError, FrameError):
            if slot is not None:
                connection.arena.release(slot)
            return self._refuse(call, reply, FULL)
        connection.calls[call.id] = (call, reply)
        return None

    def _refuse(self, call: Call, reply: Callable[[Reply], None], reason: str) -> None:
        refusal = Reply(outcome=self._outcome(call, OutcomeKind.REJECTED, reason))
        asyncio.get_running_loop().call_soon(reply, refusal)

    def _outcome(self, call: Call, kind: OutcomeKind, reason: str) -> Outcome:
        """The end of a call that no engine ended."""
        request = Request(
            id=call.id,
            model=call.model,
            arrived_at=call.arrived_at,
            deadline_at=None if call.slo_ns is None else call.arrived_at + call.slo_ns,
            rows=call.rows,
            axes=call.axes,
            job_class=JobClass(min(max(call.priority, 0), JobClass.BEST_EFFORT) or JobClass.STANDARD),
        )
        return Outcome(request=request, kind=kind, reason=reason, ended_at=self.now())

    def cancel(self, call_id: str) -> None:
        if self._connection is not None and call_id in self._connection.calls:
            self._connection.channel.send(wire.Cancel(call_id))

    def metadata(self) -> Mapping[str, ModelMetadata]:
        return self._models

    def status(self) -> Sequence[ModelStatus]:
        return self._status

    def absence(self) -> Absence | None:
        return self._absence

    async def statistics(self) -> Sequence[ModelStatistics]:
        return (await self._asked("statistics")).statistics

    async def metrics(self, accept: str = "") -> tuple[bytes, str]:
        told = await self._asked("metrics", accept)
        return told.page, told.page_type

    async def explain(self, call_id: str) -> dict[str, Any] | None:
        return (await self._asked("explain", call_id)).explained

    def answered(self, call_id: str, span_ns: int) -> None:
        if not self._sent:
            asyncio.get_running_loop().call_later(TELL_SENT_S, self._tell_sent)
        self._sent.append((call_id, span_ns))

    def _tell_sent(self) -> None:
        sent, self._sent = tuple(self._sent), []
        if self._connection is not None and not self._connection.channel.clogged:
            self._connection.channel.send(wire.Sent(sent))

    def load(self, name: str, done: Callable[[str | None], None]) -> None:
        self._ask("load", name, lambda told: done(LOST if told is None else told.error))

    def unload(self, name: str, done: Callable[[str | None], None]) -> None:
        self._ask("unload", name, lambda told: done(LOST if told is None else told.error))

    async def _asked(self, what: str, about: str = "") -> wire.Told:
        future: asyncio.Future[wire.Told | None] = asyncio.get_running_loop().create_future()
        self._ask(what, about, lambda told: None if future.done() else future.set_result(told))
        told = await future
        if told is None:
            raise EngineDownError((self._absence or ANEW).reason)
        if told.error is not None:
            raise EngineDownError(told.error.removeprefix("not available: "))
        return told

    def _ask(self, what: str, about: str, told: Callable[[wire.Told | None], None]) -> None:
        """Ask the engine; `told(None)` where there is none."""
        connection = self._connection
        if connection is None or not connection.channel.open:
            told(None)
            return
        n = next(self._questions)
        connection.questions[n] = told
        connection.channel.send(wire.Ask(n, what, about))


def _waiting(status: ModelStatus) -> ModelStatus:
    return structs.replace(status, state="LOADING") if status.state == "READY" else status

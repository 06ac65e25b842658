"""The engine's end of the sockets: takes calls of any number of front ends, and answers them.

It speaks for any `EngineLink`: in a server for the engine beside it (`local_link.py`), in tests for one in
memory. Front ends may come before there is an engine to speak for; they are told why they have to wait, and
that it is there.

A front end that hangs up, or sends what makes no sense, is done with: what it has waiting is cancelled, and
its memory goes when the last run that reads it has ended. Others do not notice.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence

from msgspec import structs

from cotenant import wire
from cotenant.channel import Channel, FrameError
from cotenant.domain import Outcome, OutcomeKind, Request
from cotenant.engine_client import Absence, Call, EngineLink, ModelStatus, Reply
from cotenant.handshake import HandshakeError, exchange
from cotenant.intake import complaint
from cotenant.shm import Arena, ArenaFullError, Slot, SlotError, Window

HELLO_S = 10.0
"""How long whoever has connected may take to say hello (s)."""
ACCEPT_AGAIN_S = 0.1
"""How long after a connection that could not be accepted the next is (s)."""
MAX_CALLS = 1 << 16
"""Most calls of one front end under way."""
REFUSED = "not available: the engine is starting"
MANY = "not available: too many calls are under way"
MALFORMED = "execution failed: the call does not fit its model"
NO_ROOM = "execution failed: the memory for answers on their way is full"
ODD_OUTPUT = "execution failed: an output that cannot be sent"


class EngineServer:
    """Accepts front ends on `listener`. `arena_bytes`: the most memory that answers on their way to one of
    them may take. `status`: the configured models, until there is an engine."""

    def __init__(self, listener: socket.socket, arena_bytes: int, status: Sequence[ModelStatus] = ()) -> None:
        self._listener, self._arena_bytes = listener, arena_bytes
        self.link: EngineLink | None = None
        self.fronts: set[Front] = set()
        """Front ends that have said hello."""
        self.calls: set[str] = set()
        """Calls that the engine has not ended, also of front ends that have gone."""
        self._starting = wire.State((), tuple(status), Absence(reason="the engine is starting"))
        self._greeting: set[asyncio.Task[None]] = set()
        self._accepting: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Accept from now on, on the running loop."""
        self._accepting = asyncio.create_task(self._accept())

    def close(self) -> None:
        """Accept no more, and hang up on everybody."""
        for task in (self._accepting, *self._greeting):
            if task is not None:
                task.cancel()
        for front in list(self.fronts):
            front.channel.close()

    def starting(self, what: str) -> None:
        """Tell everybody why there is no engine yet."""
        self._starting = structs.replace(self._starting, absence=Absence(reason=what))
        self.tell()

    def serve(self, link: EngineLink) -> None:
        """There is an engine: tell everybody."""
        self.link = link
        self.tell()

    def tell(self) -> None:
        """Tell everybody the state of things, after a change of it."""
        state = self.state()
        for front in self.fronts:
            front.channel.send(state)

    def state(self) -> wire.State:
        """The state of things."""
        if self.link is None:
            return self._starting
        models, status = tuple(self.link.metadata().values()), tuple(self.link.status())
        return wire.State(models, status, self.link.absence())

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._listener)
            except OSError:  # too many open files: perhaps not for long
                await asyncio.sleep(ACCEPT_AGAIN_S)
                continue
            task = loop.create_task(self._greet(connection))
            self._greeting.add(task)
            task.add_done_callback(self._greeting.discard)

    async def _greet(self, connection: socket.socket) -> None:
        front: Front | None = None
        try:
            connection.setblocking(False)
            front = Front(self, Arena(self._arena_bytes))
            async with asyncio.timeout(HELLO_S):
                front.window = await exchange(connection, front.arena, front.returns.add)
            channel = front.channel
            await asyncio.get_running_loop().connect_accepted_socket(lambda: channel, connection)
        except (HandshakeError, OSError, TimeoutError):
            connection.close()
            if front is not None:
                front.arena.close()
        except BaseException:
            connection.close()
            raise


class Front:
    """One front end, until it hangs up."""

    def __init__(self, server: EngineServer, arena: Arena) -> None:
        self.arena = arena
        self.window: Window | None = None
        self.channel = Channel(wire.FromFront, self.took, self.lost, self._opened)
        self.returns = wire.Returns(self.channel, arena.n_bytes)
        self._server = server
        self._calls: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def _opened(self) -> None:
        self._server.fronts.add(self)
        self.channel.send(self._server.state())

    def lost(self, _: str) -> None:
        """It hung up: nobody waits for these any more."""
        self._server.fronts.discard(self)
        self.arena.close()
        self.window = None
        for task in self._tasks:
            task.cancel()
        calls, self._calls = self._calls, set()
        for call_id in calls:
            if self._server.link is not None:
                self._server.link.cancel(call_id)

    # --- frames ---------------------------------------------------------------------------------------

    def took(self, frame: wire.FromFront) -> None:
        """Take a frame. Raises FrameError."""
        match frame:
            case wire.Submit(call, parts, slot):
                self._submitted(call, parts, slot)
            case wire.Cancel(call_id):
                if call_id in self._calls and self._server.link is not None:
                    self._server.link.cancel(call_id)
            case wire.Release(slots):
                try:
                    for slot in slots:
                        self.arena.release(slot)
                except SlotError as error:
                    raise FrameError(str(error)) from None
            case wire.Ask(n, what, about):
                self._asked(n, what, about)
            case wire.Sent(calls, refused):
                if self._server.link is not None:
                    for call_id, span_ns in calls:
                        self._server.link.answered(call_id, span_ns)
                    for model, reason in refused:
                        self._server.link.refused(model, reason)

    def _submitted(self, call: Call, parts: wire.Parts, slot: Slot | None) -> None:
        assert self.window is not None
        inputs = wire.unpack(parts, slot, self.window)
        if call.id in self._server.calls:
            raise FrameError("two calls of one name")
        self._server.calls.add(call.id)
        self._calls.add(call.id)
        link = self._server.link
        if link is None:
            return self._end(call, OutcomeKind.REJECTED, REFUSED)
        if len(self._calls) > MAX_CALLS:
            return self._end(call, OutcomeKind.REJECTED, MANY)
        model = link.metadata().get(call.model)
        if model is not None and complaint(call, model, inputs, link.now()) is not None:
            return self._end(call, OutcomeKind.FAILED, MALFORMED)
        link.submit(structs.replace(call, inputs=inputs), self._answered)
        return None

    def _end(self, call: Call, kind: OutcomeKind, reason: str) -> None:
        """End a call that the engine does not get."""
        now = min(call.arrived_at, 2**62)
        request = Request(id=call.id, model=call.model, arrived_at=now, deadline_at=None)
        self._answered(Reply(outcome=Outcome(request=request, kind=kind, reason=reason, ended_at=now)))

    def _answered(self, reply: Reply) -> None:
        """Raises nothing: the engine calls it."""
        outcome = reply.outcome
        self._server.calls.discard(outcome.request.id)
        if outcome.request.id not in self._calls:
            return  # it hung up meanwhile
        self._calls.discard(outcome.request.id)
        self.returns.send()
        problem = ODD_OUTPUT
        slot: Slot | None = None
        try:
            parts: wire.Parts | None = None
            if reply.outputs is not None:
                parts, slot = wire.pack(reply.outputs, self.arena)
            self.channel.send(wire.Answer(outcome, parts, slot))
            return
        except ArenaFullError:
            problem = NO_ROOM
        except (TypeError, FrameError):
            if slot is not None:
                self.arena.release(slot)
        outcome = structs.replace(outcome, kind=OutcomeKind.FAILED, reason=problem)
        self.channel.send(wire.Answer(outcome, None, None))

    # --- questions ------------------------------------------------------------------------------------

    def _asked(self, n: int, what: str, about: str) -> None:
        link = self._server.link
        if link is None:
            self.channel.send(wire.Told(n, error=REFUSED))
            return
        match what:
            case "load" | "unload":
                act = link.load if what == "load" else link.unload
                act(about, lambda error: self.channel.send(wire.Told(n, error=error)))
            case "statistics" | "metrics" | "explain":
                task = asyncio.get_running_loop().create_task(self._answer(link, n, what, about))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            case _:
                raise FrameError("a question that is none")

    async def _answer(self, link: EngineLink, n: int, what: str, about: str) -> None:
        told = wire.Told(n, error="the engine cannot tell")
        try:
            told = await _told(link, n, what, about)
            self.channel.send(told)
        except FrameError:
            self.channel.send(wire.Told(n, error="there is too much to tell"))
        except Exception:
            self.channel.send(told)
            raise


async def _told(link: EngineLink, n: int, what: str, about: str) -> wire.Told:
    match what:
        case "statistics":
            return wire.Told(n, statistics=tuple(await link.statistics()))
        case "metrics":
            page, page_type = await link.metrics(about)
            return wire.Told(n, page=page, page_type=page_type)
        case _:
            return wire.Told(n, explained=await link.explain(about))

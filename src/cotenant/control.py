"""What a process and a child that it watches over tell each other, over a pair of sockets of their own.

The child's end is the leash too: when it is cut, the parent has gone, and the child ends.
"""

from __future__ import annotations

import asyncio
import ctypes
import faulthandler
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

from cotenant import __version__
from cotenant.channel import Channel, FrameError
from cotenant.engine_client import Absence

PR_SET_PDEATHSIG = 1
OOM_SCORE = "300"
"""Of 1000: where memory runs out, the system ends an engine rather than the front end that can start
another."""
LAST_WORDS_S = 1.0
"""How long the end may take to tell what is left to be told (s)."""


# --- parent to child ----------------------------------------------------------------------------------


class Launch(Struct, frozen=True, tag=True):
    """The first words: what to be. `settings` is for the child's program; `socket` is a descriptor that it
    inherits."""

    settings: bytes
    socket: int
    version: str = __version__


class Drain(Struct, frozen=True, tag=True):
    """Refuse what arrives from now on; answer `Drained` when what was admitted has ended, or after
    `limit_s`."""

    limit_s: float


class Reload(Struct, frozen=True, tag=True):
    """Read the configuration anew."""


class Notice(Struct, frozen=True, tag=True):
    """There is no engine, and why."""

    absence: Absence


class Stop(Struct, frozen=True, tag=True):
    """End in order."""


class Ping(Struct, frozen=True, tag=True):
    """Answer `Pong`, to show that you can."""


ToChild = Launch | Drain | Reload | Notice | Stop | Ping


# --- child to parent ----------------------------------------------------------------------------------


class Progress(Struct, frozen=True, tag=True):
    """How far the start is."""

    what: str
    done: int
    total: int


class Said(Struct, frozen=True, tag=True):
    """A line for the operator: a `note` on what was learned, a `warning`, or `not served` (and why)."""

    kind: str
    text: str


class Ready(Struct, frozen=True, tag=True):
    """The child does its work now."""


class Failed(Struct, frozen=True, tag=True):
    """The child cannot start, and why: in full for the operator, and without paths for strangers."""

    text: str
    public: str


class Drained(Struct, frozen=True, tag=True):
    """Nothing that was admitted is left."""


class Pong(Struct, frozen=True, tag=True):
    """The event loop turns."""


ToParent = Progress | Said | Ready | Failed | Drained | Pong


# --- the child's side ---------------------------------------------------------------------------------


def become_child() -> None:
    """Tie this process to the one that started it, as early as can be: it ends with it. Signals that a
    terminal or a service manager sends to all processes alike are left to the parent, which then says what
    to do."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    faulthandler.enable()


def be_ended_first() -> None:
    """Where memory runs out, have this process ended before others."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE, encoding="ascii")


class Parent:
    """The parent, as the child sees it. `stopped` is set when it says so, or has gone."""

    def __init__(self, on_frame: Callable[[ToChild], None] = lambda frame: None) -> None:
        self.stopped = asyncio.Event()
        self._launch: asyncio.Future[Launch] = asyncio.get_running_loop().create_future()
        self._lost = asyncio.Event()
        self._channel = Channel(ToChild, self._took, self._on_lost)
        self._loop = asyncio.get_running_loop()
        self.on_frame = on_frame

    async def launched(self, descriptor: int) -> Launch:
        """Take up the inherited descriptor and wait for the launch. Raises EOFError when the parent has
        gone, ValueError when it is of another version than what is installed now."""
        sock = socket.socket(fileno=descriptor)
        sock.setblocking(False)
        await self._loop.create_unix_connection(lambda: self._channel, sock=sock)
        launch = await self._launch
        if launch.version != __version__:
            raise ValueError(
                f"version {__version__} was installed under a server of version {launch.version}: restart it"
            )
        return launch

    def say(self, frame: ToParent) -> None:
        """Tell the parent. On any thread."""
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._channel.send, frame)

    async def close(self) -> None:
        """Tell what is left to be told, and hang up."""
        await asyncio.sleep(0)
        self._channel.close()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._lost.wait(), LAST_WORDS_S)

    def _took(self, frame: ToChild) -> None:
        match frame:
            case Launch():
                if self._launch.done():
                    raise FrameError("launched twice")
                self._launch.set_result(frame)
            case Stop():
                self.stopped.set()
            case Ping():
                self._channel.send(Pong())
            case _:
                self.on_frame(frame)

    def _on_lost(self, why: str) -> None:
        self._lost.set()
        self.stopped.set()
        if not self._launch.done():
            self._launch.set_exception(EOFError("the process that started this one has gone"))

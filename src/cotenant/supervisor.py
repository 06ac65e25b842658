"""Keeps a child process running: starts it, notices its end, starts it anew after a while that grows.

The child is a program of this package, started by `exec` and not by `fork`: it shares nothing with this
process but the descriptors that it is given, and a pair of sockets over which it is told what to be
(`control.py`).
"""

from __future__ import annotations

import asyncio
import os
import signal
import site
import socket
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import cotenant
from cotenant import control
from cotenant.channel import Channel
from cotenant.clock import MonotonicClock
from cotenant.domain import NS_PER_S

STDERR = 2
PINGS = 10
"""How often a child is asked whether it still answers, before it counts as hanging."""


class StartError(ValueError):
    """A child could not begin its work, for a reason that another try would not change."""


@dataclass(slots=True, kw_only=True)
class Backoff:
    """How long to wait before the next start: doubled from end to end, and short again after a child that had
    done its work for a while."""

    first_s: float = 0.1
    most_s: float = 30.0
    healthy_s: float = 10.0
    """Work for so long (s) makes what was before forgotten."""
    n_in_row: int = 0
    """Ends in a row without such work between them."""

    def after(self, served_s: float) -> float:
        """The wait (s) after the end of a child that had worked for so long."""
        if served_s >= self.healthy_s:
            self.n_in_row = 0
        self.n_in_row += 1
        return min(self.most_s, self.first_s * 2.0 ** min(self.n_in_row - 1, 60))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A child has ended and will be started anew after `wait_s`, which took `start_s` the last time;
    `n_in_row`: how many ended one after the other. `public`: how, fit for a stranger."""

    how: str
    public: str
    wait_s: float
    start_s: float
    n_in_row: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What to run: `python -m MODULE`, told `settings` and given `socket`."""

    name: str
    module: str
    settings: bytes
    socket: socket.socket


class Supervisor:
    """Watches over one child. On the event loop of the main thread.

    `on_frame` takes what the child says; `on_ended` is told of every end that was not asked for."""

    def __init__(
        self,
        program: Program,
        on_frame: Callable[[control.ToParent], None] = lambda frame: None,
        on_ended: Callable[[Ended], None] = lambda ended: None,
        *,
        backoff: Backoff | None = None,
        silence_s: float = 0.0,
    ) -> None:
        """A child that was ready and then answers nothing for `silence_s` (0: for ever) is killed."""
        self.ready = asyncio.Event()
        """Set while the child does its work."""
        self.n_starts = 0
        self._program, self._on_frame, self._on_ended = program, on_frame, on_ended
        self._backoff, self._silence_s = backoff or Backoff(), silence_s
        self._process: Process | None = None
        self._channel: Channel | None = None
        self._failed: control.Failed | None = None
        self._hung = False
        self._began_at = self._ready_at = 0
        self._heard = False
        self._start_s = 0.0
        self._was_ready = False
        self._stopping = asyncio.Event()
        self.gone = asyncio.Event()
        """Set while there is no child."""

    async def run(self) -> None:
        """Keep it running until `stop`. Raises StartError when the first start fails by the child's own
        word."""
        while not self._stopping.is_set():
            crashed = False
            try:
                served_s, status = await self._once()
                how, public = self._how(status)
                crashed = status < 0
            except OSError as error:  # no memory for a process: perhaps not for long
                served_s, how = 0.0, f"could not be started: {error.strerror}"
                public = how
            if self._stopping.is_set():
                return
            if not self._was_ready and not crashed:
                raise StartError(self._failed.text if self._failed else f"the {self._program.name} {how}")
            wait_s = self._backoff.after(served_s)
            self._on_ended(
                Ended(
                    how=how,
                    public=public,
                    wait_s=wait_s,
                    start_s=self._start_s,
                    n_in_row=self._backoff.n_in_row,
                )
            )
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), wait_s)

    def send(self, frame: control.ToChild) -> None:
        """Tell the child; nothing happens where there is none."""
        if self._channel is not None:
            self._channel.send(frame)

    def let_end(self) -> None:
        """Start no other child when this one ends."""
        self._stopping.set()

    async def stop(self, limit_s: float) -> None:
        """Have it end in order, at most so long; then it is killed. It is not started anew."""
        self.let_end()
        self.send(control.Stop())
        process = self._process
        if process is None:
            return
        try:
            await asyncio.wait_for(self.gone.wait(), limit_s)
        except TimeoutError:
            self.kill()
            await self.gone.wait()

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()

    # --- one start ------------------------------------------------------------------------------------

    async def _once(self) -> tuple[float, int]:
        """Run the child until it ends: for how long it did its work (s), and its exit status."""
        self.n_starts += 1
        self._began_at = MonotonicClock.now()
        self._failed, self._hung = None, False
        self.gone.clear()
        lost = asyncio.Event()
        channel = Channel(control.ToParent, self._took, lambda why: lost.set())
        mine, its = socket.socketpair()
        try:
            with its:
                self._process = process = await self._spawn(its)
            mine.setblocking(False)
            await asyncio.get_running_loop().create_unix_connection(lambda: channel, sock=mine)
            self._channel = channel
            channel.send(control.Launch(self._program.settings, self._program.socket.fileno()))
            if self._stopping.is_set():
                channel.send(control.Stop())
            watching = asyncio.create_task(self._watch(channel))
            try:
                status = await process.wait()
            finally:
                watching.cancel()
            with suppress(TimeoutError):  # what it said last may still be on its way
                await asyncio.wait_for(lost.wait(), control.LAST_WORDS_S)
            served_ns = MonotonicClock.now() - self._ready_at if self.ready.is_set() else 0
            return served_ns / NS_PER_S, status
        finally:
            self.ready.clear()
            self.kill()
            self._process = self._channel = None
            channel.close()
            mine.close()
            self.gone.set()

    async def _watch(self, channel: Channel) -> None:
        """Kill a child that hangs: one that neither works nor ends is worse than none."""
        if not self._silence_s:
            return
        await self.ready.wait()
        n_silent = 0  # of our own waits: a parent that was stopped for a while blames nobody
        while n_silent < PINGS:
            self._heard = False
            channel.send(control.Ping())
            await asyncio.sleep(self._silence_s / PINGS)
            n_silent = 0 if self._heard else n_silent + 1
        self._hung = True
        self.kill()

    async def _spawn(self, its: socket.socket) -> Process:
        # -P: whatever lies in the current folder is not for importing
        command = [sys.executable, "-P", "-m", self._program.module, str(its.fileno())]
        return await asyncio.create_subprocess_exec(
            *command,
            stdin=DEVNULL,
            stdout=STDERR,
            pass_fds=(its.fileno(), self._program.socket.fileno()),
            env={**os.environ, "PYTHONPATH": _search_path()},
        )

    def _took(self, frame: control.ToParent) -> None:
        self._heard = True
        match frame:
            case control.Pong():
                return
            case control.Ready():
                self._ready_at = MonotonicClock.now()
                self._start_s = (self._ready_at - self._began_at) / NS_PER_S
                self._was_ready = True
                self.ready.set()
            case control.Failed():
                self._failed = frame
        self._on_frame(frame)

    def _how(self, status: int) -> tuple[str, str]:
        """How it ended: for the operator, for strangers."""
        if self._failed is not None:
            return f"could not start: {self._failed.text}", f"could not start: {self._failed.public}"
        if self._hung:
            how = f"did not answer for {self._silence_s:g} s and was killed"
        elif status >= 0:
            how = f"ended with status {status}"
        else:
            try:
                how = f"was ended by {signal.Signals(-status).name}"
            except ValueError:
                how = f"was ended by signal {-status}"
        return how, how


def _search_path() -> str:
    """Where the child finds this package: where this process has found it."""
    before = os.environ.get("PYTHONPATH", "")
    root = str(Path(cotenant.__file__).resolve().parents[1])
    entries = [entry for entry in before.split(os.pathsep) if entry]
    found_anyway = root in entries or root in site.getsitepackages()
    return os.pathsep.join(entries if found_anyway else [*entries, root])

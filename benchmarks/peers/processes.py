"""Servers as processes: start, ask, stop; and whose CPU time was spent in a stretch of time.

A server's processes are told apart by a variable in their environment, which whatever they start inherits:
servers daemonise, and put workers into sessions of their own.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from catalogue import Place, Post, Server, free_port
from settings import START_LIMIT_S, STOP_LIMIT_S

MARK = "PEERS_SERVER"
TICKS = os.sysconf("SC_CLK_TCK")
LOG_TAIL = 1500


class ServerError(Exception):
    """A server cannot be started, or stopped answering; the message is the reason."""


@dataclass(frozen=True, kw_only=True)
class Running:
    """A server that runs."""

    server: Server
    port: int
    mark: str
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def post(self, post: Post, timeout_s: float = 10.0) -> tuple[bytes, Mapping[str, str]]:
        """Body and headers (names in lower case) of the answer. Raises OSError when there is none with
        status 200."""
        request = urllib.request.Request(self.url + post.path, post.body, dict(post.headers))
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            return answer.read(), {name.lower(): value for name, value in answer.headers.items()}

    def cpu_s(self) -> float:
        """User and system time so far of all its processes, and of those of theirs that have ended (s)."""
        return sum(_spent_s(pid) for pid in marked(self.mark))

    def tail(self) -> str:
        """The end of what it printed."""
        return self.log.read_text(errors="replace")[-LOG_TAIL:]


def marked(mark: str) -> list[int]:
    """Processes with the mark in their environment."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if wanted in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
    return found


def _spent_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / TICKS


@contextmanager
def running(server: Server, place: Place, is_right: Callable[[Running], bool]) -> Iterator[Running]:
    """The server, once `is_right` says that it answers. Raises ServerError with the end of its log."""
    place.folder.mkdir(parents=True, exist_ok=True)
    port, mark = free_port(), uuid.uuid4().hex
    log = place.folder / "server.log"
    variables = {**os.environ, **place.variables(), **server.environment(place), MARK: mark}
    command = server.command(place, port)
    with log.open("wb") as output:
        child = subprocess.Popen(
            command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, env=variables,
            cwd=place.folder, start_new_session=True,
        )  # fmt: skip
    found = Running(server=server, port=port, mark=mark, log=log)
    try:
        _await(found, child, is_right)
        yield found
    finally:
        stop(child, mark)


def _await(found: Running, child: subprocess.Popen[bytes], is_right: Callable[[Running], bool]) -> None:
    until = time.monotonic() + START_LIMIT_S
    while True:
        with suppress(OSError, ValueError, KeyError, IndexError, TypeError):
            if is_right(found):
                return
            raise ServerError(f"{found.server.name} answers, but not what the model gives")
        if child.poll() is not None:
            raise ServerError(f"{found.server.name} ended with status {child.returncode}: {found.tail()}")
        if time.monotonic() > until:
            raise ServerError(f"{found.server.name} did not answer in {START_LIMIT_S:.0f} s: {found.tail()}")
        time.sleep(0.3)


def stop(child: subprocess.Popen[bytes], mark: str) -> None:
    """End the process and whatever it started, first politely."""
    child.terminate()
    with suppress(subprocess.TimeoutExpired):
        child.wait(STOP_LIMIT_S)
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    for pid in marked(mark):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    child.wait()


# --- CPU time -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Spent:
    """CPU time in a stretch of time (s), and by whom; `others` is a share of the machine."""

    wall_s: float
    server_s: float
    generator_s: float
    others: float


class Meter:
    """Measures from its making to `stop`. Own time counts children only that have ended by then: the load
    generator's, for the server has not."""

    def __init__(self, found: Running) -> None:
        self._found = found
        self._before = self._now()

    def _now(self) -> tuple[float, float, float, float]:
        own = os.times()
        return time.monotonic(), self._found.cpu_s(), sum(own[:4]), _busy_s()

    def stop(self) -> Spent:
        wall, server, own, busy = (b - a for a, b in zip(self._before, self._now(), strict=True))
        others = max(0.0, busy - server - own)
        return Spent(
            wall_s=wall, server_s=server, generator_s=own, others=others / (wall * (os.cpu_count() or 1))
        )


def _busy_s() -> float:
    """Time in which the machine's cores were not idle (s): all but idle, waiting, and stolen by other guests
    of the host."""
    fields = Path("/proc/stat").read_text().partition("\n")[0].split()[1:]
    user, nice, system, _idle, _waiting, interrupts, soft = map(int, fields[:7])
    return (user + nice + system + interrupts + soft) / TICKS

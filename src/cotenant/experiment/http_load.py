"""A small HTTP/1.1 client for load generation: raw asyncio, keep-alive, a bounded number of connections.

Written for little CPU per request, because generator and server share the machine: no client library here
comes near. It speaks just what the load needs: POST with a body, responses with a Content-Length.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable
from typing import Any, cast
from urllib.parse import urlsplit

import httptools

Answer = Callable[[int, dict[str, str]], None]
"""Told (status, x- headers and Server-Timing); status 0 when the connection failed."""


class Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request under way."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._parser: Any = None
        self._headers: dict[str, str] = {}
        self._answer: Answer | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def send(self, request: bytes, answer: Answer) -> None:
        """Send one request; `answer` is told once."""
        self._answer = answer
        self._headers = {}
        self._parser = httptools.HttpResponseParser(self)
        assert self._transport is not None
        self._transport.write(request)

    def close(self) -> None:
        """Hang up; a request under way is answered with status 0."""
        if self._transport is not None:
            self._transport.close()
        self._end(0)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._pool.lost(self)
        self._end(0)

    def on_header(self, name: bytes, value: bytes) -> None:
        if name[:2] in (b"x-", b"X-") or name == b"server-timing":
            self._headers[name.decode().lower()] = value.decode()

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        keep = self._parser.should_keep_alive()
        if not keep and self._transport is not None:
            self._transport.close()
        self._end(status)
        if keep:
            self._pool.free(self)

    def _end(self, status: int) -> None:
        answer, self._answer = self._answer, None
        if answer is not None:
            answer(status, self._headers)


class Pool:
    """At most `limit` connections to one server; what finds none free waits its turn, in order."""

    def __init__(self, url: str, limit: int = 256) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(f"{url!r} is not an address of the form http://HOST:PORT")
        self.host, self.port = parts.hostname, parts.port or 80
        self.authority = f"{self.host}:{self.port}".encode()
        self._limit = limit
        self._free: list[Connection] = []
        self._all: set[Connection] = set()
        self._n_opening = 0
        self._waiting: deque[tuple[Callable[[], bytes], Answer]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()

    def post(self, make: Callable[[], bytes], answer: Answer) -> None:
        """Send what `make()` builds, at the moment when a connection is there for it."""
        if self._free:
            self._free.pop().send(make(), answer)
            return
        self._waiting.append((make, answer))
        if len(self._all) + self._n_opening < self._limit:
            self._n_opening += 1
            task = asyncio.get_running_loop().create_task(self._open())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(lambda: Connection(self), self.host, self.port)
        except OSError:
            self._n_opening -= 1
            if self._waiting and not self._all and not self._n_opening:
                while self._waiting:
                    self._waiting.popleft()[1](0, {})
            return
        self._n_opening -= 1
        self._all.add(connection)
        self.free(connection)

    def free(self, connection: Connection) -> None:
        """The connection can take the next request."""
        if self._waiting:
            make, answer = self._waiting.popleft()
            connection.send(make(), answer)
        else:
            self._free.append(connection)

    def lost(self, connection: Connection) -> None:
        """The connection is gone."""
        self._all.discard(connection)
        if connection in self._free:
            self._free.remove(connection)

    def close(self) -> None:
        """Hang up every connection; whatever was under way or waited is answered with status 0."""
        waiting, self._waiting = list(self._waiting), deque()
        for connection in list(self._all):
            connection.close()
        for _, answer in waiting:
            answer(0, {})


async def get_json(url: str, path: str) -> Any:
    """GET a JSON document, off the event loop. Raises ValueError with a clear message."""
    import urllib.error
    import urllib.request

    def fetch() -> Any:
        try:
            with urllib.request.urlopen(url.rstrip("/") + path, timeout=10) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            raise ValueError(
                f"{url}{path} answered {error.code}: {error.read(300).decode(errors='replace')}"
            ) from None
        except (OSError, ValueError) as error:
            raise ValueError(
                f"the server at {url} cannot be reached: {getattr(error, 'reason', error)}"
            ) from None

    return await asyncio.to_thread(fetch)

"""One HTTP connection, with limits: how many there are, how large and how slow a request may be.

uvicorn's protocol bounds what it buffers of a body, but neither the size of headers and target, nor how long
they take to arrive, nor how many requests are pipelined. Times are kept by one sweep per second over all
connections, so that a request pays for no timer.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any, ClassVar

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from cotenant.serve.settings import FrontDoor

MAX_PIPELINED = 128
"""Requests that may wait behind another on one connection."""
OVERHEAD = 8
"""Most bytes on the wire per byte of a chunked body: the smallest chunks have six."""


def raw_answer(status: int, message: str) -> bytes:
    """A whole answer for a connection that is about to be closed."""
    body = orjson.dumps({"error": message})
    retry = b"retry-after: 1\r\n" if status == HTTPStatus.SERVICE_UNAVAILABLE else b""
    return b"".join(
        (
            b"HTTP/1.1 %d %s\r\n" % (status, HTTPStatus(status).phrase.encode()),
            b"content-type: application/json\r\n",
            b"content-length: %d\r\n" % len(body),
            b"connection: close\r\n",
            retry,
            b"\r\n",
            body,
        )
    )


class Answers:
    """The part of a transport that answers are written to. What is written after the client has gone, but
    before that was told, is dropped; a transport of uvloop would raise."""

    __slots__ = ("_transport", "close", "is_closing")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.close = transport.close
        self.is_closing = transport.is_closing

    def write(self, data: bytes) -> None:
        """Send, if there is anybody to send to."""
        if not self.is_closing():
            self._transport.write(data)


class GuardedProtocol(HttpToolsProtocol):
    """A connection; `limited` makes the class that a server uses."""

    door: ClassVar[FrontDoor] = FrontDoor()

    _refused = False
    _begun_at: float | None = None
    """When the message that is arriving began (loop time, s); None between messages."""
    _in_headers = True
    _n_read = 0
    """Bytes of the read that is being parsed."""
    _n_first = 0
    """Bytes of the read that the message began in."""
    _n_wire = 0
    """Bytes of the message in later reads."""
    _n_body = 0
    _unsent = 0
    _stuck_since: float | None = None

    # --- the connection -------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        if len(self.connections) >= self.door.max_connections and not self._close_an_idle_one():
            self.transport = transport
            self._refuse(503, "the server has as many connections as it takes")
            return
        super().connection_made(transport)
        self._answers = Answers(transport)
        self._begun_at = self.loop.time()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        cycle.transport = self._answers  # type: ignore[assignment]
        super()._start_asgi_task(cycle, app)

    def _close_an_idle_one(self) -> bool:
        for other in self.connections:
            if isinstance(other, GuardedProtocol) and other.is_idle():
                self.connections.discard(other)
                other.transport.close()
                return True
        return False

    def is_idle(self) -> bool:
        """Whether it is between two requests, its last answer sent."""
        answered = self.cycle is None or self.cycle.response_complete
        return self._begun_at is None and answered and not self.transport.get_write_buffer_size()

    def sweep(self, now: float) -> None:
        """Close the connection if its client is too slow to send or to read; `now` is loop time (s)."""
        if self._stuck(now):
            self.transport.abort()
        elif self._begun_at is not None and not self._refused:
            waited_s = now - self._begun_at
            if self._in_headers and waited_s > self.door.header_timeout_s:
                self._refuse(408, "the headers did not arrive in time")
            elif waited_s > self.door.header_timeout_s + self.door.body_timeout_s:
                self._refuse(408, "the body did not arrive in time")

    def _stuck(self, now: float) -> bool:
        """Whether an answer is there and the client has long taken nothing of it."""
        unsent, self._unsent = self._unsent, self.transport.get_write_buffer_size()
        if not self._unsent or self._unsent < unsent or self._stuck_since is None:
            self._stuck_since = now
        return now - self._stuck_since > self.door.body_timeout_s

    def _refuse(self, status: int, message: str) -> None:
        """Answer, unless another answer is due first or has begun, and close."""
        self._refused = True
        cycle = self.cycle
        in_turn = cycle is None or cycle.response_complete
        if in_turn or not (self._in_headers or cycle.response_started):
            self.transport.write(raw_answer(status, message))
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
        self.transport.close()

    # --- bytes ----------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if self._begun_at is None:
            self._begun_at = self.loop.time()
            self._in_headers = True
        self._n_read = len(data)
        self._n_wire += len(data)
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # asked for, and not done: the request has been answered like any other
        except httptools.HttpParserError:
            if not self._refused:
                self._refuse(400, "not a valid HTTP request")
        if self._n_wire > self._most_header_bytes() + OVERHEAD * self._n_body and not self._refused:
            if self._in_headers:
                self._refuse(431, self._too_large())
            else:
                self._refuse(400, "the body's chunks and trailers are larger than the body")

    def _most_header_bytes(self) -> int:
        return self.door.max_header_kib * 1024

    def _too_large(self) -> str:
        return (
            f"the headers are above the limit of {self.door.max_headers} of together "
            f"{self.door.max_header_kib} KiB"
        )

    # --- the parser's calls ---------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._begun_at is None:
            self._begun_at = self.loop.time()
        self._n_first, self._n_wire, self._n_body = self._n_read, 0, 0
        self._in_headers = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        if self._refused:
            return
        if len(self.url) > self.door.max_url_bytes:
            return self._refuse(
                414, f"the target is longer than the limit of {self.door.max_url_bytes} bytes"
            )
        if len(self.headers) > self.door.max_headers or self._headers_too_large():
            return self._refuse(431, self._too_large())
        if len(self.pipeline) >= MAX_PIPELINED:
            self._refused = True
            return self.transport.abort()
        self._in_headers = False
        super().on_headers_complete()

    def _headers_too_large(self) -> bool:
        most = self._most_header_bytes()
        if self._n_first + self._n_wire <= most:
            return False
        return sum(len(name) + len(value) for name, value in self.headers) > most

    def on_body(self, body: bytes) -> None:
        self._n_body += len(body)
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._begun_at = None
        if not self._refused:
            super().on_message_complete()


def limited(door: FrontDoor) -> type[GuardedProtocol]:
    """The connections of a server with these limits."""
    return type("LimitedProtocol", (GuardedProtocol,), {"door": door})

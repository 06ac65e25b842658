"""The synchronous client."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Self

from cotenant import clock
from cotenant.client.errors import ServerError, Unavailable
from cotenant.client.http1 import AnswerParser, request_bytes
from cotenant.client.wire import Deadline, Reply, Result, Server, decode, encode, error_of, infer_path

RECEIVED_BYTES = 1 << 18


class Client:
    """Asks one server; may be shared by threads. Connections are kept and reused, one per request under way.

    `headers` go with every request (an API key, for instance). `ssl_context` for https addresses.
    `timeout_s`: for how long a call waits for its answer, whatever its deadline."""

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 60.0,
        headers: Mapping[str, str] | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._server = Server.at(url)
        self._timeout_s = timeout_s
        self._headers = dict(headers or {})
        self._ssl = (ssl_context or ssl.create_default_context()) if self._server.tls else None
        self._lock = threading.Lock()
        self._idle: list[socket.socket] = []

    def infer(
        self,
        model: str,
        inputs: Mapping[str, Any],
        *,
        deadline_ms: float | None = None,
        outputs: Sequence[str] | None = None,
        version: str | None = None,
        priority: int = 0,
        retry: bool = False,
    ) -> Result:
        """Outputs by name for arrays by name, rows first.

        `deadline_ms`: from this call until the answer is due (None: the model's SLO, from its arrival); what
        is left of it is sent along. `outputs`: which are wanted. `priority`: 1 protected, 2 standard, 3 best
        effort; 0 the model's. `retry`: ask again after a refusal that says when, if the deadline allows.
        Raises Rejected, Expired, Unavailable, InvalidRequest, Failed and Cancelled, all of them ServerError;
        ValueError for what is no tensor. A late answer is a result with `late` set."""
        deadline = Deadline(deadline_ms, self._timeout_s)
        headers, body = encode(inputs, outputs, {"priority": priority} if priority else {})
        while True:
            try:
                path = infer_path(model, version)
                return decode(self._ask("POST", path, body, headers, deadline), deadline)
            except ServerError as error:
                pause_s = deadline.pause_s(error) if retry else None
                if pause_s is None:
                    raise
            clock.sleep(pause_s)

    def get(self, path: str) -> Any:
        """A JSON document, `/v2/models` for instance. Raises as `infer` does."""
        reply = self._ask("GET", path, b"", {}, Deadline(None, self._timeout_s))
        if reply.status != 200:
            raise error_of(reply)
        return json.loads(reply.body)

    def ready(self) -> bool:
        """Whether the server takes requests."""
        try:
            self.get("/v2/health/ready")
        except ServerError:
            return False
        return True

    def close(self) -> None:
        """Close the idle connections. The client can be used again."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- connections --------------------------------------------------------------------------------------

    def _ask(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str], deadline: Deadline
    ) -> Reply:
        """An answer. A kept connection that the server closed meanwhile is replaced, once for each."""
        while True:
            with self._lock:
                kept = self._idle.pop() if self._idle else None
            try:
                connection = kept or self._open(deadline)
                with closing_on_error(connection):
                    sent = {**self._headers, **headers, **deadline.headers()}
                    request = request_bytes(self._server, method, path, sent, body)
                    return self._exchange(connection, request, deadline)
            except TimeoutError:
                raise Unavailable(f"no answer within {self._timeout_s:g} s") from None
            except OSError as error:
                if kept is not None and isinstance(error, ConnectionError):
                    continue
                what = f"{self._server.authority} cannot be asked: {str(error) or type(error).__name__}"
                raise Unavailable(what) from error

    def _exchange(self, connection: socket.socket, request: bytes, deadline: Deadline) -> Reply:
        """Send, and read to the end of the answer; the connection is kept if it may be."""
        connection.settimeout(deadline.left_s())
        connection.sendall(request)
        parser, reply = AnswerParser(), None
        while reply is None:
            connection.settimeout(deadline.left_s())
            data = connection.recv(RECEIVED_BYTES)
            if not data:
                raise ConnectionResetError("the server closed the connection")
            reply = parser.feed(data)
        if parser.reusable:
            with self._lock:
                self._idle.append(connection)
        else:
            connection.close()
        return reply

    def _open(self, deadline: Deadline) -> socket.socket:
        address = (self._server.host, self._server.port)
        connection = socket.create_connection(address, deadline.left_s())
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._ssl is None:
            return connection
        with closing_on_error(connection):
            return self._ssl.wrap_socket(connection, server_hostname=self._server.host)

    def __del__(self) -> None:
        with suppress(Exception):
            self.close()


@contextmanager
def closing_on_error(connection: socket.socket) -> Iterator[None]:
    """A connection on which something went wrong is of no use any more."""
    try:
        yield
    except BaseException:
        connection.close()
        raise

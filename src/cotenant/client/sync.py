"""The synchronous client."""

from __future__ import annotations

import http.client
import json
import ssl
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Self

from cotenant import clock
from cotenant.client.errors import ServerError, Unavailable
from cotenant.client.wire import Deadline, Reply, Result, Server, decode, encode, error_of, infer_path


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
        self._ssl = ssl_context
        self._lock = threading.Lock()
        self._idle: list[http.client.HTTPConnection] = []

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
                sent = {**headers, **deadline.headers()}
                return decode(self._ask("POST", infer_path(model, version), body, sent, deadline), deadline)
            except ServerError as error:
                pause_s = deadline.pause_s(error) if retry else None
                if pause_s is None:
                    raise
            clock.sleep(pause_s)

    def get(self, path: str) -> Any:
        """A JSON document, `/v2/models` for instance. Raises as `infer` does."""
        reply = self._ask("GET", path, None, {}, Deadline(None, self._timeout_s))
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
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], deadline: Deadline
    ) -> Reply:
        """An answer. A kept connection that the server closed meanwhile is replaced, once for each."""
        while True:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            reused = connection is not None
            connection = connection or self._new_connection()
            try:
                return self._exchange(connection, method, path, body, headers, deadline)
            except TimeoutError:
                connection.close()
                raise Unavailable(f"no answer within {self._timeout_s:g} s") from None
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                if reused and isinstance(error, ConnectionError | http.client.BadStatusLine):
                    continue
                what = f"{self._server.authority} cannot be asked: {str(error) or type(error).__name__}"
                raise Unavailable(what) from error

    def _exchange(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: bytes | None,
        headers: Mapping[str, str],
        deadline: Deadline,
    ) -> Reply:
        connection.timeout = deadline.left_s()
        if connection.sock is not None:
            connection.sock.settimeout(connection.timeout)
        connection.request(method, self._server.base + path, body, {**self._headers, **headers})
        answer = connection.getresponse()
        found = Reply(
            answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        )
        if answer.will_close:
            connection.close()
        else:
            with self._lock:
                self._idle.append(connection)
        return found

    def _new_connection(self) -> http.client.HTTPConnection:
        server = self._server
        if server.tls:
            return http.client.HTTPSConnection(server.host, server.port, context=self._ssl)
        return http.client.HTTPConnection(server.host, server.port)

    def __del__(self) -> None:
        with suppress(Exception):
            self.close()

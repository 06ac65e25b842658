"""The asynchronous client: raw asyncio and httptools, no thread."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Mapping, Sequence
from typing import Any, Self

from cotenant.client.errors import ServerError, Unavailable
from cotenant.client.http1 import AnswerParser, request_bytes
from cotenant.client.wire import Deadline, Reply, Result, Server, decode, encode, error_of, infer_path


class _Connection(asyncio.Protocol):
    """One connection, with at most one request under way."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._parser: AnswerParser | None = None
        self._answer: asyncio.Future[Reply] | None = None
        self.reusable = True

    def ask(self, request: bytes) -> asyncio.Future[Reply]:
        """Send a request; the future fails with ConnectionError when the connection breaks."""
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._parser = AnswerParser()
        self._transport.write(request)
        return self._answer

    def close(self) -> None:
        """Hang up."""
        self.reusable = False
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        parser = self._parser
        if parser is None:  # nothing was asked
            return self.close()
        try:
            reply = parser.feed(data)
        except ConnectionError as error:
            self._end(error)
            return self.close()
        if reply is not None:
            self._parser = None
            self.reusable = self.reusable and parser.reusable
            self._end(reply)

    def connection_lost(self, error: Exception | None) -> None:
        self.reusable = False
        self._end(ConnectionResetError("the server closed the connection"))

    def _end(self, outcome: Reply | Exception) -> None:
        answer, self._answer = self._answer, None
        if answer is None or answer.done():
            return
        if isinstance(outcome, Reply):
            answer.set_result(outcome)
        else:
            answer.set_exception(outcome)


class AsyncClient:
    """Asks one server, from one event loop. Connections are kept and reused; `max_connections` limits how
    many requests are under way, the rest waits its turn. The other arguments are those of `Client`."""

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 60.0,
        headers: Mapping[str, str] | None = None,
        ssl_context: ssl.SSLContext | None = None,
        max_connections: int = 256,
    ) -> None:
        self._server = Server.at(url)
        self._timeout_s = timeout_s
        self._headers = dict(headers or {})
        self._ssl = (ssl_context or ssl.create_default_context()) if self._server.tls else None
        self._turns = asyncio.Semaphore(max_connections)
        self._idle: list[_Connection] = []

    async def infer(
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
        """As `Client.infer`. Cancelling the task hangs up, which cancels the request on the server too."""
        deadline = Deadline(deadline_ms, self._timeout_s)
        headers, body = encode(inputs, outputs, {"priority": priority} if priority else {})
        while True:
            try:
                path = infer_path(model, version)
                return decode(await self._ask("POST", path, body, headers, deadline), deadline)
            except ServerError as error:
                pause_s = deadline.pause_s(error) if retry else None
                if pause_s is None:
                    raise
            await asyncio.sleep(pause_s)

    async def get(self, path: str) -> Any:
        """A JSON document, `/v2/models` for instance. Raises as `infer` does."""
        reply = await self._ask("GET", path, b"", {}, Deadline(None, self._timeout_s))
        if reply.status != 200:
            raise error_of(reply)
        return json.loads(reply.body)

    async def ready(self) -> bool:
        """Whether the server takes requests."""
        try:
            await self.get("/v2/health/ready")
        except ServerError:
            return False
        return True

    async def close(self) -> None:
        """Close the idle connections. The client can be used again."""
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # --- connections --------------------------------------------------------------------------------------

    async def _ask(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str], deadline: Deadline
    ) -> Reply:
        """An answer. A kept connection that the server closed meanwhile is replaced, once for each."""
        try:
            async with asyncio.timeout(deadline.left_s()), self._turns:
                while True:
                    connection = self._kept()
                    reused = connection is not None
                    connection = connection or await self._open()
                    try:
                        sent = {**self._headers, **headers, **deadline.headers()}
                        return await self._exchange(connection, method, path, sent, body)
                    except ConnectionError:
                        if not reused:
                            raise
        except TimeoutError:
            raise Unavailable(f"no answer within {self._timeout_s:g} s") from None
        except OSError as error:
            what = f"{self._server.authority} cannot be asked: {str(error) or type(error).__name__}"
            raise Unavailable(what) from error

    async def _exchange(
        self, connection: _Connection, method: str, path: str, headers: Mapping[str, str], body: bytes
    ) -> Reply:
        try:
            reply = await connection.ask(request_bytes(self._server, method, path, headers, body))
        except BaseException:
            connection.close()
            raise
        if connection.reusable:
            self._idle.append(connection)
        else:
            connection.close()
        return reply

    def _kept(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable:
                return connection
        return None

    async def _open(self) -> _Connection:
        _, connection = await asyncio.get_running_loop().create_connection(
            _Connection, self._server.host, self._server.port, ssl=self._ssl
        )
        return connection

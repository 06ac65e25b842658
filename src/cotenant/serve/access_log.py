"""A log line per answered HTTP request. Off by default: an ASGI application around the others, so that it
costs nothing when it is not there. Neither query strings nor headers are logged."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from cotenant.domain import NS_PER_MS
from cotenant.serve.infer_route import Message, Receive, Scope, Send
from cotenant.telemetry.logs import Logger

_LOG = Logger("http")
LONGEST_PATH = 300
"""Characters of a path that are logged."""

Application = Callable[[Scope, Receive, Send], Awaitable[Any]]


class AccessLog:
    """Logs each request that `app` answered, when it is answered."""

    def __init__(self, app: Application, now: Callable[[], int]) -> None:
        """`now`: an instant in ns."""
        self._app, self._now = app, now

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began_at = self._now()
        start: Message = {}
        n_bytes = 0

        async def watched(message: Message) -> None:
            nonlocal start, n_bytes
            if message["type"] == "http.response.start":
                start = message
            else:
                n_bytes += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            status = start.get("status")
            path = scope["path"][:LONGEST_PATH]
            client = scope.get("client")
            _LOG.info(
                "http.request",
                f"{scope['method']} {path} {'no answer' if status is None else status}",
                method=scope["method"],
                path=path,
                status=status,
                ms=round((self._now() - began_at) / NS_PER_MS, 3),
                bytes=n_bytes,
                client=client[0] if client else None,
                request_id=_request_id(start),
            )


def _request_id(start: Message) -> str | None:
    for name, value in start.get("headers", ()):
        if name == b"x-request-id":
            return str(value.decode("latin-1"))
    return None

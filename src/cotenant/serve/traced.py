"""Traces of infer requests over HTTP: an ASGI application around the others, only there when it is wanted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cotenant.serve.access_log import Application
from cotenant.serve.infer_route import REQUEST_ID, Message, Receive, Scope, Send
from cotenant.telemetry.tracing import Trace, TraceParent, Tracing, parse

PREFIX, SUFFIX = "/v2/models/", "/infer"
FIRST_ERROR = 500


class Traced:
    """Begins a span with each infer request and ends it with the answer; everything else goes through."""

    def __init__(
        self, app: Application, tracing: Tracing, now: Callable[[], int], new_id: Callable[[], str]
    ) -> None:
        """`now`: an instant (ns) of the clock that stamps arrivals; `new_id` makes ids of requests."""
        self._app, self._tracing, self._now, self._new_id = app, tracing, now, new_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or scope["method"] != "POST" or not scope["path"].endswith(SUFFIX):
            await self._app(scope, receive, send)
            return
        trace = self._begin(scope)
        request_id = scope[REQUEST_ID] = trace.request_id(self._new_id())
        status = 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *trace.headers()]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            attributes: dict[str, Any] = {"cotenant.request_id": request_id}
            if status:
                attributes["http.response.status_code"] = status
            failed = not status or status >= FIRST_ERROR
            trace.end(request_id, self._now(), attributes, failed=failed)

    def _begin(self, scope: Scope) -> Trace:
        path: str = scope["path"]
        model = path.removeprefix(PREFIX).partition("/")[0]
        attributes: dict[str, Any] = {
            "http.request.method": "POST",
            "http.route": "/v2/models/{model}/infer",
            "url.path": path,
            "cotenant.model": model,
        }
        return self._tracing.begin(f"infer {model}", _parent(scope), self._now(), attributes)


def _parent(scope: Scope) -> TraceParent | None:
    parents: list[str] = []
    states: list[str] = []
    for name, value in scope["headers"]:
        if name == b"traceparent":
            parents.append(value.decode("latin-1"))
        elif name == b"tracestate":
            states.append(value.decode("latin-1"))
    return parse(parents[0], ",".join(states)) if len(parents) == 1 else None

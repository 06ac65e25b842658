"""OpenTelemetry traces: a span per request with its wait and its run as children. The extra `otel`.

How this works. Nothing of OpenTelemetry is imported unless the standard OTEL_* variables ask for traces. The
request's span begins when it arrives, so that its id can be handed out, and ends a moment after the answer:
then what became of the request is known (`explain`), and its spans are made from that, after the fact. The
sampler, the resource, the exporter and its batches are the SDK's, set by the same variables.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from cotenant import __version__
from cotenant.clock import Clock, wall_time_s
from cotenant.domain import NS_PER_MS, NS_PER_S
from cotenant.telemetry.logs import Logger
from cotenant.telemetry.trace_context import SAMPLED, TraceParent, parse

DETAILS_AFTER_S = 0.05
"""From an answer until its spans are made (s): its run is observed by then."""
CLOSE_LIMIT_S = 5.0
"""How long the last spans may take to be exported (s)."""
GROUP = "opentelemetry_traces_exporter"
PROTOCOLS = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}
PROTOCOL_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
INSTALL = "install the extra: pip install 'cotenant[otel]'"

Told = dict[str, Any]
Explain = Callable[[str], Told | Awaitable[Told | None] | None]
Attributes = Mapping[str, Any]

_LOG = Logger("tracing")


class TracingError(ValueError):
    """Traces are asked for and cannot be had; the message says why and what to do."""


def wanted(environ: Mapping[str, str]) -> bool:
    """Whether the standard variables ask for traces: an exporter other than `none`, or an endpoint."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporter = environ.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    if exporter:
        return exporter != "none"
    return any(
        environ.get(name) for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    )


def open_tracing(environ: Mapping[str, str], clock: Clock, explain: Explain) -> Tracing | None:
    """Tracing as the variables ask for it; None when they do not. Raises TracingError."""
    if not wanted(environ):
        return None
    try:
        sdk = import_module("opentelemetry.sdk.trace")
        export = import_module("opentelemetry.sdk.trace.export")
    except ImportError:
        message = f"the OTEL_* variables ask for traces, but OpenTelemetry is missing; {INSTALL}"
        raise TracingError(message) from None
    provider = sdk.TracerProvider(resource=_resource(environ), shutdown_on_exit=False)
    for name in environ.get("OTEL_TRACES_EXPORTER", "").split(",") or [""]:
        exporter = _exporter(name.strip() or "otlp", environ)
        provider.add_span_processor(export.BatchSpanProcessor(exporter))
    return Tracing(provider, clock, explain)


def traces(environ: Mapping[str, str], clock: Clock, explain: Explain) -> Tracing | None:
    """Tracing as `open_tracing`. Where it cannot be had the log says why, and the server serves without."""
    try:
        return open_tracing(environ, clock, explain)
    except TracingError as error:
        _LOG.warning("tracing.off", f"no traces: {error}")
        return None


def _resource(environ: Mapping[str, str]) -> Any:
    """`service.name` is `cotenant` unless OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES say another."""
    resource = import_module("opentelemetry.sdk.resources").Resource
    named = "OTEL_SERVICE_NAME" in environ or "service.name" in environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    own = {} if named else {"service.name": "cotenant"}
    return resource.create({**own, "service.version": __version__})


def _exporter(name: str, environ: Mapping[str, str]) -> Any:
    if name == "otlp":
        protocol = next(filter(None, map(environ.get, PROTOCOL_VARIABLES)), "http/protobuf")
        found = PROTOCOLS.get(protocol)
        if found is None:
            raise TracingError(f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol!r}; known: {', '.join(PROTOCOLS)}")
        name = found
    entries = list(entry_points(group=GROUP, name=name))
    if not entries:
        known = sorted(entry.name for entry in entry_points(group=GROUP))
        raise TracingError(
            f"the OTEL_* variables ask for the exporter {name!r}, which is not installed; there is "
            f"{', '.join(known) or 'none'}. To have otlp_proto_http, {INSTALL}"
        )
    try:
        return entries[0].load()()
    except Exception as error:
        raise TracingError(
            f"the exporter {name!r} of the OTEL_* variables cannot be made: {error}"
        ) from error


class Tracing:
    """Makes the spans of requests. One per front end; belongs to its event loop."""

    def __init__(self, provider: Any, clock: Clock, explain: Explain) -> None:
        """`provider`: the SDK's TracerProvider. `explain` may answer at once or be awaited."""
        self._provider, self._clock, self._explain = provider, clock, explain
        self._api = import_module("opentelemetry.trace")
        self.failed_status = self._api.StatusCode.ERROR
        self._tracer = provider.get_tracer("cotenant", __version__)
        self._ending: set[asyncio.Task[None]] = set()
        self._closing = asyncio.Event()

    def begin(self, name: str, parent: TraceParent | None, arrived_at: int, attributes: Attributes) -> Trace:
        """A request has arrived (ns, by the clock). `name` and `attributes` are those of the protocol."""
        context = None if parent is None else self._context(parent)
        span = self._tracer.start_span(
            name,
            context=context,
            kind=self._api.SpanKind.SERVER,
            attributes=dict(attributes),
            start_time=self.wall_ns(arrived_at),
        )
        return Trace(self, span, parent)

    def _context(self, parent: TraceParent) -> Any:
        api = self._api
        state = api.TraceState.from_header([parent.state]) if parent.state else None
        context = api.SpanContext(
            int(parent.trace_id, 16),
            int(parent.span_id, 16),
            is_remote=True,
            trace_flags=api.TraceFlags(SAMPLED if parent.sampled else 0),
            trace_state=state,
        )
        return api.set_span_in_context(api.NonRecordingSpan(context))

    def wall_ns(self, at: int) -> int:
        """The wall-clock time of an instant (ns)."""
        return int(wall_time_s() * NS_PER_S) - self._clock.now() + at

    def ended(self, trace: Trace, request_id: str | None, at: int) -> None:
        """The answer was sent at the instant `at`: make its spans soon."""
        task = asyncio.get_running_loop().create_task(self._finish(trace, request_id, self.wall_ns(at)))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def close(self) -> None:
        """Finish what has ended, export it, and stop. Idempotent."""
        self._closing.set()
        if self._ending:
            await asyncio.wait(self._ending, timeout=1.0)
        try:
            await asyncio.wait_for(asyncio.to_thread(self._provider.shutdown), CLOSE_LIMIT_S)
        except TimeoutError:
            _LOG.warning("tracing.not_flushed", "the last spans could not be exported in time")

    async def _finish(self, trace: Trace, request_id: str | None, wall_ns: int) -> None:
        told: Told | None = None
        if request_id is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), DETAILS_AFTER_S)
            found = self._explain(request_id)
            told = await found if isinstance(found, Awaitable) else found
        if told is not None and told.get("outcome"):
            self._describe(trace.span, told)
        trace.span.end(end_time=wall_ns)

    def _describe(self, span: Any, told: Mapping[str, Any]) -> None:
        """Attributes of the request, and its children: the wait, and the run or its parts."""
        span.set_attributes(_attributes(told, REQUEST_KEYS))
        if told["outcome"] == "failed":
            span.set_status(self.failed_status, told.get("reason", ""))
        origin_ns = span.start_time
        parent = self._api.set_span_in_context(span)

        def child(name: str, begin_ms: float, end_ms: float, attributes: Attributes) -> None:
            made = self._tracer.start_span(
                name, context=parent, attributes=attributes, start_time=origin_ns + int(begin_ms * NS_PER_MS)
            )
            made.end(end_time=origin_ns + int(end_ms * NS_PER_MS))

        if told.get("queue_ms") is not None:
            begin_ms = told.get("read_ms") or 0.0
            child("queue", begin_ms, begin_ms + told["queue_ms"], _attributes(told, QUEUE_KEYS))
        parts = told.get("parts") or ([told] if told.get("started_ms") is not None else [])
        for part in parts:
            child("run", part["started_ms"], part["ended_ms"], _of_run(told))


class Trace:
    """The span of one request, while it is served."""

    def __init__(self, tracing: Tracing, span: Any, parent: TraceParent | None) -> None:
        self.span = span
        self._tracing, self._parent = tracing, parent
        context = span.get_span_context()
        self.trace_id = f"{context.trace_id:032x}"
        self._context = context

    @property
    def sampled(self) -> bool:
        """Whether it is recorded."""
        return bool(self.span.is_recording())

    def request_id(self, made: str) -> str:
        """The request's id: a sampled one's ends with its trace, so that whoever has the one finds the
        other. `made`: a new id."""
        return f"{made}-{self.trace_id}" if self.sampled else made

    def headers(self) -> list[tuple[bytes, bytes]]:
        """What the answer carries: nothing unless the request had a `traceparent`."""
        if self._parent is None:
            return []
        own = TraceParent(self.trace_id, f"{self._context.span_id:016x}", self.sampled)
        found = [(b"traceparent", own.header.encode())]
        if self._parent.state:
            found.append((b"tracestate", self._parent.state.encode()))
        return found

    def end(self, request_id: str | None, at: int, attributes: Attributes, *, failed: bool = False) -> None:
        """The answer was sent, or there is nobody to send it to, at the instant `at` (ns)."""
        if not self.sampled:
            return
        self.span.set_attributes(dict(attributes))
        if failed:
            self.span.set_status(self._tracing.failed_status)
        self._tracing.ended(self, request_id, at)


REQUEST_KEYS = {
    "id": "cotenant.request_id",
    "model": "cotenant.model",
    "class": "cotenant.class",
    "outcome": "cotenant.outcome",
    "reason": "cotenant.reason",
    "deadline_ms": "cotenant.deadline_ms",
    "predicted_ms": "cotenant.predicted_ms",
    "sentence": "cotenant.explanation",
}
QUEUE_KEYS = {
    "batch_wait_ms": "cotenant.batch_wait_ms",
    "apart_ms": "cotenant.apart_ms",
    "lanes_busy_ms": "cotenant.lanes_busy_ms",
}
RUN_KEYS = {
    "model": "cotenant.model",
    "variant": "cotenant.variant",
    "batch_rows": "cotenant.rows",
    "batch_requests": "cotenant.requests",
    "lane": "cotenant.lane",
    "predicted_ms": "cotenant.predicted_ms",
    "slowdown": "cotenant.slowdown",
    "outcome": "cotenant.outcome",
}


def _attributes(told: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {name: told[key] for key, name in names.items() if told.get(key) not in (None, "")}


def _of_run(told: Mapping[str, Any]) -> dict[str, Any]:
    found = _attributes(told, RUN_KEYS)
    found["cotenant.corunners"] = [other["variant"] for other in told.get("corunners", ())]
    decision = told.get("decision")
    if decision:
        found["cotenant.decision"] = decision["why"]
    return found


__all__ = ["Trace", "TraceParent", "Tracing", "TracingError", "open_tracing", "parse", "traces", "wanted"]

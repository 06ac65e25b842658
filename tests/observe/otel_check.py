"""Traces of a real HTTP server, caught in memory. Run by `test_tracing.py` with OpenTelemetry on its path."""

from __future__ import annotations

import asyncio
import http.client
import json
import sys
import threading
from pathlib import Path
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from cotenant.assemble import make_engine, prepare
from cotenant.catalogue import places
from cotenant.clock import MonotonicClock
from cotenant.config import load_scenario
from cotenant.engine_client import EngineClient
from cotenant.local_link import LocalLink
from cotenant.profile.measure import Budget
from cotenant.serve.http import ServeConfig, make_app
from cotenant.serve.server import serve_http
from cotenant.serve.traced import Traced
from cotenant.telemetry.trace_context import parse
from cotenant.telemetry.tracing import Tracing

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CONFIG = '[[model]]\nname = "echo"\nsource = "zoo:echo"\nslo_ms = 1000\nmax_batch = 4\n'
BODY = {"inputs": [{"name": "input", "shape": [1, 16], "datatype": "FP32", "data": [0.5] * 16}]}


def ask(
    port: int, headers: dict[str, str], model: str = "echo", body: Any = BODY
) -> tuple[int, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("POST", f"/v2/models/{model}/infer", json.dumps(body), headers)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}


def served(folder: Path) -> tuple[list[ReadableSpan], dict[str, Any]]:
    """Spans of a few requests, and the answers' headers by what was asked."""
    path = folder / "server.toml"
    path.write_text(CONFIG)
    prepared = prepare(load_scenario(path), places(folder), budget=Budget(per_variant_s=0.02, min_runs=3))
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    answers: dict[str, Any] = {}

    async def main() -> None:
        clock = MonotonicClock()
        engine = make_engine(prepared, clock=clock)
        engine.start()
        client = EngineClient(LocalLink(engine, clock))
        app = make_app(client, None, ServeConfig(), on_sent=engine.answered)
        tracing = Tracing(provider, clock, engine.explain)
        ready: asyncio.Queue[int] = asyncio.Queue()
        shutdown = asyncio.Event()
        traced = Traced(app, tracing, clock.now, client.new_id)
        serving = asyncio.create_task(serve_http(traced, "127.0.0.1", 0, ready.put_nowait, shutdown))
        port = await ready.get()

        def talk() -> None:
            sampled = {"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "rojo=1"}
            answers["sampled"] = ask(port, sampled)
            answers["unsampled"] = ask(port, {"traceparent": f"00-{TRACE}-{SPAN}-00"})
            answers["alone"] = ask(port, {})
            answers["broken"] = ask(port, {"traceparent": "00-nonsense"})
            answers["refused"] = ask(port, {**sampled, "x-slo-ms": "0.0001"})
            answers["bad"] = ask(port, sampled, body={"inputs": []})
            answers["unknown"] = ask(port, sampled, model="nobody")

        await asyncio.to_thread(talk)
        await tracing.close()
        shutdown.set()
        await serving
        engine.stop()

    asyncio.run(main())
    return list(exporter.get_finished_spans()), answers


def check(spans: list[ReadableSpan], answers: dict[str, Any]) -> None:
    requests = {
        span.attributes["cotenant.request_id"]: span
        for span in spans
        if "cotenant.request_id" in span.attributes
    }
    status, headers = answers["sampled"]
    request_id = headers["x-request-id"]
    assert status == 200
    assert request_id.endswith(f"-{TRACE}")
    own = parse(headers["traceparent"])
    assert own is not None
    assert (own.trace_id, own.sampled) == (TRACE, True)
    assert own.span_id != SPAN
    assert headers["tracestate"] == "rojo=1"

    span = requests[request_id]
    assert span.name == "infer echo"
    assert f"{span.context.trace_id:032x}" == TRACE
    assert f"{span.context.span_id:016x}" == own.span_id
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == SPAN
    assert span.attributes["http.response.status_code"] == 200
    assert span.attributes["cotenant.outcome"] == "ok"
    children = {
        child.name: child for child in spans if child.parent and child.parent.span_id == span.context.span_id
    }
    assert set(children) == {"queue", "run"}
    run = children["run"]
    assert run.attributes["cotenant.model"] == "echo"
    assert run.attributes["cotenant.rows"] == 1
    assert run.attributes["cotenant.outcome"] == "ok"
    assert run.attributes["cotenant.lane"] in range(64)
    assert run.attributes["cotenant.predicted_ms"] > 0
    assert run.attributes["cotenant.slowdown"] > 0
    assert run.attributes["cotenant.corunners"] == ()
    assert run.attributes["cotenant.decision"]
    assert span.start_time <= children["queue"].start_time <= children["queue"].end_time
    assert children["queue"].end_time <= run.start_time <= run.end_time <= span.end_time

    status, headers = answers["unsampled"]
    assert status == 200
    own = parse(headers["traceparent"])
    assert own is not None
    assert (own.trace_id, own.sampled) == (TRACE, False)
    assert TRACE not in headers["x-request-id"]
    assert headers["x-request-id"] not in requests

    for name in ("alone", "broken"):
        status, headers = answers[name]
        assert status == 200
        assert "traceparent" not in headers
        span = requests[headers["x-request-id"]]
        assert span.parent is None
        assert headers["x-request-id"].endswith(f"-{span.context.trace_id:032x}")

    status, headers = answers["refused"]
    assert status == 429
    assert requests[headers["x-request-id"]].attributes["cotenant.outcome"] == "rejected"

    codes = [
        span.attributes.get("http.response.status_code")
        for span in spans
        if span.parent is None or f"{span.parent.span_id:016x}" == SPAN
    ]
    assert sorted(code for code in codes if code) == [200, 200, 200, 400, 404, 429]
    assert all(span.status.status_code is not StatusCode.ERROR for span in spans)


if __name__ == "__main__":
    found, answered = served(Path(sys.argv[1]))
    check(found, answered)
    assert not any(thread.name.startswith("Otel") for thread in threading.enumerate())
    print(f"all {len(found)} spans are right")

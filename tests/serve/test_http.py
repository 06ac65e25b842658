"""The HTTP front end, over real connections to a real uvicorn server."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import Server, echo_request

from cotenant.domain import NS_PER_MS, ModelMetadata, ModelSpec, OutcomeKind, TensorSpec
from cotenant.serve.http import ServeConfig
from cotenant.testing import ECHO

Serve = Callable[..., Server]
INFER = "/v2/models/echo/infer"

TOKENS = ModelMetadata(
    name="tokens",
    platform="onnxruntime_onnx",
    versions=("1",),
    inputs=(TensorSpec(name="ids", datatype="INT64", shape=(-1, -1), axes=("batch", "seq"), low=0, high=9),),
    outputs=(TensorSpec(name="out", datatype="INT64", shape=(-1, -1), axes=("batch", "seq")),),
    batched=True,
    spec=ModelSpec(name="tokens", slo_ns=None, max_batch=2, axis_buckets=(("seq", (4, 8)),)),
)


# --- what is there ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v2",
        "/v2/",
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models",
        "/v2/models/stats",
        "/v2/models/echo",
        "/v2/models/echo/ready",
        "/v2/models/echo/config",
        "/v2/models/echo/stats",
        "/v2/models/echo/versions/1",
        "/v2/models/echo/versions/1/ready",
        "/v2/models/echo/versions/1/config",
        "/v2/models/echo/versions/1/stats",
    ],
)
def test_every_page_answers(server: Server, path: str) -> None:
    assert server.get(path).status == 200


def test_server_metadata_lists_only_what_is_supported(server: Server) -> None:
    described = server.get("/v2").json
    assert described["name"] == "cotenant"
    assert set(described["extensions"]) == {
        "binary_tensor_data",
        "classification",
        "logging",
        "model_configuration",
        "schedule_policy",
        "statistics",
    }


def test_model_metadata_and_config_describe_the_same_model(server: Server) -> None:
    metadata = server.get("/v2/models/echo").json
    assert metadata["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 16]}]
    assert metadata["versions"] == ["1"]
    config = server.get("/v2/models/echo/config").json
    assert config["max_batch_size"] == 8
    assert config["input"] == [{"name": "input", "data_type": "TYPE_FP32", "dims": [16]}]


def test_statistics_count_answers(serve: Serve) -> None:
    server = serve()
    server.infer(echo_request(rows=3))
    (stats,) = server.get("/v2/models/echo/stats").json["model_stats"]
    assert stats["inference_count"] == 3
    assert stats["inference_stats"]["success"]["count"] == 1


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nope", 404),
        ("GET", "/metrics", 404),
        ("GET", "/v2/models/", 404),
        ("GET", "/v2/models/nope", 404),
        ("GET", "/v2/models/nope/ready", 404),
        ("GET", "/v2/models/echo/versions/2", 404),
        ("POST", "/v2/models/nope/infer", 404),
        ("POST", "/v2/models/echo/versions/2/infer", 404),
        ("POST", "/v2/models/..%2Fecho/infer", 404),
        ("POST", "/v2/models/%ff%00/infer", 404),
        ("GET", "/v2/requests/nope", 404),
        ("GET", INFER, 405),
        ("DELETE", "/v2/models/echo", 405),
        ("POST", "/v2/health/live", 405),
        ("GET", "/v2/repository/index", 405),
    ],
)
def test_unknown_pages_models_and_methods_are_told_apart(
    server: Server, method: str, path: str, status: int
) -> None:
    answer = server.ask(method, path)
    assert answer.status == status
    assert answer.error


def test_a_configured_model_that_is_not_loaded_is_503_and_the_server_stays_ready(serve: Serve) -> None:
    server = serve(ServeConfig(allow_model_control=True), ECHO, TOKENS)
    assert server.ask("POST", "/v2/repository/models/tokens/unload").status == 200
    answer = server.infer(model="tokens")
    assert answer.status == 503
    assert answer.json["reason"] == "not available: model 'tokens' is unavailable"
    assert answer.headers["retry-after"] == "1"
    assert server.get("/v2/models/tokens/ready").status == 503
    assert server.get("/v2/health/ready").status == 200
    index = server.ask("POST", "/v2/repository/index").json
    assert {entry["name"]: entry["state"] for entry in index} == {"echo": "READY", "tokens": "UNAVAILABLE"}
    assert len(server.ask("POST", "/v2/repository/index", {"ready": True}).json) == 1
    assert server.ask("POST", "/v2/repository/models/tokens/load", {}).status == 200
    assert server.get("/v2/models/tokens/ready").status == 200


@pytest.mark.parametrize(
    ("path", "body", "headers", "status"),
    [
        ("nope/load", None, {}, 404),
        ("echo/load", {"parameters": {"config": "{}"}}, {}, 400),
        ("echo/load", {"parameters": {"file:1/model.onnx": "AAAA"}}, {}, 400),
        ("echo/load", b"{", {}, 400),
        ("echo/unload", None, {"Origin": "http://evil.example"}, 403),
        ("echo/load", b" " * 100_000, {}, 413),
    ],
)
def test_model_control_is_careful(serve: Serve, path: str, body: Any, headers: Any, status: int) -> None:
    server = serve(ServeConfig(allow_model_control=True))
    assert server.ask("POST", f"/v2/repository/models/{path}", body, headers).status == status
    assert server.infer().status == 200


def test_model_control_is_off_by_default(server: Server) -> None:
    assert server.ask("POST", "/v2/repository/models/echo/unload").status == 403
    assert server.infer().status == 200


# --- infer ------------------------------------------------------------------------------------------


def test_json_in_json_out_echoes_values_and_id(server: Server) -> None:
    answer = server.infer(echo_request(rows=2, id="mine"))
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    assert answer.json["id"] == "mine"
    assert answer.json["model_name"] == "echo"
    (output,) = answer.json["outputs"]
    assert output == {"name": "output", "datatype": "FP32", "shape": [2, 16], "data": [0.5] * 32}


def test_request_ids_are_made_by_the_server_and_can_be_explained(server: Server) -> None:
    ids = {server.infer(echo_request(id="same")).headers["x-request-id"] for _ in range(3)}
    assert len(ids) == 3
    assert server.get(f"/v2/requests/{ids.pop()}").json["model"] == "echo"


def test_binary_in_binary_out_needs_no_content_type(server: Server) -> None:
    values = np.arange(32, dtype=np.float32)
    tensor = {"name": "input", "shape": [2, 16], "datatype": "FP32", "parameters": {"binary_data_size": 128}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    answer = server.infer(head + values.tobytes(), {"Inference-Header-Content-Length": str(len(head))})
    assert answer.status == 200
    length = int(answer.headers["inference-header-content-length"])
    assert json.loads(answer.body[:length])["outputs"][0]["parameters"] == {"binary_data_size": 128}
    assert answer.body[length:] == values.tobytes()


def test_a_raw_body_is_answered_in_binary(server: Server) -> None:
    values = np.arange(16, dtype=np.float32).tobytes()
    answer = server.infer(values, {"Inference-Header-Content-Length": "0"})
    assert answer.status == 200
    assert answer.body.endswith(values)


def test_a_version_in_the_path_is_honoured(server: Server) -> None:
    assert server.ask("POST", "/v2/models/echo/versions/1/infer", echo_request()).status == 200


def test_axes_reach_the_engine_as_buckets(serve: Serve) -> None:
    server = serve(None, TOKENS)
    tensor = {"name": "ids", "shape": [1, 3], "datatype": "INT64", "data": [1, 2, 3]}
    assert server.infer({"inputs": [tensor]}, model="tokens").json["outputs"][0]["data"] == [1, 2, 3]
    (call,) = server.link.calls
    assert call.axes == (("seq", 4),)
    assert call.rows == 1


def test_large_json_is_decoded_in_pieces_and_answered(serve: Serve) -> None:
    n = 50_000
    vector = ModelMetadata(
        name="vector",
        platform="p",
        versions=("1",),
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, n), axes=("batch", None)),),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, n), axes=("batch", None)),),
        batched=True,
        spec=ModelSpec(name="vector", slo_ns=None),
    )
    values = np.random.default_rng(0).normal(size=n).astype(np.float32)
    tensor = {"name": "x", "shape": [1, n], "datatype": "FP32", "data": [values.tolist()]}
    answer = serve(None, vector).infer({"inputs": [tensor]}, model="vector")
    assert np.array_equal(np.array(answer.json["outputs"][0]["data"], np.float32), values)


# --- deadlines --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "headers", "budget_ms"),
    [
        ({}, {}, None),
        ({"timeout": 5000}, {}, 5),
        ({}, {"x-slo-ms": "7.5"}, 7.5),
        ({}, {"x-request-timeout-seconds": "0.25"}, 250),
        ({"timeout": 9000}, {"x-slo-ms": "8", "x-request-timeout-seconds": "1"}, 8),
    ],
)
def test_the_smallest_budget_reaches_the_engine(
    server: Server, parameters: Any, headers: Any, budget_ms: float | None
) -> None:
    before_at = server.link.now()
    assert server.infer(echo_request(parameters=parameters), headers).status == 200
    call = server.link.calls[-1]
    assert call.slo_ns == (None if budget_ms is None else budget_ms * NS_PER_MS)
    assert before_at < call.arrived_at < server.link.now()


@pytest.mark.parametrize(
    ("parameters", "headers", "field"),
    [
        *[({"timeout": value}, {}, "parameters.timeout") for value in (0, -1, 1.5, "9", True, 2**70)],
        *[
            ({"priority": value}, {}, "parameters.priority")
            for value in (-1, 1.5, "1", True, 2**31 + 1, None)
        ],
        *[
            ({}, {name: value}, name)
            for name in ("x-slo-ms", "x-request-timeout-seconds")
            for value in ("", "0", "-1", "nan", "inf", "1e999", "ten", "1,2")
        ],
        ({}, {"Inference-Header-Content-Length": "-1"}, "Inference-Header-Content-Length"),
        ({}, {"Inference-Header-Content-Length": "x"}, "Inference-Header-Content-Length"),
        ({}, {"Inference-Header-Content-Length": "9999999"}, "Inference-Header-Content-Length"),
    ],
)
def test_malformed_budgets_and_priorities_are_named(
    server: Server, parameters: Any, headers: Any, field: str
) -> None:
    answer = server.infer(echo_request(parameters=parameters), headers)
    assert answer.status == 400
    assert field in answer.error
    assert answer.headers["x-request-id"]


def test_the_priority_reaches_the_engine(server: Server) -> None:
    assert server.infer(echo_request(parameters={"priority": 3})).status == 200
    assert server.link.calls[-1].priority == 3


# --- outcomes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "reason", "status"),
    [
        (OutcomeKind.REJECTED, "deadline infeasible: predicted 50 ms", 429),
        (OutcomeKind.REJECTED, "quota exceeded", 429),
        (OutcomeKind.REJECTED, "not available: draining", 503),
        (OutcomeKind.EXPIRED, "deadline passed in the queue", 504),
        (OutcomeKind.CANCELLED, "cancelled", 499),
        (OutcomeKind.CANCELLED, "not available: the server stopped", 503),
        (OutcomeKind.FAILED, "model raised: secret at /srv/x.py", 500),
    ],
)
def test_each_outcome_has_its_status(serve: Serve, kind: OutcomeKind, reason: str, status: int) -> None:
    server = serve()
    server.link.next_outcome, server.link.next_reason = kind, reason
    answer = server.infer()
    assert answer.status == status
    assert set(answer.json) == {"error", "reason", "predicted_ms", "retry_after_ms"}
    assert answer.headers["x-cotenant-outcome"] == kind
    assert ("retry-after" in answer.headers) == (status in (429, 503))
    assert "/root" not in answer.error
    assert server.infer().status == 200


def test_a_refusal_says_when_it_could_have_been_served(serve: Serve) -> None:
    server = serve()
    server.link.next_outcome = OutcomeKind.REJECTED
    server.link.next_reason = "deadline infeasible"
    server.link.next_predicted_ns = 2600 * NS_PER_MS
    answer = server.infer(headers={"x-slo-ms": "100"})
    assert answer.json["predicted_ms"] == 2600
    assert answer.json["retry_after_ms"] == 2500
    assert answer.headers["retry-after"] == "3"


def test_a_late_answer_is_an_answer(serve: Serve) -> None:
    server = serve()
    server.link.next_outcome = OutcomeKind.LATE
    answer = server.infer()
    assert answer.status == 200
    assert answer.headers["x-cotenant-outcome"] == "late"
    assert answer.json["outputs"]


def test_while_draining_nothing_is_taken(serve: Serve) -> None:
    server = serve()
    server.link.draining = True
    assert server.get("/v2/health/ready").status == 503
    assert server.get("/v2/health/live").status == 200
    answer = server.infer()
    assert answer.status == 503
    assert answer.headers["retry-after"] == "1"


# --- bodies and connections -------------------------------------------------------------------------


def chunks(n: int) -> Iterator[bytes]:
    for _ in range(n):
        yield b" " * 65536


def test_an_oversize_body_is_413_declared_or_chunked(server: Server) -> None:
    assert server.infer(b" " * (3 << 20)).status == 413
    assert server.infer(chunks(48)).status == 413
    assert server.infer().status == 200


def test_a_chunked_body_is_put_together(server: Server) -> None:
    body = json.dumps(echo_request(rows=8)).encode()
    answer = server.infer(iter([body[:10], body[10:99], body[99:]]))
    assert answer.status == 200


def test_a_body_that_stops_coming_is_408(serve: Serve) -> None:
    server = serve(ServeConfig(body_timeout_s=0.05))
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{".encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 408")
    assert server.infer().status == 200


def raw_infer(server: Server) -> socket.socket:
    body = json.dumps(echo_request()).encode()
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    connection.sendall(
        f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    )
    return connection


def test_a_client_that_goes_while_waiting_cancels_its_call(serve: Serve) -> None:
    server = serve()
    server.link.hang_next = True
    connection = raw_infer(server)
    server.until(lambda: server.link.n_waiting == 1)
    connection.close()
    server.until(lambda: server.link.n_waiting == 0)
    assert server.link.cancelled == [server.link.calls[0].id]
    assert server.infer().status == 200


def test_a_client_that_stays_gets_its_answer_however_long_it_takes(serve: Serve) -> None:
    server = serve(ServeConfig(watch_after_ms=0.1))
    server.link.hang_next = True
    with raw_infer(server) as connection:
        server.until(lambda: server.link.n_waiting == 1)
        for _ in range(20):
            server.on_loop(lambda: None)
        server.on_loop(server.link.release)
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
    assert server.link.cancelled == []


def test_requests_in_flight_are_answered_on_shutdown_and_no_new_ones_taken(serve: Serve) -> None:
    server = serve()
    server.link.hang_next = True
    with raw_infer(server) as connection:
        server.until(lambda: server.link.n_waiting == 1)
        server.begin_shutdown()
        refused = threading.Event()

        def look() -> None:
            try:
                socket.create_connection(("127.0.0.1", server.port), timeout=1).close()
            except OSError:
                refused.set()

        while not refused.is_set():
            look()
        server.on_loop(server.link.release)
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
    server.join()


def test_a_call_that_never_ends_is_told_so_when_the_drain_limit_is_over(serve: Serve) -> None:
    server = serve()
    server.link.hang_next = True
    with raw_infer(server) as connection:
        server.until(lambda: server.link.n_waiting == 1)
        server.begin_shutdown()
        assert connection.recv(100).startswith(b"HTTP/1.1 503")
    server.join()


class Page:
    async def render(self, accept: str) -> tuple[bytes, str]:
        return b"cotenant_up 1\n", "text/plain; version=1.0.0"


def test_metrics_are_shown_as_they_are_rendered(serve: Serve) -> None:
    answer = serve(metrics=Page()).get("/metrics")
    assert answer.body == b"cotenant_up 1\n"
    assert answer.headers["content-type"] == "text/plain; version=1.0.0"


# --- anything at all --------------------------------------------------------------------------------

VALID = json.dumps(
    echo_request(rows=2, id="x", parameters={"timeout": 10**6}, outputs=[{"name": "output"}])
).encode()


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """The valid request with a few stretches replaced."""
    body = VALID
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(body)))
        end = min(len(body), start + draw(st.integers(0, 12)))
        inserts = st.sampled_from([b"null", b"-1", b"[]", b"{}", b'"', b"1e400", b'"\\ud800"', b"9" * 5000])
        body = body[:start] + draw(st.binary(max_size=6) | inserts) + body[end:]
    return body


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=200) | mutated(), json_bytes=st.none() | st.integers(0, 400))
def test_no_body_gives_a_server_error_or_disturbs_the_next_request(
    server: Server, body: bytes, json_bytes: int | None
) -> None:
    headers = {} if json_bytes is None else {"Inference-Header-Content-Length": str(json_bytes)}
    answer = server.infer(body, headers)
    assert answer.status in (200, 400)
    assert json_bytes is not None or "outputs" in answer.json or answer.error
    assert server.infer().status == 200


# --- imports ----------------------------------------------------------------------------------------


def test_the_front_end_imports_no_device_code() -> None:
    program = """
import sys
import cotenant.cli, cotenant.front, cotenant.split_host
device = ["onnxruntime", "onnx", "torch", "numba"]
device += ["cotenant." + part for part in ("engine", "schedule", "predict", "execute", "simulate")]
print([name for name in device if name in sys.modules])
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"

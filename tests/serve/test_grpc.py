"""ModelInfer over real connections to a real server: deadlines, outcomes, sizes, cancelling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest
from grpc import StatusCode
from grpc_serving import ONES, GrpcServer, ended, parameter, raw_request

from cotenant.domain import NS_PER_MS, OutcomeKind
from cotenant.serve.grpc import inference_pb2 as pb
from cotenant.testing import EchoLink

Serve = Callable[..., GrpcServer]


# --- infer ------------------------------------------------------------------------------------------


def test_values_id_and_version_come_back(grpc_server: GrpcServer) -> None:
    values = np.arange(32, dtype=np.float32).reshape(2, 16)
    answer = grpc_server.infer_raw(values, id="mine", model_version="1")
    assert (answer.message.model_name, answer.message.model_version) == ("echo", "1")
    assert answer.message.id == "mine"
    (output,) = answer.message.outputs
    assert (output.name, output.datatype, list(output.shape)) == ("output", "FP32", [2, 16])
    assert answer.message.raw_output_contents == [values.tobytes()]
    assert "x-cotenant-outcome" not in answer.trailing
    assert grpc_server.link.calls[-1].rows == 2


def test_request_ids_are_made_by_the_server(grpc_server: GrpcServer) -> None:
    answers = [grpc_server.infer_raw(id="same") for _ in range(3)]
    assert [answer.trailing["x-request-id"] for answer in answers] == [
        call.id for call in grpc_server.link.calls[-3:]
    ]


@pytest.mark.parametrize(("model", "version"), [("nope", ""), ("", ""), ("echo", "2")])
def test_a_request_to_what_is_not_there_is_not_found(
    grpc_server: GrpcServer, model: str, version: str
) -> None:
    answer = grpc_server.infer_raw(model=model, model_version=version)
    assert answer.code is StatusCode.NOT_FOUND
    assert answer.trailing["x-request-id"]


# --- deadlines --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "metadata", "budget_ms"),
    [
        ({"timeout": 5000}, {}, 5),
        ({}, {"x-slo-ms": "7.5"}, 7.5),
        ({}, {"x-request-timeout-seconds": "0.25"}, 250),
        ({"timeout": 9000}, {"x-slo-ms": "8", "x-request-timeout-seconds": "1"}, 8),
    ],
)
def test_the_smallest_budget_reaches_the_engine(
    grpc_server: GrpcServer, parameters: Any, metadata: Any, budget_ms: float
) -> None:
    before_at = grpc_server.link.now()
    asked = raw_request(parameters={name: parameter(value) for name, value in parameters.items()})
    assert grpc_server.rpc("ModelInfer", asked, metadata=tuple(metadata.items())).ok
    call = grpc_server.link.calls[-1]
    assert call.slo_ns == budget_ms * NS_PER_MS
    assert before_at < call.arrived_at < grpc_server.link.now()


def test_the_calls_deadline_is_the_requests(grpc_server: GrpcServer) -> None:
    assert grpc_server.rpc("ModelInfer", raw_request(), timeout=10).ok
    budget_ns = grpc_server.link.calls[-1].slo_ns
    assert budget_ns is not None
    assert 5_000 * NS_PER_MS < budget_ns <= 10_100 * NS_PER_MS
    assert grpc_server.rpc("ModelInfer", raw_request(), timeout=None).ok
    assert grpc_server.link.calls[-1].slo_ns is None


@pytest.mark.parametrize(
    ("parameters", "metadata", "field"),
    [
        *[({"timeout": value}, {}, "parameters.timeout") for value in (0, -1, 1.5, "9", True, 2**62)],
        *[({"priority": value}, {}, "parameters.priority") for value in (-1, 1.5, "1", True, 2**31 + 1)],
        *[
            ({}, {name: value}, name)
            for name in ("x-slo-ms", "x-request-timeout-seconds")
            for value in ("0", "-1", "nan", "inf", "1e999", "ten", "1,2")
        ],
        ({"shared_memory_region": "r"}, {}, "parameters.shared_memory_region"),
        ({"sequence_id": 7}, {}, "parameters.sequence_id"),
        ({"binary_data_output": 1}, {}, "parameters.binary_data_output"),
    ],
)
def test_malformed_and_unsupported_parameters_are_named(
    grpc_server: GrpcServer, parameters: Any, metadata: Any, field: str
) -> None:
    asked = raw_request(parameters={name: parameter(value) for name, value in parameters.items()})
    answer = grpc_server.rpc("ModelInfer", asked, metadata=tuple(metadata.items()))
    assert answer.code is StatusCode.INVALID_ARGUMENT
    assert field in answer.details


def test_a_budget_given_twice_and_a_parameter_without_a_value_are_refused(grpc_server: GrpcServer) -> None:
    twice = grpc_server.rpc("ModelInfer", raw_request(), metadata=(("x-slo-ms", "1"), ("x-slo-ms", "2")))
    assert twice.code is StatusCode.INVALID_ARGUMENT
    empty = grpc_server.rpc("ModelInfer", raw_request(parameters={"timeout": pb.InferParameter()}))
    assert empty.code is StatusCode.INVALID_ARGUMENT
    assert "parameters.timeout" in empty.details


def test_the_priority_reaches_the_engine_signed_or_not(grpc_server: GrpcServer) -> None:
    for value in (pb.InferParameter(int64_param=3), pb.InferParameter(uint64_param=3)):
        assert grpc_server.rpc("ModelInfer", raw_request(parameters={"priority": value})).ok
        assert grpc_server.link.calls[-1].priority == 3


# --- outcomes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "reason", "code"),
    [
        (OutcomeKind.REJECTED, "deadline infeasible: predicted 50 ms", StatusCode.RESOURCE_EXHAUSTED),
        (OutcomeKind.REJECTED, "quota exceeded", StatusCode.RESOURCE_EXHAUSTED),
        (OutcomeKind.REJECTED, "not available: draining", StatusCode.UNAVAILABLE),
        (OutcomeKind.EXPIRED, "deadline passed in the queue", StatusCode.DEADLINE_EXCEEDED),
        (OutcomeKind.CANCELLED, "cancelled", StatusCode.CANCELLED),
        (OutcomeKind.CANCELLED, "not available: the server stopped", StatusCode.UNAVAILABLE),
        (OutcomeKind.FAILED, "model raised: secret at /srv/x.py", StatusCode.INTERNAL),
    ],
)
def test_each_outcome_has_its_status(
    serve_grpc: Serve, kind: OutcomeKind, reason: str, code: StatusCode
) -> None:
    server = serve_grpc()
    server.link.next_outcome, server.link.next_reason = kind, reason
    answer = server.infer_raw()
    assert answer.code is code
    assert reason.partition(":")[0] in answer.details
    assert "/srv" not in answer.details
    assert answer.trailing["x-cotenant-outcome"] == kind
    assert answer.trailing["x-request-id"] == server.link.calls[0].id
    refused = code in (StatusCode.RESOURCE_EXHAUSTED, StatusCode.UNAVAILABLE)
    assert ("retry-after-ms" in answer.trailing) == refused
    assert server.infer_raw().ok


def test_a_refusal_says_when_it_could_have_been_served(serve_grpc: Serve) -> None:
    server = serve_grpc()
    server.link.next_outcome = OutcomeKind.REJECTED
    server.link.next_reason = "deadline infeasible"
    server.link.next_predicted_ns = 2600 * NS_PER_MS
    answer = server.rpc("ModelInfer", raw_request(), metadata=(("x-slo-ms", "100"),))
    assert float(answer.trailing["predicted-ms"]) == 2600
    assert float(answer.trailing["retry-after-ms"]) == 2500
    assert answer.trailing["grpc-retry-pushback-ms"] == "2500"


def test_a_late_answer_is_an_answer(serve_grpc: Serve) -> None:
    server = serve_grpc()
    server.link.next_outcome = OutcomeKind.LATE
    answer = server.infer_raw()
    assert answer.ok
    assert answer.trailing["x-cotenant-outcome"] == "late"
    assert answer.message.raw_output_contents == [ONES.tobytes()]


def test_while_draining_nothing_is_taken(serve_grpc: Serve) -> None:
    server = serve_grpc()
    server.link.draining = True
    assert not server.rpc("ServerReady").message.ready
    assert server.rpc("ServerLive").message.live
    answer = server.infer_raw()
    assert answer.code is StatusCode.UNAVAILABLE
    assert "draining" in answer.details
    assert answer.trailing["retry-after-ms"]


def test_what_goes_wrong_inside_stays_inside(
    serve_grpc: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("secret at /srv/x.py")

    monkeypatch.setattr(EchoLink, "statistics", fail)
    server = serve_grpc()
    with monkeypatch.context() as patched:
        patched.setattr(server.link, "submit", fail)
        answers = [server.infer_raw(), server.rpc("ModelStatistics")]
        (streamed,) = server.stream([raw_request(id="a")])
    for answer in answers:
        assert (answer.code, answer.details) == (StatusCode.INTERNAL, "internal error")
    assert streamed.error_message == "internal error"
    assert "secret" in caplog.text
    assert server.infer_raw().ok


def test_long_and_strange_names_come_back_cut_to_what_a_header_holds(grpc_server: GrpcServer) -> None:
    answer = grpc_server.rpc("ModelInfer", raw_request(name="é\0\n" * 20_000))
    assert answer.code is StatusCode.INVALID_ARGUMENT
    assert "é\0\n" in answer.details


# --- sizes ------------------------------------------------------------------------------------------


def test_a_request_above_the_limit_is_refused(grpc_server: GrpcServer) -> None:
    assert grpc_server.rpc("ModelInfer", b" " * (2 << 20)).code is StatusCode.RESOURCE_EXHAUSTED
    assert grpc_server.infer_raw().ok


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_a_compressed_request_is_answered_and_one_that_inflates_above_the_limit_refused(
    grpc_server: GrpcServer, compression: grpc.Compression
) -> None:
    values = np.ones((8, 16), np.float32)
    answer = grpc_server.rpc("ModelInfer", raw_request(values), compression=compression)
    assert answer.message.raw_output_contents == [values.tobytes()]
    bomb = grpc_server.rpc("ModelInfer", bytes(32 << 20), compression=compression)
    assert bomb.code is StatusCode.RESOURCE_EXHAUSTED
    assert grpc_server.infer_raw().ok


# --- cancelling -------------------------------------------------------------------------------------


def test_a_call_that_is_cancelled_cancels_its_request(serve_grpc: Serve) -> None:
    server = serve_grpc()
    server.link.hang_next = True
    call = server.begin("ModelInfer", raw_request())
    server.until(lambda: server.link.n_waiting == 1)
    call.cancel()
    server.until(lambda: server.link.n_waiting == 0)
    assert server.link.cancelled == [server.link.calls[0].id]
    assert server.infer_raw().ok


def test_a_client_that_goes_cancels_its_request(serve_grpc: Serve) -> None:
    server = serve_grpc()
    server.link.hang_next = True
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        ask = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        call = ask.future(raw_request().SerializeToString())
        server.until(lambda: server.link.n_waiting == 1)
        assert not call.done()
    server.until(lambda: server.link.n_waiting == 0)
    assert server.link.cancelled == [server.link.calls[0].id]


def test_a_deadline_that_passes_ends_the_call_and_its_request(serve_grpc: Serve) -> None:
    server = serve_grpc()
    server.link.hang_next = True
    answer = server.rpc("ModelInfer", raw_request(), timeout=0.2)
    assert answer.code is StatusCode.DEADLINE_EXCEEDED
    server.until(lambda: server.link.n_waiting == 0)
    assert server.link.cancelled == [server.link.calls[0].id]


def test_calls_in_flight_are_answered_on_shutdown(serve_grpc: Serve) -> None:
    server = serve_grpc()
    server.link.hang_next = True
    call = server.begin("ModelInfer", raw_request())
    server.until(lambda: server.link.n_waiting == 1)
    server.begin_shutdown()
    server.on_loop(server.link.release)
    assert ended(call).ok
    server.join()

"""ModelStreamInfer: many requests at once on one call."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_serving import ONES, GrpcServer, parameter, raw_request

from cotenant.domain import NS_PER_MS, OutcomeKind
from cotenant.serve.grpc.settings import GrpcConfig
from cotenant.serve.settings import ServeConfig

Serve = Callable[..., GrpcServer]


class Feed:
    """Requests that a test sends one by one; iterating ends with `close()`."""

    def __init__(self) -> None:
        self._requests: queue.Queue[Any] = queue.Queue()

    def send(self, request: Any) -> None:
        self._requests.put(request)

    def close(self) -> None:
        self._requests.put(None)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._requests.get, None)


def test_every_request_of_a_stream_is_answered_with_its_id(grpc_server: GrpcServer) -> None:
    values = [np.full((1, 16), n, np.float32) for n in range(50)]
    answers = list(grpc_server.stream(raw_request(v, id=str(n)) for n, v in enumerate(values)))
    assert {a.infer_response.id for a in answers} == {str(n) for n in range(50)}
    for answer in answers:
        assert not answer.error_message
        n = int(answer.infer_response.id)
        assert answer.infer_response.raw_output_contents == [values[n].tobytes()]
        assert answer.infer_response.parameters["triton_final_response"].bool_param
        assert answer.infer_response.parameters["x-request-id"].string_param


def test_an_empty_stream_ends_well(grpc_server: GrpcServer) -> None:
    call = grpc_server.stream([])
    assert list(call) == []
    assert call.code() is grpc.StatusCode.OK


def test_answers_come_as_they_are_ready(serve_grpc: Serve) -> None:
    server = serve_grpc()
    server.link.hang_next = True
    feed = Feed()
    answers = server.stream(feed)
    feed.send(raw_request(id="slow"))
    server.until(lambda: server.link.n_waiting == 1)
    feed.send(raw_request(id="quick"))
    assert next(answers).infer_response.id == "quick"
    server.on_loop(server.link.release)
    assert next(answers).infer_response.id == "slow"
    feed.close()
    assert list(answers) == []


def test_a_request_that_fails_is_told_so_and_the_stream_goes_on(serve_grpc: Serve) -> None:
    server = serve_grpc()
    feed = Feed()
    answers = server.stream(feed)

    def ask(request: Any) -> Any:
        feed.send(request)
        return next(answers)

    unknown = ask(raw_request(model="nope", id="a"))
    assert "nope" in unknown.error_message
    assert unknown.infer_response.id == "a"
    assert unknown.infer_response.parameters["grpc-status"].string_param == "NOT_FOUND"
    malformed = ask(b"\xff\xff")
    assert "not a valid protobuf message" in malformed.error_message
    server.link.next_outcome, server.link.next_reason = OutcomeKind.REJECTED, "deadline infeasible"
    server.link.next_predicted_ns = 2600 * NS_PER_MS
    refused = ask(raw_request(id="b", parameters={"timeout": parameter(100_000)}))
    assert "deadline infeasible" in refused.error_message
    told = {name: value.string_param for name, value in refused.infer_response.parameters.items()}
    assert told["grpc-status"] == "RESOURCE_EXHAUSTED"
    assert told["x-cotenant-outcome"] == "rejected"
    assert (float(told["predicted-ms"]), float(told["retry-after-ms"])) == (2600, 2500)
    server.link.next_outcome = OutcomeKind.LATE
    late = ask(raw_request(id="c")).infer_response
    assert late.parameters["x-cotenant-outcome"].string_param == "late"
    assert late.raw_output_contents == [ONES.tobytes()]
    assert not ask(raw_request(id="d")).error_message
    feed.close()
    assert list(answers) == []
    assert answers.code() is grpc.StatusCode.OK


def test_requests_are_taken_up_to_a_number_in_flight(
    serve_grpc: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve_grpc(grpc_config=GrpcConfig(max_in_flight_per_stream=3))
    submit = server.link.submit

    def hang(call: Any, reply: Any) -> None:
        server.link.hang_next = True
        submit(call, reply)

    monkeypatch.setattr(server.link, "submit", hang)
    answers = server.stream(raw_request(id=str(n)) for n in range(10))
    server.until(lambda: server.link.n_waiting == 3)
    for _ in range(20):
        server.on_loop(lambda: None)
    assert server.link.n_waiting == 3
    n_answered = 0
    while n_answered < 10:
        server.on_loop(server.link.release)
        for _ in range(min(3, 10 - n_answered)):
            next(answers)
            n_answered += 1
        server.until(lambda n=n_answered: server.link.n_waiting == min(3, 10 - n))
    assert list(answers) == []


def test_the_deadline_and_the_budgets_hold_for_each_request(serve_grpc: Serve) -> None:
    server = serve_grpc()
    feed = Feed()
    answers = server.stream(feed, timeout=10, metadata=(("x-slo-ms", "800"),))
    for timeout_us, budget_ms in ((None, 800), (5000, 5)):
        parameters = {} if timeout_us is None else {"timeout": parameter(timeout_us)}
        feed.send(raw_request(parameters=parameters))
        next(answers)
        assert server.link.calls[-1].slo_ns == budget_ms * NS_PER_MS
    feed.close()
    assert list(answers) == []
    assert len(list(server.stream([raw_request()], timeout=5))) == 1
    assert server.link.calls[-1].slo_ns < 5_100 * NS_PER_MS


@pytest.mark.parametrize("how", ["cancelled", "deadline"])
def test_a_stream_that_ends_cancels_what_it_still_waits_for(serve_grpc: Serve, how: str) -> None:
    server = serve_grpc()
    feed = Feed()
    answers = server.stream(feed, timeout=0.3 if how == "deadline" else 20)
    server.link.hang_next = True
    feed.send(raw_request())
    server.until(lambda: server.link.n_waiting == 1)
    if how == "cancelled":
        answers.cancel()
    with pytest.raises(grpc.RpcError):
        next(answers)
    server.until(lambda: server.link.n_waiting == 0)
    assert server.link.cancelled == [server.link.calls[0].id]
    feed.close()
    assert server.infer_raw().ok


def test_a_message_above_the_limit_ends_the_stream(serve_grpc: Serve) -> None:
    server = serve_grpc(ServeConfig(max_body_bytes=1 << 16))
    answers = server.stream([raw_request(), b" " * (1 << 17)])
    with pytest.raises(grpc.RpcError) as caught:
        list(answers)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert server.infer_raw().ok

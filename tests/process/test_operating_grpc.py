"""`cotenant serve --grpc-port` as an operator sees it."""

from __future__ import annotations

import re
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc
from server_process import Process

from cotenant.serve.grpc import inference_pb2 as pb

ECHO = '[[model]]\nname = "echo"\nsource = "zoo:echo"\nslo_ms = 60000\nmax_batch = 4\n'
ONES = np.full((1, 16), 0.5, np.float32)

Serve = Callable[..., Process]
Config = Callable[[str], Path]


def grpc_address(server: Process) -> str:
    give_up = time.monotonic() + 30  # what reads standard error may be behind what reads standard output
    while True:
        found = re.search(r"serving grpc://(127\.0\.0\.1:\d+)", server.stderr)
        if found is not None:
            return found[1]
        assert time.monotonic() < give_up, server.stderr
        time.sleep(0.01)


def infer(channel: grpc.Channel, model: str, name: str, values: Any) -> Any:
    tensor = pb.ModelInferRequest.InferInputTensor(name=name, datatype="FP32", shape=values.shape)
    request = pb.ModelInferRequest(model_name=model, inputs=[tensor], raw_input_contents=[values.tobytes()])
    method = channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer",
        request_serializer=pb.ModelInferRequest.SerializeToString,
        response_deserializer=pb.ModelInferResponse.FromString,
    )
    return method.future(request, timeout=30)


def explanation(server: Process, request_id: str) -> dict[str, Any]:
    """What is remembered of a request, once that its answer was sent is known too."""
    give_up = time.monotonic() + 30
    while True:
        status, explained = server.ask(f"/v2/requests/{request_id}")
        assert status == 200
        if explained["answer_ms"] is not None:
            return dict(explained)
        assert time.monotonic() < give_up, explained
        time.sleep(0.01)


def test_one_server_answers_over_both_protocols_and_explains_either(serve: Serve, config: Config) -> None:
    server = serve(config(ECHO), "--grpc-port", "0").ready()
    with grpc.insecure_channel(grpc_address(server)) as channel:
        call = infer(channel, "echo", "input", ONES)
        assert call.result().raw_output_contents == [ONES.tobytes()]
        (request_id,) = [value for key, value in call.trailing_metadata() if key == "x-request-id"]
        health = health_pb2_grpc.HealthStub(channel)
        status = health.Check(health_pb2.HealthCheckRequest(service="echo"), timeout=30).status
    assert status == health_pb2.HealthCheckResponse.SERVING
    assert server.infer("echo", input=[0.5] * 16)[0] == 200
    explained = explanation(server, request_id)
    assert explained["outcome"] == "ok"
    server.signal(signal.SIGTERM)
    assert server.ended() == 0
    assert "Traceback" not in server.stderr
    assert server.more_stdout() == ""


def test_sigterm_answers_what_was_admitted_over_grpc(serve: Serve, config: Config, slow_model: Path) -> None:
    text = f'[device]\nlanes = 1\n[[model]]\nname = "slow"\nsource = "{slow_model.name}"\nmax_batch = 1\n'
    server = serve(config(text), "--grpc-port", "0").ready()
    values = np.array([[1, 2, 3, 4]], np.float32)
    with grpc.insecure_channel(grpc_address(server)) as channel, ThreadPoolExecutor(4) as pool:
        calls = [infer(channel, "slow", "x", values) for _ in range(4)]
        calls[0].result()
        server.signal(signal.SIGTERM)
        answers = list(pool.map(lambda call: call.result(), calls))
    assert [answer.raw_output_contents for answer in answers] == [[values.tobytes()]] * 4
    assert server.ended() == 0
    assert "Traceback" not in server.stderr


def test_a_grpc_port_in_use_is_one_clear_line(serve: Serve, config: Config) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = serve(config(ECHO), "--grpc-port", str(port))
        assert server.ended() != 0
    assert f"127.0.0.1:{port}" in server.stderr
    assert "in use" in server.stderr
    assert "Traceback" not in server.stderr

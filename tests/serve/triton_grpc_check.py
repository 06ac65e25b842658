"""Asks a server everything through the stock `tritonclient[grpc]`: `python triton_grpc_check.py HOST:PORT`.

Runs in an environment that has tritonclient and nothing of cotenant. The server must serve `echo` (FP32
[-1, 16], `max_batch` 8) and `strings` (BYTES [-1]), whose outputs are their inputs, and allow model control
and shared memory. Prints one line per check and ends with `all N checks passed`, or with a traceback.
"""

from __future__ import annotations

import asyncio
import queue
import sys
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import grpc
import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
import tritonclient.utils.shared_memory as triton_shared_memory
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

Client = Any
CHECKS: list[Callable[[Client], None]] = []
VALUES = np.arange(32, dtype=np.float32).reshape(2, 16) / 7
WORDS = np.array([b"", "grün".encode(), b"\xff\x00\x01", b"x" * 1000], np.object_)


def check(function: Callable[[Client], None]) -> Callable[[Client], None]:
    """Add to the list of checks."""
    CHECKS.append(function)
    return function


def echo_input(values: Any = VALUES, name: str = "input", datatype: str = "FP32") -> Any:
    tensor = triton.InferInput(name, list(values.shape), datatype)
    tensor.set_data_from_numpy(values)
    return tensor


def refused(status: str, words: str, ask: Callable[[], object]) -> InferenceServerException:
    """The call must fail with this gRPC status, and its message must hold `words`."""
    found: InferenceServerException | None = None
    try:
        ask()
    except InferenceServerException as error:
        found = error
    assert found is not None, f"expected {status}, but the call succeeded"
    assert found.status() == f"StatusCode.{status}", f"{found.status()}, expected {status}: {found.message()}"
    assert words in found.message(), f"expected {words!r} in {found.message()!r}"
    return found


@check
def the_server_is_live_and_ready(client: Client) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()


@check
def models_are_ready_or_not(client: Client) -> None:
    assert client.is_model_ready("echo")
    assert client.is_model_ready("echo", "1")
    assert not client.is_model_ready("nope")
    assert not client.is_model_ready("echo", "9")


@check
def metadata_and_config_are_what_clients_expect(client: Client) -> None:
    metadata = client.get_server_metadata(as_json=True)
    assert metadata["name"] == "cotenant"
    assert "statistics" in metadata["extensions"]
    model = client.get_model_metadata("echo", as_json=True)
    assert model["inputs"] == [{"name": "input", "datatype": "FP32", "shape": ["-1", "16"]}]
    config = client.get_model_config("echo", as_json=True)["config"]
    assert config["max_batch_size"] == 8
    assert config["input"][0]["data_type"] == "TYPE_FP32"
    assert config["input"][0]["dims"] == ["16"]


@check
def models_are_unloaded_and_loaded(client: Client) -> None:
    def states() -> dict[str, str]:
        index = client.get_model_repository_index(as_json=True)
        return {model["name"]: model["state"] for model in index["models"]}

    assert states() == {"echo": "READY", "strings": "READY"}
    client.unload_model("strings")
    assert not client.is_model_ready("strings")
    assert states()["strings"] == "UNAVAILABLE"
    refused("UNAVAILABLE", "strings", lambda: client.infer("strings", [echo_input(WORDS, "x", "BYTES")]))
    client.load_model("strings")
    assert client.is_model_ready("strings")
    refused("INVALID_ARGUMENT", "config", lambda: client.load_model("strings", config="{}"))
    refused("NOT_FOUND", "nope", lambda: client.load_model("nope"))


@check
def infer_and_read_the_outputs(client: Client) -> None:
    wanted = [triton.InferRequestedOutput("output")]
    for outputs in (None, wanted):
        result = client.infer("echo", [echo_input()], outputs=outputs)
        assert np.array_equal(result.as_numpy("output"), VALUES)
        assert result.get_response().model_name == "echo"


@check
def infer_with_version_id_parameters_and_headers(client: Client) -> None:
    result = client.infer(
        "echo",
        [echo_input()],
        model_version="1",
        request_id="mine",
        timeout=900_000,
        priority=1,
        client_timeout=10,
        headers={"x-slo-ms": "900"},
    )
    assert result.get_response().id == "mine"


@check
def strings_come_back_as_they_were(client: Client) -> None:
    result = client.infer("strings", [echo_input(WORDS, "x", "BYTES")])
    assert result.as_numpy("out_x").tolist() == WORDS.tolist()


@check
def async_infer(client: Client) -> None:
    answers: queue.Queue[Any] = queue.Queue()

    def take(n: int, result: Any, error: Any) -> None:
        answers.put((n, result, error))

    for n in range(16):
        client.async_infer("echo", [echo_input(VALUES + n)], callback=partial(take, n))
    for _ in range(16):
        n, result, error = answers.get(timeout=20)
        assert error is None, error
        assert np.array_equal(result.as_numpy("output"), VALUES + n)


@check
def a_call_can_be_cancelled(client: Client) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    call = client.async_infer("echo", [echo_input()], callback=lambda result, error: answers.put(error))
    call.cancel()
    error = answers.get(timeout=20)
    assert error is None or error.status() == "StatusCode.CANCELLED"


@check
def a_stream_of_requests(client: Client) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    client.start_stream(callback=lambda result, error: answers.put((result, error)))
    for n in range(32):
        client.async_stream_infer(
            "echo", [echo_input(VALUES + n)], request_id=str(n), enable_empty_final_response=True
        )
    seen = set()
    for _ in range(32):
        result, error = answers.get(timeout=20)
        assert error is None, error
        response = result.get_response()
        assert np.array_equal(result.as_numpy("output"), VALUES + int(response.id))
        assert response.parameters["triton_final_response"].bool_param
        seen.add(int(response.id))
    assert seen == set(range(32))
    client.async_stream_infer("nope", [echo_input()], request_id="bad")
    result, error = answers.get(timeout=20)
    assert result is None
    assert "nope" in error.message()
    client.async_stream_infer("echo", [echo_input()], request_id="good")
    result, error = answers.get(timeout=20)
    assert error is None
    client.stop_stream()


@check
def statistics_count_what_was_done(client: Client) -> None:
    def counted() -> Any:
        return client.get_inference_statistics("echo").model_stats[0]

    before = counted()
    client.infer("echo", [echo_input()])
    after = counted()
    assert after.inference_count == before.inference_count + 2
    assert after.inference_stats.success.count == before.inference_stats.success.count + 1
    assert len(client.get_inference_statistics().model_stats) == 2


@check
def typed_contents_through_bare_stubs(client: Client) -> None:
    with grpc.insecure_channel(sys.argv[1]) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = service_pb2.ModelInferRequest(model_name="echo")
        tensor = request.inputs.add(name="input", datatype="FP32", shape=VALUES.shape)
        tensor.contents.fp32_contents.extend(VALUES.ravel().tolist())
        response = stub.ModelInfer(request)
        assert np.array_equal(np.frombuffer(response.raw_output_contents[0], np.float32), VALUES.ravel())
        words = service_pb2.ModelInferRequest(model_name="strings")
        given = words.inputs.add(name="x", datatype="BYTES", shape=WORDS.shape)
        given.contents.bytes_contents.extend(WORDS.tolist())
        answer = triton.InferResult(stub.ModelInfer(words))
        assert answer.as_numpy("out_x").tolist() == WORDS.tolist()


@check
def aio_infer_and_stream(client: Client) -> None:
    async def ask() -> None:
        async with triton_aio.InferenceServerClient(sys.argv[1]) as aio_client:
            assert await aio_client.is_server_ready()
            results = await asyncio.gather(
                *(aio_client.infer("echo", [echo_input(VALUES + n)]) for n in range(8))
            )
            for n, result in enumerate(results):
                assert np.array_equal(result.as_numpy("output"), VALUES + n)

            async def requests() -> AsyncIterator[dict[str, Any]]:
                for n in range(8):
                    yield {"model_name": "echo", "inputs": [echo_input(VALUES + n)], "request_id": str(n)}

            n_answered = 0
            async for result, error in aio_client.stream_infer(requests()):
                assert error is None, error
                n = int(result.get_response().id)
                assert np.array_equal(result.as_numpy("output"), VALUES + n)
                n_answered += 1
            assert n_answered == 8

    asyncio.run(ask())


@check
def mistakes_are_named(client: Client) -> None:
    refused("NOT_FOUND", "nope", lambda: client.infer("nope", [echo_input()]))
    refused("NOT_FOUND", "version", lambda: client.infer("echo", [echo_input()], model_version="9"))
    refused("NOT_FOUND", "nope", lambda: client.get_model_metadata("nope"))
    refused("NOT_FOUND", "nope", lambda: client.get_model_config("nope"))
    refused("NOT_FOUND", "nope", lambda: client.get_inference_statistics("nope"))
    bad = "INVALID_ARGUMENT"
    wrong = np.zeros((1, 15), np.float32)
    refused(bad, "dimension 1 must be 16", lambda: client.infer("echo", [echo_input(wrong)]))
    many = np.zeros((9, 16), np.float32)
    refused(bad, "at most 8", lambda: client.infer("echo", [echo_input(many)]))
    integers = echo_input(np.zeros((1, 16), np.int32), datatype="INT32")
    refused(bad, "expected 'FP32'", lambda: client.infer("echo", [integers]))
    refused(bad, "no such input", lambda: client.infer("echo", [echo_input(name="nope")]))
    wanted = [triton.InferRequestedOutput("nope")]
    refused(bad, "no such output", lambda: client.infer("echo", [echo_input()], outputs=wanted))


@check
def classification_tells_the_highest_values(client: Client) -> None:
    wanted = [triton.InferRequestedOutput("output", class_count=2)]
    values = np.arange(16, dtype=np.float32)[None]
    found = client.infer("echo", [echo_input(values)], outputs=wanted).as_numpy("output")
    assert found.tolist() == [[b"15.000000:15", b"14.000000:14"]]


@check
def tensors_may_lie_in_shared_memory(client: Client) -> None:
    shm = triton_shared_memory
    client.unregister_system_shared_memory()
    client.unregister_cuda_shared_memory()
    handles = [shm.create_shared_memory_region(n, f"/grpc-check-{n}", VALUES.nbytes) for n in ("in", "out")]
    try:
        shm.set_shared_memory_region(handles[0], [VALUES])
        for n in ("in", "out"):
            client.register_system_shared_memory(n, f"/grpc-check-{n}", VALUES.nbytes)
        assert set(client.get_system_shared_memory_status(as_json=True)["regions"]) == {"in", "out"}
        tensor = triton.InferInput("input", list(VALUES.shape), "FP32")
        tensor.set_shared_memory("in", VALUES.nbytes)
        wanted = triton.InferRequestedOutput("output")
        wanted.set_shared_memory("out", VALUES.nbytes)
        answer = client.infer("echo", [tensor], outputs=[wanted])
        assert answer.get_output("output").parameters["shared_memory_region"].string_param == "out"
        assert np.array_equal(shm.get_contents_as_numpy(handles[1], np.float32, list(VALUES.shape)), VALUES)
        client.unregister_system_shared_memory()
        assert not client.get_system_shared_memory_status().regions
    finally:
        for handle in handles:
            shm.destroy_shared_memory_region(handle)


@check
def what_is_not_supported_says_so(client: Client) -> None:
    refused("UNIMPLEMENTED", "CUDA", lambda: client.register_cuda_shared_memory("r", b"", 0, 4))
    bad = "INVALID_ARGUMENT"
    ask = partial(client.infer, "echo", [echo_input()], sequence_id=7, sequence_start=True)
    refused(bad, "sequence_", ask)
    refused(bad, "custom", partial(client.infer, "echo", [echo_input()], parameters={"custom": "value"}))
    compressed = client.infer("echo", [echo_input()], compression_algorithm="gzip")
    assert np.array_equal(compressed.as_numpy("output"), VALUES)


@check
def errors_disturb_nothing(client: Client) -> None:
    infer_and_read_the_outputs(client)


def main() -> None:
    """Run every check against the server named on the command line."""
    client = triton.InferenceServerClient(sys.argv[1])
    for function in CHECKS:
        function(client)
        print("passed:", function.__name__.replace("_", " "), flush=True)
    client.close()
    print(f"all {len(CHECKS)} checks passed")


if __name__ == "__main__":
    main()

"""Asks a server everything through the stock `tritonclient[http]`: `python triton_client_check.py HOST:PORT`.

Runs in an environment that has tritonclient and nothing of cotenant. The server must serve `echo` (FP32
[-1, 16], `max_batch` 8, labels) and have `late`, the same with versions 1 and 2, in an explicit repository.
Prints one line per check and ends with `all N checks passed`, or with a traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import tritonclient.http as triton
import tritonclient.utils.shared_memory as triton_shared_memory
from tritonclient.utils import InferenceServerException

Client = Any
CHECKS: list[Callable[[Client], None]] = []
VALUES = np.arange(32, dtype=np.float32).reshape(2, 16) / 7


def check(function: Callable[[Client], None]) -> Callable[[Client], None]:
    """Add to the list of checks."""
    CHECKS.append(function)
    return function


def echo_input(values: Any = VALUES, *, binary: bool = True, datatype: str = "FP32") -> Any:
    tensor = triton.InferInput("input", list(values.shape), datatype)
    tensor.set_data_from_numpy(values, binary_data=binary)
    return tensor


def output_name(client: Client) -> str:
    return client.get_model_metadata("echo")["outputs"][0]["name"]


def refused(status: str, words: str, ask: Callable[[], object]) -> None:
    """The call must fail with this HTTP status, and its message must hold `words`."""
    found: InferenceServerException | None = None
    try:
        ask()
    except InferenceServerException as error:
        found = error
    assert found is not None, f"expected status {status}, but the call succeeded"
    assert found.status() == status, f"status {found.status()}, expected {status}: {found.message()}"
    assert words in found.message(), f"expected {words!r} in {found.message()!r}"


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
def server_metadata_names_extensions(client: Client) -> None:
    metadata = client.get_server_metadata()
    assert metadata["name"] == "cotenant"
    assert "binary_tensor_data" in metadata["extensions"]
    assert "statistics" in metadata["extensions"]


@check
def model_metadata_describes_tensors(client: Client) -> None:
    metadata = client.get_model_metadata("echo")
    assert metadata["name"] == "echo"
    assert metadata["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 16]}]
    assert client.get_model_metadata("echo", "1") == metadata


@check
def model_config_is_tritons(client: Client) -> None:
    config = client.get_model_config("echo")
    assert config["max_batch_size"] == 8
    assert config["input"][0]["data_type"] == "TYPE_FP32"
    assert config["input"][0]["dims"] == [16]


@check
def the_repository_index_lists_echo(client: Client) -> None:
    assert {"echo": "READY"}.items() <= {
        model["name"]: model["state"] for model in client.get_model_repository_index()
    }.items()


@check
def infer_in_binary(client: Client) -> None:
    result = client.infer("echo", [echo_input()])
    assert np.array_equal(result.as_numpy(output_name(client)), VALUES)
    assert result.get_response()["model_name"] == "echo"


@check
def infer_in_json(client: Client) -> None:
    name = output_name(client)
    wanted = [triton.InferRequestedOutput(name, binary_data=False)]
    result = client.infer("echo", [echo_input(binary=False)], outputs=wanted)
    assert np.array_equal(result.as_numpy(name), VALUES)


@check
def infer_mixing_json_and_binary(client: Client) -> None:
    name = output_name(client)
    for binary_in, binary_out in ((True, False), (False, True)):
        wanted = [triton.InferRequestedOutput(name, binary_data=binary_out)]
        result = client.infer("echo", [echo_input(binary=binary_in)], outputs=wanted)
        assert np.array_equal(result.as_numpy(name), VALUES)


@check
def infer_with_version_id_and_parameters(client: Client) -> None:
    result = client.infer(
        "echo",
        [echo_input()],
        model_version="1",
        request_id="mine",
        timeout=900_000,
        priority=1,
    )
    assert result.get_response()["id"] == "mine"


@check
def infer_with_headers(client: Client) -> None:
    client.infer("echo", [echo_input()], headers={"x-slo-ms": "900"})


@check
def async_infer(client: Client) -> None:
    name = output_name(client)
    pending = [client.async_infer("echo", [echo_input(VALUES + n)]) for n in range(16)]
    for n, request in enumerate(pending):
        assert np.array_equal(request.get_result().as_numpy(name), VALUES + n)


@check
def statistics_count_what_was_done(client: Client) -> None:
    before = client.get_inference_statistics("echo")["model_stats"][0]
    client.infer("echo", [echo_input()])
    after = client.get_inference_statistics("echo")["model_stats"][0]
    assert after["inference_count"] == before["inference_count"] + 2
    succeeded = [stats["inference_stats"]["success"]["count"] for stats in (before, after)]
    assert succeeded[1] == succeeded[0] + 1
    names = [model["name"] for model in client.get_inference_statistics()["model_stats"]]
    assert "echo" in names


@check
def an_unknown_model_or_version_is_404(client: Client) -> None:
    refused("404", "nope", lambda: client.infer("nope", [echo_input()]))
    refused("404", "version", lambda: client.infer("echo", [echo_input()], model_version="9"))
    refused("404", "nope", lambda: client.get_model_metadata("nope"))
    refused("404", "nope", lambda: client.get_model_config("nope"))
    refused("404", "nope", lambda: client.get_inference_statistics("nope"))


@check
def a_wrong_shape_is_400_and_named(client: Client) -> None:
    wrong = np.zeros((1, 15), np.float32)
    for binary in (True, False):
        refused(
            "400",
            "dimension 1 must be 16",
            lambda b=binary: client.infer("echo", [echo_input(wrong, binary=b)]),
        )


@check
def a_wrong_datatype_is_400_and_named(client: Client) -> None:
    wrong = echo_input(np.zeros((1, 16), np.int32), datatype="INT32")
    refused("400", "expected 'FP32'", lambda: client.infer("echo", [wrong]))


@check
def too_many_rows_are_400(client: Client) -> None:
    refused("400", "at most 8", lambda: client.infer("echo", [echo_input(np.zeros((9, 16), np.float32))]))


@check
def wrong_names_are_400(client: Client) -> None:
    tensor = triton.InferInput("nope", [1, 16], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, 16), np.float32))
    refused("400", "no such input", lambda: client.infer("echo", [tensor]))
    wanted = [triton.InferRequestedOutput("nope")]
    refused("400", "no such output", lambda: client.infer("echo", [echo_input()], outputs=wanted))


@check
def classes_come_instead_of_values(client: Client) -> None:
    name = output_name(client)
    wanted = [triton.InferRequestedOutput(name, class_count=2)]
    found = client.infer("echo", [echo_input()], outputs=wanted).as_numpy(name)
    assert found.tolist() == [
        [b"2.142857:15:fifteen", b"2.000000:14:14"],
        [b"4.428571:15:fifteen", b"4.285714:14:14"],
    ]


@check
def bodies_may_be_compressed_both_ways(client: Client) -> None:
    for algorithm in ("gzip", "deflate"):
        result = client.infer(
            "echo",
            [echo_input()],
            request_compression_algorithm=algorithm,
            response_compression_algorithm=algorithm,
        )
        assert np.array_equal(result.as_numpy(output_name(client)), VALUES)


@check
def tensors_may_lie_in_shared_memory(client: Client) -> None:
    shm = triton_shared_memory
    client.unregister_system_shared_memory()
    client.unregister_cuda_shared_memory()
    handles = [shm.create_shared_memory_region(n, f"/triton-check-{n}", VALUES.nbytes) for n in ("in", "out")]
    try:
        shm.set_shared_memory_region(handles[0], [VALUES])
        for n in ("in", "out"):
            client.register_system_shared_memory(n, f"/triton-check-{n}", VALUES.nbytes)
        assert {region["name"] for region in client.get_system_shared_memory_status()} == {"in", "out"}
        tensor = triton.InferInput("input", list(VALUES.shape), "FP32")
        tensor.set_shared_memory("in", VALUES.nbytes)
        wanted = triton.InferRequestedOutput(output_name(client))
        wanted.set_shared_memory("out", VALUES.nbytes)
        found = client.infer("echo", [tensor], outputs=[wanted]).get_output(output_name(client))
        array = shm.get_contents_as_numpy(handles[1], np.float32, found["shape"])
        assert np.array_equal(array, VALUES)
        client.unregister_system_shared_memory()
        assert client.get_system_shared_memory_status() == []
    finally:
        for handle in handles:
            shm.destroy_shared_memory_region(handle)


@check
def models_of_the_repository_are_loaded_and_unloaded(client: Client) -> None:
    def states() -> set[tuple[str, str, str]]:
        index = client.get_model_repository_index()
        return {(found["name"], found["version"], found["state"]) for found in index}

    assert not client.is_model_ready("late")
    client.load_model("late")
    assert states() >= {("late", "1", "READY"), ("late", "2", "READY"), ("echo", "1", "READY")}
    assert client.is_model_ready("late", "2")
    for version in ("1", "2"):
        answer = client.infer("late", [echo_input()], model_version=version).get_response()
        assert (answer["model_name"], answer["model_version"]) == ("late", version)
    assert client.infer("late", [echo_input()]).get_response()["model_version"] == "2"
    client.unload_model("late")
    assert states() >= {("late", "1", "UNAVAILABLE"), ("late", "2", "UNAVAILABLE")}
    refused("503", "unavailable", lambda: client.infer("late", [echo_input()]))
    refused("404", "unknown model", lambda: client.load_model("nope"))
    refused("400", "config", lambda: client.load_model("late", config="{}"))


@check
def log_settings_are_shown_and_changed(client: Client) -> None:
    before = client.get_log_settings()
    assert client.update_log_settings({"log_verbose_level": 1})["log_verbose_level"] == 1
    refused("400", "log_file", lambda: client.update_log_settings({"log_file": "x"}))
    assert client.update_log_settings({"log_verbose_level": before["log_verbose_level"]}) == before


@check
def traces_are_off(client: Client) -> None:
    settings = client.get_trace_settings("echo")
    assert settings["trace_level"] == ["OFF"]
    assert client.update_trace_settings(settings={"trace_level": "OFF"}) == settings
    refused("400", "trace_rate", lambda: client.update_trace_settings(settings={"trace_rate": "5"}))


@check
def what_is_not_supported_is_400(client: Client) -> None:
    refused(
        "400", "sequence_id", lambda: client.infer("echo", [echo_input()], sequence_id=7, sequence_start=True)
    )
    refused("400", "custom", lambda: client.infer("echo", [echo_input()], parameters={"custom": "value"}))


@check
def errors_disturb_nothing(client: Client) -> None:
    infer_in_binary(client)


def main() -> None:
    """Run every check against the server named on the command line."""
    client = triton.InferenceServerClient(sys.argv[1], concurrency=4)
    for function in CHECKS:
        function(client)
        print("passed:", function.__name__.replace("_", " "), flush=True)
    client.close()
    print(f"all {len(CHECKS)} checks passed")


if __name__ == "__main__":
    main()

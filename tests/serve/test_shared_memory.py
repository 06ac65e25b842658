"""Tensors in system shared memory: off by default, confined, and safe from clients that change their mind."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import Server, echo_request

from cotenant.serve.http import ServeConfig
from cotenant.serve.shared_memory import FOLDER, Regions

pytestmark = pytest.mark.skipif(not os.path.isdir(FOLDER), reason=f"there is no {FOLDER} here")

Serve = Callable[..., Server]
REGION = "/v2/systemsharedmemory/region"
VALUES = np.arange(32, dtype=np.float32).reshape(2, 16)


@pytest.fixture
def shm() -> Iterator[Path]:
    """A file of shared memory with room for three times VALUES."""
    path = Path(FOLDER) / f"test-{uuid.uuid4().hex}"
    path.write_bytes(bytes(3 * VALUES.nbytes))
    yield path
    path.unlink(missing_ok=True)


@pytest.fixture
def sharing(serve: Serve) -> Server:
    return serve(ServeConfig(shared_memory=True, max_body_bytes=1 << 16))


def register(server: Server, shm: Path, name: str = "r", **members: Any) -> int:
    body = {"key": f"/{shm.name}", "byte_size": 3 * VALUES.nbytes, **members}
    return server.ask("POST", f"{REGION}/{name}/register", body).status


def shared_input(offset: int = 0, n_bytes: int = VALUES.nbytes, **more: Any) -> dict[str, Any]:
    place = {"shared_memory_region": "r", "shared_memory_offset": offset, "shared_memory_byte_size": n_bytes}
    return {"name": "input", "shape": [2, 16], "datatype": "FP32", "parameters": {**place, **more}}


def shared_output(offset: int, n_bytes: int = VALUES.nbytes, **more: Any) -> dict[str, Any]:
    place = {"shared_memory_region": "r", "shared_memory_offset": offset, "shared_memory_byte_size": n_bytes}
    return {"name": "output", "parameters": {**place, **more}}


def test_tensors_are_read_from_and_written_to_a_region(sharing: Server, shm: Path) -> None:
    with shm.open("r+b") as file:
        file.seek(VALUES.nbytes)
        file.write(VALUES.tobytes())
    assert register(sharing, shm) == 200
    request = {
        "inputs": [shared_input(VALUES.nbytes)],
        "outputs": [shared_output(2 * VALUES.nbytes)],
    }
    answer = sharing.infer(request)
    assert answer.status == 200
    (output,) = answer.json["outputs"]
    assert "data" not in output
    assert output["parameters"] == {
        "shared_memory_region": "r",
        "shared_memory_offset": 2 * VALUES.nbytes,
        "shared_memory_byte_size": VALUES.nbytes,
    }
    assert shm.read_bytes() == bytes(VALUES.nbytes) + VALUES.tobytes() * 2


def test_a_regions_own_offset_counts(sharing: Server, shm: Path) -> None:
    shm.write_bytes(bytes(8) + VALUES.tobytes() + bytes(100))
    assert register(sharing, shm, offset=8, byte_size=VALUES.nbytes) == 200
    answer = sharing.infer({"inputs": [shared_input()]})
    assert answer.json["outputs"][0]["data"] == VALUES.reshape(-1).tolist()
    assert sharing.infer({"inputs": [shared_input(8)]}).status == 400


def test_regions_are_listed_and_unregistered(sharing: Server, shm: Path) -> None:
    assert register(sharing, shm, "a") == register(sharing, shm, "b", offset=4, byte_size=8) == 200
    status = "/v2/systemsharedmemory/status"
    listed = sharing.get(status).json
    entry = {"name": "b", "key": f"/{shm.name}", "offset": 4, "byte_size": 8}
    assert listed[1] == entry
    assert sharing.get(f"{REGION}/b/status").json == [entry]
    assert register(sharing, shm, "a") == 400
    assert sharing.ask("POST", f"{REGION}/a/unregister").status == 200
    assert [region["name"] for region in sharing.get(status).json] == ["b"]
    assert sharing.get(f"{REGION}/a/status").status == 400
    assert sharing.ask("POST", "/v2/systemsharedmemory/unregister").status == 200
    assert sharing.get(status).json == []


def test_an_unregistered_region_closes_its_file(sharing: Server, shm: Path) -> None:
    def n_open() -> int:
        links = [os.path.join("/proc/self/fd", fd) for fd in os.listdir("/proc/self/fd")]
        return sum(os.path.realpath(link) == str(shm) for link in links if os.path.islink(link))

    register(sharing, shm)
    assert n_open() == 1
    sharing.infer({"inputs": [shared_input()], "outputs": [shared_output(0)]})
    sharing.ask("POST", f"{REGION}/r/unregister")
    sharing.until(lambda: n_open() == 0)


def test_a_region_that_is_truncated_in_mid_use_is_refused_and_hurts_nobody(
    sharing: Server, shm: Path
) -> None:
    assert register(sharing, shm) == 200
    both = {"inputs": [shared_input()], "outputs": [shared_output(2 * VALUES.nbytes)]}
    sharing.link.hang_next = True
    waiting = sharing.in_background(lambda: sharing.infer(both))
    sharing.until(lambda: sharing.link.n_waiting == 1)
    os.truncate(shm, VALUES.nbytes)  # the input has been read, the output is yet to be written
    sharing.on_loop(sharing.link.release)
    answer = waiting()
    assert answer.status == 400
    assert "shared memory region 'r' has become smaller" in answer.error
    assert shm.stat().st_size == VALUES.nbytes, "a write must not make the file longer"
    os.truncate(shm, 3)
    answer = sharing.infer(both)
    assert answer.status == 400
    assert "byte 128 is not there" in answer.error
    assert sharing.infer().status == 200
    assert sharing.get("/v2/health/ready").status == 200


def test_an_unlinked_file_can_be_used_to_the_end(sharing: Server, shm: Path) -> None:
    register(sharing, shm)
    shm.unlink()
    assert sharing.infer({"inputs": [shared_input()]}).status == 200


@pytest.mark.parametrize(
    "key", ["", "/", ".", "..", "...", "../etc/passwd", "a/b", "//a", "/a/../b", "nul\0", "é", "x" * 251]
)
def test_keys_stay_inside_their_folder(sharing: Server, key: str) -> None:
    answer = sharing.ask("POST", f"{REGION}/r/register", {"key": key, "byte_size": 1})
    assert (answer.status, "expected the name of a shared memory object" in answer.error) == (400, True)


def test_what_is_no_plain_file_of_the_servers_user_is_refused(sharing: Server, shm: Path) -> None:
    unusable = "there is no shared memory object of this name that the server may use"
    kinds: dict[str, Callable[[Path], Any]] = {
        "link": lambda path: path.symlink_to(shm),
        "folder": Path.mkdir,
        "pipe": os.mkfifo,
        "nothing": lambda path: None,
    }
    for kind, make in kinds.items():
        path = shm.with_name(f"{shm.name}-{kind}")
        make(path)
        try:
            answer = sharing.ask("POST", f"{REGION}/r/register", {"key": path.name, "byte_size": 1})
            assert (answer.status, answer.error) == (400, f"key: {unusable}"), kind
        finally:
            if kind == "folder":
                path.rmdir()
            elif kind != "nothing":
                path.unlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_files_of_another_user_are_refused(sharing: Server, shm: Path) -> None:
    os.chown(shm, 65534, 65534)
    assert register(sharing, shm) == 400


def test_this_servers_own_files_are_not_for_clients(sharing: Server) -> None:
    answer = sharing.ask("POST", f"{REGION}/r/register", {"key": "/cotenant-tensors", "byte_size": 1})
    assert "this server's own" in answer.error


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (None, "body: is empty"),
        ({"key": "x"}, "required field byte_size"),
        ({"byte_size": 1}, "required field key"),
        ({"key": "x", "byte_size": 0}, "byte_size: expected int >= 1"),
        ({"key": "x", "byte_size": 1, "offset": -1}, "offset: expected int >= 0"),
        ({"key": "x", "byte_size": 2**80}, "byte_size: "),
        ({"key": "x", "byte_size": 1, "size": 1}, "unknown field size"),
        ({"byte_size": 385}, "the shared memory object has 384 bytes"),
        ({"byte_size": 384, "offset": 1}, "384 bytes from offset 1 on"),
    ],
)
def test_a_wrong_registration_is_refused_by_name(
    sharing: Server, shm: Path, body: Any, complaint: str
) -> None:
    if body is not None and "key" not in body and "required" not in complaint:
        body = {"key": shm.name, **body}
    answer = sharing.ask("POST", f"{REGION}/r/register", body)
    assert (answer.status, complaint in answer.error) == (400, True), answer.error


@pytest.mark.parametrize(
    ("tensor", "status", "complaint"),
    [
        (shared_input(shared_memory_region="nope"), 400, "no shared memory region 'nope'"),
        (shared_input(shared_memory_region=3), 400, "shared_memory_region: expected a name, got 3"),
        (shared_input(-1), 400, "shared_memory_offset: expected a count of bytes, got -1"),
        (shared_input(n_bytes=385), 400, "has 384 bytes"),
        (shared_input(300), 400, "128 bytes from offset 300 on"),
        (shared_input(n_bytes=64), 400, "64 bytes of binary data, but shape [2, 16] of FP32 needs 128"),
        (shared_input(binary_data_size=0), 400, "data besides"),
        ({**shared_input(), "data": [0] * 32}, 400, "data besides"),
        (
            {**shared_input(), "parameters": {"shared_memory_region": "r"}},
            400,
            "shared_memory_byte_size: expected a count of bytes, got None",
        ),
        (
            {**shared_input(), "parameters": {"shared_memory_byte_size": 64}, "data": [0] * 32},
            400,
            "shared_memory_byte_size goes with parameters.shared_memory_region",
        ),
    ],
)
def test_a_wrong_reference_is_refused_by_name(
    sharing: Server, shm: Path, tensor: Any, status: int, complaint: str
) -> None:
    register(sharing, shm)
    answer = sharing.infer({"inputs": [tensor]})
    assert (answer.status, complaint in answer.error) == (status, True), answer.error


def test_what_is_read_from_shared_memory_is_limited_like_a_body(sharing: Server, shm: Path) -> None:
    os.truncate(shm, 1 << 30)
    assert register(sharing, shm, byte_size=1 << 30) == 200
    answer = sharing.infer({"inputs": [shared_input(n_bytes=(1 << 16) + 1)]})
    assert answer.status == 413
    assert "larger than the limit of 65536 bytes" in answer.error


def test_an_output_that_does_not_fit_is_refused(sharing: Server, shm: Path) -> None:
    register(sharing, shm)
    answer = sharing.infer(echo_request(rows=2, outputs=[shared_output(0, 64)]))
    assert answer.status == 400
    assert "output 'output': has 128 bytes, but parameters.shared_memory_byte_size is 64" in answer.error
    assert shm.read_bytes() == bytes(384)


def test_shared_memory_is_off_by_default(server: Server, shm: Path) -> None:
    assert register(server, shm) == 403
    assert server.get("/v2/systemsharedmemory/status").status == 403
    assert "system_shared_memory" not in server.get("/v2").json["extensions"]
    answer = server.infer({"inputs": [shared_input()]})
    assert (answer.status, "shared memory is turned off" in answer.error) == (400, True)
    answer = server.infer(echo_request(outputs=[shared_output(0)]))
    assert (answer.status, "shared memory is turned off" in answer.error) == (400, True)


def test_it_is_advertised_where_it_is_on(sharing: Server) -> None:
    assert "system_shared_memory" in sharing.get("/v2").json["extensions"]


def test_web_pages_do_not_get_at_it(sharing: Server, shm: Path) -> None:
    body = {"key": shm.name, "byte_size": 8}
    answer = sharing.ask("POST", f"{REGION}/r/register", body, {"Origin": "http://evil.example"})
    assert answer.status == 403


def test_cuda_regions_are_refused_and_there_are_none(sharing: Server) -> None:
    top = "/v2/cudasharedmemory"
    body = {"raw_handle": {"b64": "AAAA"}, "device_id": 0, "byte_size": 8}
    answer = sharing.ask("POST", f"{top}/region/r/register", body)
    assert answer.status == 400
    assert "takes no tensors in CUDA shared memory" in answer.error
    assert sharing.get(f"{top}/status").json == []
    assert sharing.get(f"{top}/region/r/status").status == 400
    assert sharing.ask("POST", f"{top}/unregister").status == 200
    assert sharing.ask("POST", f"{top}/region/r/unregister").status == 200


def test_there_is_a_most_of_regions(shm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cotenant.serve.shared_memory.MOST_REGIONS", 2)
    regions = Regions(1 << 20)
    regions.register("a", shm.name, 0, 1)
    regions.register("b", shm.name, 0, 1)
    with pytest.raises(Exception, match="2 shared memory regions are registered"):
        regions.register("c", shm.name, 0, 1)

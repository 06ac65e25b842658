"""What an operator sees: starting, failing, crashing, being told to stop."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from server_process import Process

ECHO = '[[model]]\nname = "echo"\nsource = "zoo:echo"\nslo_ms = 1000\nmax_batch = 4\n'
ONES = [0.5] * 16

Serve = Callable[..., Process]
Config = Callable[[str], Path]


def outcomes(server: Process, model: str) -> dict[str, float]:
    """Requests so far by outcome, from the metrics page."""
    _, page = server.ask("/metrics")
    found: dict[str, float] = {}
    for line in page.splitlines():
        match = re.match(r"cotenant_requests_total\{(.*)\} (\S+)", line)
        if match and f'model="{model}"' in match[1]:
            kind = re.search(r'outcome="(\w+)"', match[1])
            assert kind is not None
            found[kind[1]] = found.get(kind[1], 0.0) + float(match[2])
    return found


def until(condition: Callable[[], bool], what: str) -> None:
    give_up = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < give_up, f"never happened: {what}"
        time.sleep(0.02)


def slow_config(path: Path) -> str:
    return f'[device]\nlanes = 1\n[[model]]\nname = "slow"\nsource = "{path.name}"\nmax_batch = 1\n'


# --- being told to stop -----------------------------------------------------------------------------------


def test_sigterm_answers_what_was_admitted_and_refuses_the_rest(
    serve: Serve, config: Config, slow_model: Path
) -> None:
    server = serve(config(slow_config(slow_model))).ready()
    with ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(server.infer, "slow", x=[1.0, 2.0, 3.0, 4.0]) for _ in range(6)]
        until(lambda: outcomes(server, "slow").get("ok", 0) >= 1, "the first answer")
        server.signal(signal.SIGTERM)
        server.signal(signal.SIGTERM)
        with_answer = [future.result() for future in asked]
    assert [status for status, _ in with_answer] == [200] * 6
    assert all(body["outputs"][0]["data"] == [1.0, 2.0, 3.0, 4.0] for _, body in with_answer)
    assert server.ended() == 0
    assert "Traceback" not in server.stderr
    with pytest.raises(OSError):
        server.infer("slow", x=[1.0, 2.0, 3.0, 4.0])


def test_while_draining_new_requests_get_503(serve: Serve, config: Config, slow_model: Path) -> None:
    server = serve(config(slow_config(slow_model))).ready()
    late = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    with closing(late), ThreadPoolExecutor(8) as pool:
        late.request("GET", "/v2/health/ready")
        assert late.getresponse().read()
        asked = [pool.submit(server.infer, "slow", x=[1.0, 2.0, 3.0, 4.0]) for _ in range(8)]
        until(lambda: outcomes(server, "slow").get("ok", 0) >= 1, "the first answer")
        server.signal(signal.SIGTERM)
        time.sleep(0.05)
        tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1.0] * 4}
        late.request("POST", "/v2/models/slow/infer", json.dumps({"inputs": [tensor]}))
        answer = late.getresponse()
        body = json.loads(answer.read())
        assert [future.result()[0] for future in asked] == [200] * 8
    assert answer.status == 503
    assert "draining" in body["reason"]
    assert int(answer.headers["retry-after"]) >= 1
    assert server.ended() == 0


# --- models that fail -------------------------------------------------------------------------------------


def test_a_model_that_cannot_be_loaded_leaves_the_others_serving(
    serve: Serve, config: Config, tmp_path: Path
) -> None:
    (tmp_path / "corrupt.onnx").write_bytes(b"\x08\x08garbage")
    server = serve(
        config(
            ECHO
            + '[[model]]\nname = "absent"\nsource = "absent.onnx"\n'
            + '[[model]]\nname = "corrupt"\nsource = "corrupt.onnx"\n'
        )
    ).ready()
    assert server.infer("echo", input=ONES)[0] == 200
    for name, why in (("absent", "no file"), ("corrupt", "corrupt.onnx")):
        status, body = server.infer(name, x=[1.0])
        assert status == 503
        assert name in body["error"]
        assert why in body["error"]
        assert str(tmp_path) not in body["error"]
    states = {entry["name"]: entry for entry in server.ask("/v2/repository/index", {})[1]}
    assert {name: entry["state"] for name, entry in states.items()} == {
        "echo": "READY",
        "absent": "UNAVAILABLE",
        "corrupt": "UNAVAILABLE",
    }
    assert states["corrupt"]["reason"]
    assert server.ask("/v2/health/ready")[0] == 200
    server.signal(signal.SIGTERM)
    assert server.ended() == 0
    assert "absent.onnx" in server.stderr


def test_when_no_model_can_be_loaded_the_server_says_why_and_ends(serve: Serve, config: Config) -> None:
    server = serve(config('[[model]]\nname = "absent"\nsource = "absent.onnx"\n'))
    assert server.ended() != 0
    assert "absent.onnx" in server.stderr
    assert "Traceback" not in server.stderr


def test_a_run_that_fails_fails_its_own_requests_only(
    serve: Serve, config: Config, picky_model: Path
) -> None:
    server = serve(
        config(ECHO + f'[[model]]\nname = "picky"\nsource = "{picky_model.name}"\nmax_batch = 1\n')
    ).ready()
    with ThreadPoolExecutor(8) as pool:
        bad = [pool.submit(server.infer, "picky", i=[99]) for _ in range(4)]
        good = [pool.submit(server.infer, "picky", i=[k]) for k in range(4)]
        other = [pool.submit(server.infer, "echo", input=ONES) for _ in range(8)]
        assert [future.result()[0] for future in other] == [200] * 8
        assert [future.result()[1]["outputs"][0]["data"] for future in good] == [[0.0], [1.0], [2.0], [3.0]]
        for status, body in (future.result() for future in bad):
            assert status == 500
            assert body["reason"] == "execution failed"
            assert "onnx" not in json.dumps(body).lower()
    assert outcomes(server, "picky") == {"ok": 4.0, "failed": 4.0}


def test_a_run_that_hangs_fails_and_its_lane_is_replaced(
    serve: Serve, config: Config, hanging_model: Path
) -> None:
    server = serve(
        config(f'[device]\nlanes = 1\n[[model]]\nname = "loop"\nsource = "{hanging_model.name}"\n')
    )
    server.ready().batched = False
    assert server.infer("loop", turns=[3])[1]["outputs"][0]["data"] == [3]
    status, body = server.infer("loop", turns=[10**12])
    assert status == 500
    assert body["reason"] == "execution failed"
    assert server.infer("loop", turns=[4])[1]["outputs"][0]["data"] == [4]
    server.signal(signal.SIGTERM)
    assert server.ended() == 0


# --- starting ---------------------------------------------------------------------------------------------


def test_a_port_in_use_is_one_clear_line(config: Config, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "cotenant", "serve", str(config(ECHO)), "--http-port", str(port),
             "--store", str(tmp_path / "store")],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode != 0
    assert "ready" not in done.stdout
    assert str(port) in done.stderr
    assert "in use" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (ECHO.replace("max_batch", "max_bach"), ["max_bach", "max_batch"]),
        (ECHO + "slo_ms = [", ["server.toml"]),
        (ECHO.replace("1000", '"soon"'), ["slo_ms"]),
        ("", ["model"]),
    ],
    ids=["unknown key", "not TOML", "wrong type", "no model"],
)
def test_a_wrong_configuration_names_what_is_wrong(
    serve: Serve, config: Config, text: str, wanted: list[str]
) -> None:
    server = serve(config(text))
    assert server.ended() != 0
    for word in wanted:
        assert word in server.stderr
    assert "Traceback" not in server.stderr


def test_a_configuration_that_is_not_there(serve: Serve, tmp_path: Path) -> None:
    server = serve(tmp_path / "nowhere.toml")
    assert server.ended() != 0
    assert "nowhere.toml" in server.stderr
    assert "Traceback" not in server.stderr


def test_a_users_own_file_with_and_without_a_batch_axis(
    serve: Serve, picky_model: Path, unbatched_model: Path
) -> None:
    own = serve(picky_model, "--slo-ms", "500").ready()
    assert own.infer("picky", i=[2])[1]["outputs"][0]["data"] == [2.0]
    other = serve(unbatched_model, "--slo-ms", "500").ready()  # the same store, at the same time
    tensor = {"name": "x", "shape": [3], "datatype": "FP32", "data": [1.0, 2.0, 3.0]}
    status, body = other.ask("/v2/models/unbatched/infer", {"inputs": [tensor]})
    assert status == 200
    assert body["outputs"][0]["data"] == [2.0, 4.0, 6.0]
    assert other.ask("/v2/models/unbatched/config")[1]["max_batch_size"] == 0


# --- crashing and going away ------------------------------------------------------------------------------


def test_after_kill_9_a_restart_serves_on_the_stored_profile(
    serve: Serve, config: Config, tmp_path: Path
) -> None:
    path, store = config(ECHO), tmp_path / "store"

    def measured() -> list[tuple[object, ...]]:
        with closing(sqlite3.connect(store / "profiles.sqlite")) as database:
            (table,) = database.execute("SELECT name FROM sqlite_master WHERE name LIKE '%solo%'").fetchone()
            return sorted(database.execute(f"SELECT * FROM {table}").fetchall(), key=repr)

    first = serve(path).ready()
    before = measured()
    assert before
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(first.infer, "echo", input=ONES) for _ in range(50)]
        first.signal(signal.SIGKILL)
        for future in asked:
            future.exception()
    assert first.ended() == -signal.SIGKILL
    second = serve(path).ready()
    assert second.infer("echo", input=ONES)[1]["outputs"][0]["data"] == ONES
    assert measured() == before


def test_a_client_that_goes_away_gives_its_place_in_the_queue_back(
    serve: Serve, config: Config, slow_model: Path
) -> None:
    server = serve(config(slow_config(slow_model))).ready()
    tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1.0] * 4}
    gone = [http.client.HTTPConnection("127.0.0.1", server.port, timeout=30) for _ in range(12)]
    for connection in gone:
        connection.request("POST", "/v2/models/slow/infer", json.dumps({"inputs": [tensor]}))
    for connection in gone:
        connection.close()
    until(lambda: sum(outcomes(server, "slow").values()) == 12, "all twelve ended")
    ended = outcomes(server, "slow")
    assert ended["cancelled"] >= 8
    assert server.infer("slow", x=[1.0] * 4)[0] == 200

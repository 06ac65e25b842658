"""What becomes of a server when one of its processes does not live on."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

from server_process import Process

ECHO = '[[model]]\nname = "echo"\nsource = "zoo:echo"\nslo_ms = 1000\nmax_batch = 4\n'
ONES = [0.5] * 16
BODY = json.dumps(
    {"inputs": [{"name": "input", "shape": [1, 16], "datatype": "FP32", "data": ONES}]}
).encode()

Serve = Callable[..., Process]
Config = Callable[[str], Path]


def until(condition: Callable[[], object], what: str) -> None:
    give_up = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < give_up, f"never happened: {what}"
        time.sleep(0.02)


def ready(server: Process) -> bool:
    return bool(server.ask("/v2/health/ready")[0] == 200)


def why(server: Process) -> str:
    """Why the server is not ready."""
    reason: str = server.ask("/v2/health/ready")[1].get("reason", "")
    return reason


def is_gone(pid: int) -> bool:
    """Whether a process has ended: not there, or only to be counted."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def ask_until(over: threading.Event, port: int) -> list[tuple[int, dict[str, Any], dict[str, str]]]:
    """Ask on one connection, the next as soon as the last is answered: every answer, in order. An answer that
    does not come is an error."""
    found = []
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        while not over.is_set():
            connection.request("POST", "/v2/models/echo/infer", BODY)
            answer = connection.getresponse()
            found.append((answer.status, json.loads(answer.read()), dict(answer.getheaders())))
    return found


def test_when_the_engine_is_killed_under_load_every_request_is_answered_and_it_comes_back(
    serve: Serve, config: Config, tmp_path: Path
) -> None:
    server = serve(config(ECHO)).ready()
    state = tmp_path / "store" / "learned" / "server.state"
    over = threading.Event()
    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask_until, over, server.port) for _ in range(4)]
        until(state.exists, "something learned is on disk")
        for number in (signal.SIGKILL, signal.SIGSEGV):
            killed = server.engine
            os.kill(killed, number)
            until(lambda pid=killed: server.engine not in (0, pid), "another engine")
            until(lambda: ready(server), "it serves again")
            time.sleep(0.2)
        over.set()
        answers = [answer for future in asking for answer in future.result()]
    counts = Counter(status for status, _, _ in answers)
    assert set(counts) == {200, 503}
    assert len({headers["x-request-id"] for _, _, headers in answers}) == len(answers)
    for status, body, headers in answers:
        if status == 200:
            assert body["outputs"][0]["data"] == ONES
        else:
            assert body["reason"].startswith("not available")
            assert int(headers["retry-after"]) >= 1
    assert "was ended by SIGKILL" in server.stderr
    assert "was ended by SIGSEGV" in server.stderr
    assert server.stderr.count(f"restored from {state}") == 2
    page = server.ask("/metrics")[1]
    assert "cotenant_engine_up 1\n" in page
    assert "cotenant_engine_losses_total 2\n" in page
    server.signal(signal.SIGTERM)
    assert server.ended() == 0
    assert "Traceback" not in server.stderr


def test_an_engine_that_cannot_start_anew_is_tried_again_and_readiness_says_why(
    serve: Serve, config: Config, picky_model: Path
) -> None:
    server = serve(
        config(f'[[model]]\nname = "picky"\nsource = "{picky_model.name}"\nmax_batch = 1\n')
    ).ready()
    aside = picky_model.with_suffix(".aside")
    picky_model.rename(aside)
    os.kill(server.engine, signal.SIGKILL)
    until(lambda: "2 times in a row" in why(server), "it has failed to start")
    reason = why(server)
    assert "there is no file" in reason
    assert str(picky_model.parent) not in reason
    assert str(picky_model) in server.stderr
    assert server.ask("/v2/health/live")[0] == 200
    status, body = server.infer("picky", i=[2])
    assert status == 503
    assert "in a row" in body["reason"]
    assert server.ask("/v2/models/stats")[0] == 503
    assert server.ask("/v2/models/picky/ready")[0] == 503
    assert "cotenant_engine_up 0\n" in server.ask("/metrics")[1]
    aside.rename(picky_model)
    until(lambda: ready(server), "it serves again")
    assert server.infer("picky", i=[2])[1]["outputs"][0]["data"] == [2.0]


def test_an_engine_that_hangs_is_killed_and_one_that_is_signalled_goes_on(
    serve: Serve, config: Config
) -> None:
    server = serve(config(f"[server]\nengine_silence_s = 2\n{ECHO}")).ready()
    engine = server.engine
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(engine, number)  # as a terminal or a service manager does with all processes
    assert server.infer("echo", input=ONES)[0] == 200
    os.kill(engine, signal.SIGSTOP)
    status, body = server.infer("echo", input=ONES)
    assert status == 503
    assert "not available" in body["reason"]
    until(lambda: "did not answer" in server.stderr, "the operator is told")
    until(lambda: ready(server), "it serves again")
    assert server.engine != engine


def test_when_the_front_end_is_killed_the_engine_ends_too(serve: Serve, config: Config) -> None:
    server = serve(config(f"[server]\nhttp_workers = 2\n{ECHO}")).ready()
    others = [server.engine, *server.children("front")]
    assert len(others) == 2
    server.signal(signal.SIGKILL)
    server.ended()
    until(lambda: all(map(is_gone, others)), "the others have ended")


def test_several_front_ends_serve_one_engine_and_one_that_is_killed_comes_back(
    serve: Serve, config: Config
) -> None:
    server = serve(config(f"[server]\nallow_model_control = true\n{ECHO}"), "--http-workers", "2").ready()
    (further,) = server.children("front")

    def ids(n: int) -> list[str]:
        """Of requests on as many connections."""
        found = []
        for _ in range(n):
            with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)) as connection:
                connection.request("POST", "/v2/models/echo/infer", BODY)
                answer = connection.getresponse()
                assert answer.read()
                assert answer.status == 200
                found.append(str(answer.headers["x-request-id"]))
        return found

    first = ids(60)
    assert len(set(first)) == 60
    assert {name.split("-")[1] for name in first} == {f"{server.child.pid:x}", f"{further:x}"}
    explained = [server.ask(f"/v2/requests/{name}") for name in first]
    assert all(status == 200 and body["outcome"] == "ok" for status, body in explained)
    stats = [server.ask("/v2/models/echo/stats")[1]["model_stats"][0] for _ in range(20)]
    assert {entry["inference_count"] for entry in stats} == {60}
    pages = [server.ask("/metrics")[1] for _ in range(20)]
    counted = r'cotenant_requests_total\{model="echo",outcome="ok",.*\} 60\.0\n'
    assert all(re.search(counted, page) for page in pages)
    assert server.ask("/v2/repository/models/echo/unload", {})[0] == 200
    until(lambda: all(server.infer("echo", input=ONES)[0] == 503 for _ in range(20)), "none has it")
    assert server.ask("/v2/repository/models/echo/load", {})[0] == 200
    until(lambda: all(server.infer("echo", input=ONES)[0] == 200 for _ in range(20)), "all have it")
    os.kill(further, signal.SIGKILL)
    until(lambda: server.children("front") not in ([], [further]), "another front end")
    assert len(set(ids(40))) == 40
    os.kill(server.engine, signal.SIGKILL)
    until(lambda: "SIGKILL" in why(server), "it is told")
    assert {server.infer("echo", input=ONES)[0] for _ in range(20)} == {503}
    until(lambda: all(ready(server) for _ in range(20)), "all serve again")
    assert len(set(ids(40))) == 40
    server.signal(signal.SIGTERM)
    assert server.ended() == 0
    assert "Traceback" not in server.stderr


def test_told_twice_to_stop_a_server_does_not_wait_for_what_was_admitted(
    serve: Serve, config: Config, slow_model: Path
) -> None:
    model = f'[[model]]\nname = "slow"\nsource = "{slow_model.name}"\nmax_batch = 1\n'
    server = serve(config(f"[server]\ndrain_s = 1000\n[device]\nlanes = 1\n{model}")).ready()
    with ThreadPoolExecutor(80) as pool:
        asked = [pool.submit(server.infer, "slow", x=[1.0] * 4) for _ in range(80)]
        until(lambda: server.ask("/v2/models/slow/stats")[1]["model_stats"][0]["execution_count"], "it runs")
        server.signal(signal.SIGTERM)
        until(lambda: "draining" in why(server), "it drains")
        time.sleep(0.6)
        server.signal(signal.SIGINT)
        assert server.ended() == 0
        answers = Counter(future.result()[0] for future in asked if future.exception() is None)
    assert answers[503] > 0
    assert "Traceback" not in server.stderr


def test_the_engine_can_stay_in_the_front_ends_process(serve: Serve, config: Config) -> None:
    server = serve(config(ECHO), "--in-process").ready()
    assert server.engine == 0
    assert server.infer("echo", input=ONES)[0] == 200
    server.signal(signal.SIGTERM)
    assert server.ended() == 0

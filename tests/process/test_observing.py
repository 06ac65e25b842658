"""What an operator can find out about requests: explanations, when the server is down too, and logs."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from server_process import Process

ECHO = '[[model]]\nname = "echo"\nsource = "zoo:echo"\nslo_ms = 1000\nmax_batch = 4\n'
BODY = {"inputs": [{"name": "input", "shape": [1, 16], "datatype": "FP32", "data": [0.5] * 16}]}

Serve = Callable[..., Process]
Config = Callable[[str], Path]


def ask(server: Process, body: Any = BODY, model: str = "echo", **headers: str) -> tuple[int, str]:
    """(status, request id) of an infer request."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("POST", f"/v2/models/{model}/infer", json.dumps(body), named)
        answer = connection.getresponse()
        answer.read()
        return answer.status, answer.headers["x-request-id"]
    finally:
        connection.close()


def explain(request_id: str, port: int, *more: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cotenant", "explain", request_id, "--url", f"http://127.0.0.1:{port}"]
    return subprocess.run([*command, *map(str, more)], capture_output=True, text=True, timeout=60)


def stopped(server: Process) -> list[str]:
    """Lines of the log of a server that is told to stop."""
    server.signal(signal.SIGTERM)
    assert server.ended() == 0
    return server.stderr.splitlines()


# --- explain ----------------------------------------------------------------------------------------------


def test_explain_tells_people_a_sentence_and_scripts_all_there_is(
    serve: Serve, config: Config, tmp_path: Path
) -> None:
    server = serve(config(ECHO)).ready()
    status, request_id = ask(server)
    assert status == 200
    done = explain(request_id, server.port, "--json", tmp_path / "told.json")
    assert done.returncode == 0, done.stderr
    first, *table = done.stdout.splitlines()
    assert first.startswith(f"{request_id} echo: answered after ")
    assert "before its deadline" in first
    assert {"received", "waited", "ran", "answered"} <= {line.split()[0] for line in table if line.strip()}
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["outcome"] == "ok"
    assert told["answer_ms"] > 0
    assert told["read_ms"] > 0
    assert told["decision"]["why"]
    assert set(told["predicted"]) == {"0.5", "0.9", "0.95", "0.99", "slo"}


def test_what_is_not_known_is_said_so(serve: Serve, config: Config, tmp_path: Path) -> None:
    server = serve(config(ECHO)).ready()
    status, body = server.ask("/v2/requests/nobody")
    assert status == 404
    assert "x-request-id" in body["error"]
    done = explain("nobody", server.port, "--store", tmp_path / "store")
    assert done.returncode == 2
    assert "no request 'nobody' is known" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_slow_request_is_explained_when_the_server_is_down(
    serve: Serve, config: Config, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    server = serve(config(ECHO), store=store).ready()
    status, refused = ask(server, x_slo_ms="0.001")
    assert status == 429
    log = stopped(server)
    assert any("request.slow refused after" in line and f"request_id={refused}" in line for line in log)
    done = explain(refused, server.port, "--store", store)
    assert done.returncode == 0, done.stderr
    assert "refused after" in done.stdout
    gone = explain("f-1", server.port, "--store", store)
    assert gone.returncode == 2
    assert "cannot be asked" in gone.stderr
    assert "slow.sqlite holds nothing of it" in " ".join(gone.stderr.split())


# --- logs -------------------------------------------------------------------------------------------------


def test_a_failing_model_is_logged_with_what_its_clients_are_not_told(
    serve: Serve, config: Config, picky_model: Path
) -> None:
    settings = '[server]\nlog_format = "json"\n'
    model = f'[[model]]\nname = "picky"\nsource = "{picky_model.name}"\nmax_batch = 1\n'
    server = serve(config(settings + model)).ready()
    bad = {"inputs": [{"name": "i", "shape": [1, 1], "datatype": "INT64", "data": [77]}]}
    status, request_id = ask(server, bad, "picky")
    assert status == 500
    _, told = server.ask(f"/v2/requests/{request_id}")
    assert told["reason"] == "execution failed"
    lines = [json.loads(line) for line in stopped(server)]
    assert [line["event"] for line in lines if line["event"].startswith("server.")] == [
        "server.ready",
        "server.draining",
        "server.stopped",
    ]
    (failed,) = [line for line in lines if line["event"] == "run.failed"]
    assert failed["level"] == "error"
    assert failed["request_id"] == request_id
    assert failed["model"] == "picky"
    assert "Gather" in failed["message"]


def test_answered_requests_are_logged_only_when_that_is_wanted(serve: Serve, config: Config) -> None:
    quiet = serve(config(ECHO)).ready()
    ask(quiet)
    assert not any("http.request" in line for line in stopped(quiet))
    server = serve(config(f"[server]\naccess_log = true\n{ECHO}")).ready()
    status, request_id = ask(server)
    assert server.ask("/v2/models?api_key=hunter2")[0] == 200
    lines = [line for line in stopped(server) if " http.request " in line]
    assert len(lines) == 2
    assert f"POST /v2/models/echo/infer {status}" in lines[0]
    assert f"request_id={request_id}" in lines[0]
    assert "hunter2" not in server.stderr


def test_the_level_is_kept(serve: Serve, config: Config) -> None:
    server = serve(config(f'[server]\nlog_level = "error"\n{ECHO}')).ready()
    ask(server, x_slo_ms="0.001")
    assert stopped(server) == []


def test_traces_that_cannot_be_had_are_told_and_the_server_serves_without(
    serve: Serve, config: Config, monkeypatch: Any
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "nobody-has-this")
    server = serve(config(ECHO)).ready()
    assert ask(server)[0] == 200
    (line,) = [line for line in stopped(server) if "tracing.off" in line]
    assert "no traces: the OTEL_* variables ask for" in line

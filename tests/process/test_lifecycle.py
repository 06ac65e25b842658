"""A real server told to reload: serving goes on, and the service manager knows."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from server_process import Process

ECHO = '[[model]]\nname = "echo"\nsource = "zoo:echo"\nslo_ms = {slo}\nmax_batch = 4\n'
OTHER = '[[model]]\nname = "other"\nsource = "zoo:mobilenet"\nslo_ms = 2000\nmax_batch = 2\n'
ONES = [0.5] * 16

Serve = Callable[..., Process]
Config = Callable[[str], Path]


def until(condition: Callable[[], bool], what: str) -> None:
    give_up = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < give_up, f"never happened: {what}"
        time.sleep(0.02)


def slo_ms(server: Process) -> float:
    return server.ask("/v2/models/echo")[1]["parameters"]["slo_ms"]


def test_sighup_puts_a_new_configuration_into_effect_and_no_request_fails(
    serve: Serve, config: Config
) -> None:
    path = config(ECHO.format(slo=1000))
    server = serve(path).ready()
    going, statuses = threading.Event(), []

    def load() -> None:
        while not going.is_set():
            statuses.append(server.infer("echo", input=ONES)[0])
            statuses.append(server.ask("/v2/health/ready")[0])

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        path.write_text(ECHO.format(slo=800) + OTHER)
        server.signal(signal.SIGHUP)
        until(lambda: server.ask("/v2/models/other/ready")[0] == 200, "the new model is served")
        assert slo_ms(server) == 800
        path.write_text(ECHO.format(slo=800))
        server.signal(signal.SIGHUP)
        until(lambda: server.ask("/v2/models/other")[0] == 404, "the model is gone")
        path.write_text(ECHO.format(slo=700) + "max_bach = 3\n")
        server.signal(signal.SIGHUP)
        until(lambda: "max_bach" in server.stderr, "the bad file is told of")
        assert slo_ms(server) == 800
    finally:
        going.set()
        for thread in threads:
            thread.join()
    assert len(statuses) > 20
    assert set(statuses) == {200}
    assert "nothing was changed" in server.stderr
    assert "Traceback" not in server.stderr
    server.signal(signal.SIGTERM)
    assert server.ended() == 0


def test_the_service_manager_is_told_of_every_state(
    serve: Serve, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        server = serve(config(ECHO.format(slo=1000))).ready()
        assert manager.recv(200) == b"READY=1"
        server.signal(signal.SIGHUP)
        assert manager.recv(200).startswith(b"RELOADING=1\n")
        assert manager.recv(200) == b"READY=1"
        server.signal(signal.SIGTERM)
        assert manager.recv(200) == b"STOPPING=1"
        assert server.ended() == 0


def test_before_it_is_ready_sigterm_ends_it_at_once_and_sighup_does_nothing(
    serve: Serve, config: Config, tmp_path: Path
) -> None:
    (tmp_path / "slow.py").write_text(
        "import sys, time\nsys.stderr.write('loading\\n')\nsys.stderr.flush()\ntime.sleep(60)\n"
    )
    text = '[server]\nallow_code = true\n[[model]]\nname = "slow"\nsource = "slow:model"\n'
    server = serve(config(text))
    until(lambda: "loading" in server.stderr, "it loads")
    server.signal(signal.SIGHUP)
    server.signal(signal.SIGTERM)
    assert server.ended() == 0
    assert "Traceback" not in server.stderr


def test_check_is_a_command_that_a_deployment_can_rely_on(config: Config, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cotenant", "check"]
    good = config(ECHO.format(slo=1000))
    done = subprocess.run([*command, str(good), "--store", str(tmp_path)], capture_output=True, text=True)
    assert (done.returncode, "1 models, nothing wrong" in done.stdout) == (0, True)
    good.write_text(ECHO.format(slo="'soon'"))
    done = subprocess.run([*command, str(good), "--store", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 1
    assert f"{good}:4: " in done.stderr
    assert "Traceback" not in done.stderr

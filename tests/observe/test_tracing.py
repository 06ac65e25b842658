"""Traces are made when the standard variables ask for them, and cost no import when they do not."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import pytest

from cotenant.clock import MonotonicClock
from cotenant.telemetry.tracing import TracingError, open_tracing, wanted

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / "requirements" / "otel.txt"
FOLDER = ROOT / ".venv-otel"
REQUIRED = "COTENANT_REQUIRE_OTEL"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CHECK = Path(__file__).with_name("otel_check.py")


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "x"}, False),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, False),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_TRACES_EXPORTER": "otlp"}, False),
        ({"OTEL_TRACES_EXPORTER": "console"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, True),
    ],
)
def test_the_standard_variables_say_whether_traces_are_wanted(
    environ: dict[str, str], expected: bool
) -> None:
    assert wanted(environ) is expected


def test_nothing_of_opentelemetry_is_imported_unless_it_is_wanted() -> None:
    code = (
        "import sys, cotenant.host\n"
        "from cotenant.telemetry.tracing import open_tracing\n"
        "assert open_tracing({}, None, None) is None\n"
        "assert not any(name.startswith('opentelemetry') for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_without_the_extra_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(TracingError, match=r"pip install 'cotenant\[otel\]'"):
        open_tracing({"OTEL_TRACES_EXPORTER": "otlp"}, MonotonicClock(), lambda call_id: None)


# --- with OpenTelemetry, which the tests install in a folder of their own ----------------------------------


def give_up(reason: str) -> None:
    if os.environ.get(REQUIRED) == "1":
        pytest.fail(f"{reason}, and {REQUIRED}=1")
    pytest.skip(reason)


@pytest.fixture(scope="module")
def with_otel() -> dict[str, str]:
    """An environment in which Python finds OpenTelemetry, made once per content of the requirements."""
    stamp = FOLDER / "installed"
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(FOLDER, ignore_errors=True)
        install = ["install", "--quiet", "--no-deps", "--target", str(FOLDER), "-r", str(REQUIREMENTS)]
        try:
            done = subprocess.run(
                [sys.executable, "-m", "pip", *install], capture_output=True, text=True, timeout=300
            )
        except (OSError, subprocess.SubprocessError) as error:
            give_up(f"OpenTelemetry cannot be installed: {error}")
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            give_up(f"OpenTelemetry cannot be installed: {last}")
        stamp.write_text(wanted)
    path = os.pathsep.join([str(ROOT / "src"), str(FOLDER)])
    quiet = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    return {**quiet, "PYTHONPATH": path}


def run(code: list[str], environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *code], env=environ, capture_output=True, text=True, timeout=120)


def test_requests_of_a_real_server_become_spans_with_their_wait_and_their_run(
    with_otel: dict[str, str], tmp_path: Path
) -> None:
    done = run([str(CHECK), str(tmp_path)], with_otel)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("all ")


OPEN = (
    "import os, asyncio\n"
    "from cotenant.clock import MonotonicClock\n"
    "from cotenant.telemetry.tracing import TracingError, open_tracing\n"
    "try:\n"
    "    tracing = open_tracing(os.environ, MonotonicClock(), lambda call_id: None)\n"
    "except TracingError as error:\n"
    "    print(error)\n"
    "else:\n"
    "    async def main():\n"
    "        trace = tracing.begin('infer m', None, MonotonicClock.now(), {'a': 1})\n"
    "        trace.end(None, MonotonicClock.now(), {'b': 2})\n"
    "        await tracing.close()\n"
    "    asyncio.run(main())\n"
)


def test_exporter_and_resource_come_from_the_standard_variables(with_otel: dict[str, str]) -> None:
    done = run(["-c", OPEN], {**with_otel, "OTEL_TRACES_EXPORTER": "console"})
    assert '"name": "infer m"' in done.stdout, done.stderr
    assert '"service.name": "cotenant"' in done.stdout
    named = {**with_otel, "OTEL_TRACES_EXPORTER": "console", "OTEL_SERVICE_NAME": "mine"}
    assert '"service.name": "mine"' in run(["-c", OPEN], named).stdout


def test_the_standard_sampler_is_honoured(with_otel: dict[str, str]) -> None:
    never = {**with_otel, "OTEL_TRACES_EXPORTER": "console", "OTEL_TRACES_SAMPLER": "parentbased_always_off"}
    done = run(["-c", OPEN], never)
    assert done.returncode == 0, done.stderr
    assert "infer m" not in done.stdout


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"OTEL_TRACES_EXPORTER": "jaeger"}, "'jaeger', which is not installed"),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "carrier-pigeon"}, "http/protobuf"),
    ],
)
def test_an_exporter_that_cannot_be_had_is_named(
    with_otel: dict[str, str], more: dict[str, str], word: str
) -> None:
    assert word in run(["-c", OPEN], {**with_otel, **more}).stdout


# --- to a collector ---------------------------------------------------------------------------------------


class Collector:
    """Takes what is exported over OTLP/HTTP."""

    def __init__(self) -> None:
        bodies = self.bodies = queue.Queue[bytes]()

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.path == "/v1/traces":
                    bodies.put(gzip.decompress(body) if self.headers["content-encoding"] == "gzip" else body)
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def test_a_server_exports_to_the_collector_that_the_variables_name(
    with_otel: dict[str, str], tmp_path: Path
) -> None:
    collector = Collector()
    (tmp_path / "server.toml").write_text('[[model]]\nname = "echo"\nsource = "zoo:echo"\nslo_ms = 1000\n')
    command = ["-m", "cotenant", "serve", str(tmp_path / "server.toml"), "--http-port", "0"]
    server = subprocess.Popen(
        [sys.executable, *command, "--store", str(tmp_path / "store")],
        env={**with_otel, "OTEL_EXPORTER_OTLP_ENDPOINT": collector.address},
        stdout=subprocess.PIPE,
        text=True,
    )
    too_slow = threading.Timer(60.0, server.kill)
    too_slow.start()
    try:
        assert server.stdout is not None
        address = server.stdout.readline().strip().removeprefix("ready ")
        tensor = {"name": "input", "shape": [1, 16], "datatype": "FP32", "data": [0.5] * 16}
        request = urllib.request.Request(
            f"{address}/v2/models/echo/infer",
            json.dumps({"inputs": [tensor]}).encode(),
            {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert answer.headers["traceparent"].startswith(f"00-{TRACE}-")
        server.terminate()
        assert server.wait(30) == 0
    finally:
        too_slow.cancel()
        server.kill()
        server.communicate()
        collector.close()
    exported = collector.bodies.get(timeout=10)
    assert bytes.fromhex(TRACE) in exported
    for word in (b"infer echo", b"queue", b"run", b"cotenant.slowdown", b"service.name"):
        assert word in exported

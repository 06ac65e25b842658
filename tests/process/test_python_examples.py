"""The programs of `examples/python`, run as a reader would."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import cotenant

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "python"
LIMIT_S = 90


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Profiles and learned state go elsewhere."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def mixed(environment: None) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The running program `mixed.py` and its address."""
    child = subprocess.Popen(
        [sys.executable, str(EXAMPLES / "mixed.py"), "0"], stdout=subprocess.PIPE, text=True
    )
    lines: queue.Queue[str] = queue.Queue()
    assert child.stdout is not None
    reader = threading.Thread(target=lambda: [lines.put(line) for line in child.stdout], daemon=True)
    reader.start()
    line = lines.get(timeout=LIMIT_S)
    assert line.startswith("ready http://127.0.0.1:")
    yield child, line.split()[1]
    if child.poll() is None:
        os.kill(child.pid, signal.SIGKILL)
        child.wait(LIMIT_S)
    reader.join(LIMIT_S)
    child.stdout.close()


def ran(name: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments], capture_output=True, text=True, timeout=LIMIT_S
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_hello_is_short_and_prints_what_it_says(environment: None) -> None:
    assert ran("hello.py") == "[[2. 4. 6.]]\n"
    assert len((EXAMPLES / "hello.py").read_text().splitlines()) <= 16


def test_mixed_serves_every_model_and_the_client_tells_how_requests_end(
    mixed: tuple[subprocess.Popen[str], str],
) -> None:
    child, url = mixed
    first, second, third = ran("deadlines.py", url).splitlines()
    assert first.startswith(("0.01 ms: refused at once", "0.01 ms: expired"))
    assert second.startswith("1000 ms: best ")
    assert third == "20 of 20 in time"
    with cotenant.Client(url) as client:
        found = client.infer("labels", {"logits": np.array([[0, 3, 1, 2], [5, 0, 0, 0]], np.float32)})
        assert [word.decode() for word in found["word"]] == ["dog", "cat"]
        assert set(client.get("/v2/models")["models"]) == {"labels", "rerank", "mobilenet", "echo"}
        assert client.get("/v2/models/mobilenet")["parameters"]["class"] == "protected"
    child.send_signal(signal.SIGTERM)
    assert child.wait(LIMIT_S) == 0

"""The stock `tritonclient[http]`, unmodified and in an environment of its own, works against the server."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / "requirements" / "tritonclient.txt"
ENVIRONMENT = ROOT / ".venv-triton"
REQUIRED = "COTENANT_REQUIRE_TRITONCLIENT"
CHECK = Path(__file__).with_name("triton_client_check.py")
START_LIMIT_S = 90

CONFIG = """
[[model]]
name = "echo"
source = "zoo:echo"
slo_ms = 1000
max_batch = 8
"""


def give_up(reason: str) -> None:
    if os.environ.get(REQUIRED) == "1":
        pytest.fail(f"{reason}, and {REQUIRED}=1")
    pytest.skip(reason)


@pytest.fixture(scope="module")
def client_python() -> Path:
    """The interpreter of an environment with tritonclient, made once per content of the requirements."""
    python = ENVIRONMENT / "bin" / "python"
    stamp = ENVIRONMENT / "installed"
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    shutil.rmtree(ENVIRONMENT, ignore_errors=True)
    try:
        venv.create(ENVIRONMENT, with_pip=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "-r", str(REQUIREMENTS)]
        done = subprocess.run(install, capture_output=True, text=True, timeout=300)
    except (OSError, subprocess.SubprocessError) as error:
        give_up(f"no environment for tritonclient: {error}")
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        give_up(f"tritonclient cannot be installed: {last}")
    stamp.write_text(wanted)
    return python


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """HOST:PORT of a real `cotenant serve`."""
    config = tmp_path / "config.toml"
    config.write_text(CONFIG)
    command = [Path(sys.executable).with_name("cotenant"), "serve", config, "--http-port", "0"]
    with (tmp_path / "stderr").open("w+") as stderr:
        server = subprocess.Popen(
            [*map(str, command), "--store", str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
        too_slow = threading.Timer(START_LIMIT_S, server.kill)
        too_slow.start()
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            too_slow.cancel()
            stderr.seek(0)
            assert line.startswith("ready http://"), f"{line!r}\n{stderr.read()}"
            yield line.split("//")[1].strip().rstrip("/")
        finally:
            too_slow.cancel()
            server.send_signal(signal.SIGTERM)
            try:
                server.communicate(timeout=20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.communicate()


def test_the_stock_tritonclient_works_unmodified(client_python: Path, address: str) -> None:
    done = subprocess.run(
        [str(client_python), str(CHECK), address], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("all ")

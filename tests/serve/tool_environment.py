"""Environments of their own for tools that test a server from outside, and a real server for them to test."""

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
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
START_LIMIT_S = 90


def tool_python(name: str, requirements: Path, required: str) -> Path:
    """The interpreter of the environment `.venv-NAME`, made once per content of the requirements. Where it
    cannot be made the test is skipped, or fails when the environment variable `required` is 1."""
    environment = ROOT / f".venv-{name}"
    python = environment / "bin" / "python"
    stamp = environment / "installed"
    wanted = hashlib.sha256(requirements.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    shutil.rmtree(environment, ignore_errors=True)
    try:
        venv.create(environment, with_pip=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "-r", str(requirements)]
        done = subprocess.run(install, capture_output=True, text=True, timeout=600)
    except (OSError, subprocess.SubprocessError) as error:
        _give_up(f"no environment for {name}: {error}", required)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        _give_up(f"{name} cannot be installed: {last}", required)
    stamp.write_text(wanted)
    return python


def _give_up(reason: str, required: str) -> None:
    if os.environ.get(required) == "1":
        pytest.fail(f"{reason}, and {required}=1")
    pytest.skip(reason)


@contextmanager
def real_server(config: str, folder: Path) -> Iterator[str]:
    """HOST:PORT of a real `cotenant serve` with this configuration."""
    path = folder / "config.toml"
    path.write_text(config)
    command = [sys.executable, "-m", "cotenant", "serve", str(path), "--http-port", "0"]
    with (folder / "stderr").open("w+") as stderr:
        server = subprocess.Popen(
            [*command, "--store", str(folder / "store")], stdout=subprocess.PIPE, stderr=stderr, text=True
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

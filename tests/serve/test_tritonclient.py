"""The stock `tritonclient[http]`, unmodified and in an environment of its own, works against the server."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tool_environment import ROOT, real_server, tool_python

from cotenant import zoo

REQUIREMENTS = ROOT / "requirements" / "tritonclient.txt"
CHECK = Path(__file__).with_name("triton_client_check.py")

CONFIG = """
[server]
shared_memory = true

[[model]]
name = "echo"
source = "zoo:echo"
slo_ms = 1000
max_batch = 8
labels = "labels.txt"

[repository]
path = "models"
mode = "explicit"
"""
LABELS = "".join(f"{n}\n" for n in (*range(15), "fifteen"))


@pytest.fixture(scope="module")
def client_python() -> Path:
    return tool_python("triton", REQUIREMENTS, "COTENANT_REQUIRE_TRITONCLIENT")


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """HOST:PORT of a real `cotenant serve`."""
    (tmp_path / "labels.txt").write_text(LABELS)
    echo = zoo.build("echo").SerializeToString()
    for version in ("1", "2"):
        folder = tmp_path / "models" / "late" / version
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(echo)
    (tmp_path / "models" / "late" / "config.toml").write_text('versions = "all"\n')
    with real_server(CONFIG, tmp_path) as found:
        yield found


def test_the_stock_tritonclient_works_unmodified(client_python: Path, address: str) -> None:
    done = subprocess.run(
        [str(client_python), str(CHECK), address], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("all ")

"""KServe's Python client, unmodified and in an environment of its own, works against the server."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from tool_environment import ROOT, real_server, tool_python

CHECK = Path(__file__).with_name("kserve_client_check.py")
CONFIG = '[[model]]\nname = "echo"\nsource = "zoo:echo"\nslo_ms = 1000\nmax_batch = 8\n'


@pytest.mark.slow
def test_kserves_client_works_unmodified(tmp_path: Path) -> None:
    python = tool_python("kserve", ROOT / "requirements" / "kserve.txt", "COTENANT_REQUIRE_KSERVE")
    with real_server(CONFIG, tmp_path) as address:
        done = subprocess.run([str(python), str(CHECK), address], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "all checks passed"

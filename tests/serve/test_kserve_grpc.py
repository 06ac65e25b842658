"""KServe's gRPC client, unmodified and in an environment of its own, works against the server."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from grpc_serving import GrpcServer, mirror, vector
from tool_environment import ROOT, tool_python

from cotenant.testing import ECHO

CHECK = Path(__file__).with_name("kserve_grpc_check.py")


@pytest.mark.slow
def test_kserves_grpc_client_works_unmodified(serve_grpc: Callable[..., GrpcServer]) -> None:
    python = tool_python("kserve", ROOT / "requirements" / "kserve.txt", "COTENANT_REQUIRE_KSERVE")
    server = serve_grpc(None, ECHO, mirror("strings", vector("BYTES")))
    address = f"127.0.0.1:{server.port}"
    done = subprocess.run([str(python), str(CHECK), address], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "all checks passed"

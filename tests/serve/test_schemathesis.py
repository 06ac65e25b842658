"""Schemathesis asks a real server everything that the OpenAPI document allows, and what it does not.

It runs in an environment of its own. Half the run asks for any model and region, half for one that is there.
"""

from __future__ import annotations

import json
import os
import subprocess
import urllib.request
from pathlib import Path

import pytest
from tool_environment import ROOT, real_server, tool_python

REQUIREMENTS = ROOT / "requirements" / "schemathesis.txt"
CONFIG = """
[server]
allow_model_control = true
shared_memory = true

[[model]]
name = "echo"
source = "zoo:echo"
max_batch = 8
"""
KNOWN = '[parameters]\n"path.model" = "echo"\n"path.version" = "1"\n"path.region" = "r"\n'
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "allow_header_conformance",
)
"""Not among them: that what fits the schema is accepted. What a model takes is no matter of the schema."""


@pytest.fixture(scope="module")
def python() -> Path:
    return tool_python("schemathesis", REQUIREMENTS, "COTENANT_REQUIRE_SCHEMATHESIS")


@pytest.mark.slow
@pytest.mark.parametrize("parameters", ["", KNOWN], ids=["anything", "a_known_model"])
def test_no_request_gives_a_server_error_or_hangs(python: Path, tmp_path: Path, parameters: str) -> None:
    (tmp_path / "schemathesis.toml").write_text(parameters)
    with real_server(CONFIG, tmp_path) as address:
        command = [
            str(python.with_name("schemathesis")),
            "run",
            f"http://{address}/v2/openapi.json",
            f"--checks={','.join(CHECKS)}",
            "--max-examples=60",
            "--request-timeout=10",
            "--seed=1",
            "--continue-on-failure",
            "--exclude-path-regex=/unload$",
        ]
        done = subprocess.run(
            command,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=900,
            env={**os.environ, "COLUMNS": "100"},
        )
        stats = urllib.request.urlopen(f"http://{address}/v2/models/echo/stats", timeout=10).read()
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    (echo,) = json.loads(stats)["model_stats"]
    assert not parameters or echo["inference_count"] > 0, "no request came as far as the model"

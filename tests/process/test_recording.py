"""What real processes record of their co-runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from server_process import Process

from cotenant.experiment.datasets import read_dataset

CONFIG = """
[device]
lanes = 2
[[model]]
name = "echo"
source = "zoo:echo"
slo_ms = 1000
max_batch = 2
[[model]]
name = "copy"
source = "zoo:echo"
slo_ms = 1000
max_batch = 1
"""
N_CALLS = 60


def call(server: Process) -> None:
    with ThreadPoolExecutor(4) as pool:
        names = ["echo", "copy"] * (N_CALLS // 2)
        assert all(
            answer[0] == 200 for answer in pool.map(lambda m: server.infer(m, input=[0.5] * 16), names)
        )


def n_dispatches(server: Process) -> int:
    _, stats = server.ask("/v2/models/stats")
    return sum(entry["execution_count"] for entry in stats["model_stats"])


def test_a_server_records_every_dispatch_and_writes_the_rest_when_told_to_stop(
    serve: Callable[..., Process], config: Callable[[str], Path], tmp_path: Path
) -> None:
    server = serve(config(CONFIG), "--record", tmp_path / "recording" / "mine").ready()
    call(server)
    n = n_dispatches(server)
    server.signal(signal.SIGTERM)
    assert server.ended() == 0
    found = read_dataset(tmp_path / "recording" / "mine-00001")
    assert found.n == n > 0
    assert {entry.variant.label for entry in found.features} == {"echo[1]", "echo[2]", "copy[1]"}
    assert all(row.lane in (0, 1) for rows in found.runs.values() for row in rows)


def test_by_default_a_server_records_to_its_store_and_with_no_space_allowed_nowhere(
    serve: Callable[..., Process], config: Callable[[str], Path], tmp_path: Path
) -> None:
    for store, flags in (("default", ()), ("none", ("--record-mb", "0"))):
        server = serve(config(CONFIG), *flags, store=tmp_path / store).ready()
        call(server)
        server.signal(signal.SIGTERM)
        assert server.ended() == 0
    assert read_dataset(tmp_path / "default" / "coruns" / "live" / "server-00001").n > 0
    assert not (tmp_path / "none" / "coruns").exists()


def test_serving_goes_on_where_nothing_can_be_recorded(
    serve: Callable[..., Process], config: Callable[[str], Path], tmp_path: Path
) -> None:
    (tmp_path / "taken").write_text("not a folder")
    server = serve(config(CONFIG), "--record", tmp_path / "taken" / "base").ready()
    call(server)
    server.signal(signal.SIGTERM)
    assert server.ended() == 0
    assert server.stderr.count("not recorded") == 1
    assert "Traceback" not in server.stderr


def test_profile_corun_records_a_data_set_and_continues_it(
    config: Callable[[str], Path], tmp_path: Path
) -> None:
    base = tmp_path / "out" / "corun"
    command = [
        sys.executable, "-m", "cotenant", "profile", str(config(CONFIG)), "--corun", "--no-probe",
        "--record", str(base), "--seconds", "1", "--store", str(tmp_path / "store"),
    ]  # fmt: skip
    sizes = []
    for _ in range(2):
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=120, check=False,
            env={**os.environ, "PYTHONFAULTHANDLER": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "slowdown median" in " ".join(done.stdout.split())
        sizes.append(read_dataset(base).n)
    assert 0 < sizes[0] < sizes[1]
    assert {run.partition("-")[0] for run in read_dataset(base).runs} == {"mix", "noise"}

"""Memory that models take is given back when they are unloaded."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

PROGRAM = """
import json, sys
from pathlib import Path
sys.path.insert(0, {helpers!r})
from scaled_models import write_model
from cotenant.clock import MonotonicClock
from cotenant.domain import Maintain
from cotenant.execute.lanes import lane_layout
from cotenant.execute.memory import give_back, resident_bytes
from cotenant.execute.model import ModelSettings
from cotenant.execute.onnx import OnnxExecutor
from cotenant.execute.onnx_model import inspect
from queue import Queue

folder = Path({folder!r})
paths = {{f"m{{i}}": write_model(folder, f"m{{i}}", 1, 2.0, n_weights=8 << 20) for i in range(4)}}


class Files:
    def find(self, name):
        return inspect(paths[name], ModelSettings(name=name, max_batch=2)), paths[name]

    def profiled(self, metadata, path, run):
        for variant in metadata.spec.variants():
            run(variant)
        return metadata, ()


events = Queue()
executor = OnnxExecutor(MonotonicClock(), lane_layout(1, 1), Files())
executor.attach(events.put)


def do(kind):
    for name in paths:
        executor.maintain(Maintain(id=0, kind=kind, model=name))
        assert events.get(timeout=60).error is None


for _ in range(2):  # what the first times take for good: the runtime's own
    do("load")
    do("unload")
found = []
for _ in range(5):
    before = resident_bytes()
    do("load")
    loaded = resident_bytes()
    do("unload")
    found.append([before, loaded, resident_bytes()])
print(json.dumps(found))
executor.close()
"""


def test_unloading_returns_the_memory_to_within_5_percent(tmp_path_factory: pytest.TempPathFactory) -> None:
    helpers = __file__.replace("process/test_memory.py", "engine")
    program = PROGRAM.format(helpers=helpers, folder=str(tmp_path_factory.mktemp("models")))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for before, loaded, after in found:
        assert loaded - before > 4 * 30 << 20, "four models of 32 MiB were there"
        assert abs(after - before) <= 0.05 * before, found
    assert found[-1][2] <= 1.1 * found[0][0], f"it grows with every turn: {found}"

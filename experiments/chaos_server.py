"""The server under chaos: a process whose disk and wall clock can be meddled with, and whose parts killed."""

from __future__ import annotations

import mmap
import os
import resource
import signal
import struct
import subprocess
import sys
import threading
from pathlib import Path

import chaos_models

SITE = """
import mmap, os, struct, time
_real = time.time
with open(os.environ["CHAOS_CLOCK"], "r+b") as file:
    _offset = mmap.mmap(file.fileno(), 8)
time.time = lambda: _real() + struct.unpack_from("<d", _offset)[0]
"""
"""`sitecustomize` of the server: its wall clock is off by what the clock file says."""


class Server:
    """A `cotenant serve` process whose disk and wall clock can be meddled with."""

    def __init__(self, folder: Path, *, torch: bool) -> None:
        settings = "event_log = true\nheader_timeout_s = 5.0\nbody_timeout_s = 5.0"
        config = chaos_models.write(folder, settings, torch=torch)
        site = folder / "site"
        site.mkdir()
        (site / "sitecustomize.py").write_text(SITE)
        clock = folder / "clock"
        clock.write_bytes(bytes(8))
        with clock.open("r+b") as file:
            self._clock = mmap.mmap(file.fileno(), 8)
        path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH", "")]))
        self.child = subprocess.Popen(
            [
                *(sys.executable, "-m", "cotenant", "serve", str(config), "--http-port", "0"),
                *("--store", str(folder / "store")),
            ],
            env={**os.environ, "PYTHONPATH": path, "CHAOS_CLOCK": str(clock)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.child.stdout is not None
        assert self.child.stderr is not None
        self._said: list[str] = []
        self._reader = threading.Thread(target=self._said.extend, args=(self.child.stderr,), daemon=True)
        self._reader.start()
        line = self.child.stdout.readline()
        if not line.startswith("ready "):
            self.stop()
            raise SystemExit(f"the server did not start: {self.stderr()[-2000:]}")
        self.port = int(line.rpartition(":")[2])

    def stderr(self) -> str:
        """What it said; whole once it has ended."""
        if self.child.poll() is not None:
            self._reader.join(10)
        return "".join(self._said)

    def step_clock(self, offset_s: float) -> None:
        """From now on its wall clock is off by so much."""
        struct.pack_into("<d", self._clock, 0, offset_s)

    def fill_disk(self, full: bool) -> None:
        """Whether files of the server and its children can grow."""
        for pid in self.family():
            _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (1 if full else hard, hard))

    def family(self) -> list[int]:
        """The process, its children, theirs and so on."""
        found, left = [], [self.child.pid]
        while left:
            pid = left.pop()
            try:
                for task in Path(f"/proc/{pid}/task").iterdir():
                    left += map(int, (task / "children").read_text().split())
                found.append(pid)
            except OSError:
                continue
        return found

    def engine(self) -> int | None:
        """The engine's process: the child that is largest; None without a child."""
        children = [pid for pid in self.family() if pid != self.child.pid]
        return max(children, key=resident_mib, default=None)

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)
        try:
            return self.child.wait(30)
        except subprocess.TimeoutExpired:
            self.child.kill()
            return self.child.wait()


def resident_mib(pid: int) -> float:
    """Memory of one process; 0 when it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)

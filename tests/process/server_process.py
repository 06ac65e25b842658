"""A real `cotenant serve` process and a plain HTTP client of it."""

from __future__ import annotations

import http.client
import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

LIMIT_S = 60.0


class Process:
    """A server in a process of its own."""

    def __init__(self, *arguments: str | Path, store: Path) -> None:
        command = [sys.executable, "-m", "cotenant", "serve", *map(str, arguments)]
        self.child = subprocess.Popen(
            [*command, "--http-port", "0", "--store", str(store)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._errors: list[str] = []
        self._lines: queue.Queue[str] = queue.Queue()
        self._readers = [
            threading.Thread(target=self._read, args=(self.child.stdout, self._lines.put), daemon=True),
            threading.Thread(target=self._read, args=(self.child.stderr, self._errors.append), daemon=True),
        ]
        for reader in self._readers:
            reader.start()
        self.port = 0
        self.batched = True

    @staticmethod
    def _read(stream: Any, take: Callable[[str], None]) -> None:
        with stream:
            for line in stream:
                take(line)

    def ready(self) -> Process:
        until = time.monotonic() + LIMIT_S
        while time.monotonic() < until:
            try:
                line = self._lines.get(timeout=0.1)
            except queue.Empty:
                assert self.child.poll() is None, f"ended with {self.child.returncode}: {self.stderr}"
                continue
            assert line.startswith("ready http://127.0.0.1:")
            self.port = int(line.rpartition(":")[2])
            return self
        raise AssertionError("not ready in time")

    def ended(self) -> int:
        """Wait for the end; the exit status."""
        status = self.child.wait(LIMIT_S)
        for reader in self._readers:
            reader.join(5)
        return status

    @property
    def stderr(self) -> str:
        return "".join(self._errors)

    def more_stdout(self) -> str:
        """What was printed after the ready line and has not been asked for."""
        lines = []
        while not self._lines.empty():
            lines.append(self._lines.get())
        return "".join(lines)

    def signal(self, number: int) -> None:
        self.child.send_signal(number)

    def children(self, program: str) -> list[int]:
        """Process ids of the running children that run `program`, a module of the package."""
        pid = self.child.pid
        found = []
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            command = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
            if f"cotenant.{program}".encode() in command:
                found.append(int(child))
        return found

    @property
    def engine(self) -> int:
        """Process id of the engine; 0 where there is none."""
        return next(iter(self.children("engine_process")), 0)

    def ask(self, path: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        """(status, decoded body) of a GET, or of a POST when there is a body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            payload = None if body is None else json.dumps(body)
            connection.request("GET" if body is None else "POST", path, payload, headers or {})
            answer = connection.getresponse()
            text = answer.read()
            return answer.status, json.loads(text) if text[:1] in (b"{", b"[") else text.decode()
        finally:
            connection.close()

    def infer(self, model: str, **tensors: list[float] | list[int]) -> tuple[int, Any]:
        inputs = [
            {
                "name": name,
                "shape": [1, len(data)] if self.batched else [len(data)],
                "datatype": "INT64" if isinstance(data[0], int) else "FP32",
                "data": data,
            }
            for name, data in tensors.items()
        ]
        return self.ask(f"/v2/models/{model}/infer", {"inputs": inputs})

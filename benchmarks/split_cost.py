"""What it costs that the engine is a process of its own: latency and CPU of a request, against one process.

Two servers of one configuration, the engine in the process that answers HTTP and in its own, are up at the
same time and asked in turn, in short blocks: 16 echoed floats as JSON and mobilenet's 111 kB as binary, on 1
and on 8 connections, the next request as soon as the last is answered. Quoted are medians over the blocks.
CPU is that of all of a server's processes. Beside them stands the hop alone: frames to an engine in memory
and back. It does not measure capacity, nor what a crash costs.

python benchmarks/split_cost.py [--seconds 1] [--repeats 7] [--json FILE]
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from common import Row, arguments, finish, note, table
from cotenant.clock import MonotonicClock, process_cpu_s
from cotenant.domain import NS_PER_MS, NS_PER_S
from cotenant.engine_client import Call, EngineClient
from cotenant.engine_server import EngineServer
from cotenant.experiment.http_load import Pool
from cotenant.handshake import listening
from cotenant.remote_link import RemoteLink
from cotenant.testing import EchoLink

CONFIG = """
[device]
lanes = 1
[[model]]
name = "echo"
source = "zoo:echo"
slo_ms = 2000
max_batch = 8
[[model]]
name = "mobilenet"
source = "zoo:mobilenet"
slo_ms = 5000
max_batch = 1
"""
WAYS = {"in process": ["--in-process"], "split": [], "split, 2 front ends": ["--http-workers", "2"]}
CONNECTIONS = (1, 8)
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
TARGET_US = 150.0
ARENA_BYTES = 64 << 20


@contextmanager
def server(name: str, flags: list[str], folder: Path) -> Iterator[tuple[str, int]]:
    """A server; its address and process id. Profiles in `folder` are shared, what is learned is not."""
    config = folder / f"{name.replace(' ', '_')}.toml"
    config.write_text(CONFIG)
    command = [sys.executable, "-m", "cotenant", "serve", str(config), "--http-port", "0", "--record-mb", "0"]
    command += ["--policy", "fcfs"]  # nothing that waits for a larger batch
    child = subprocess.Popen([*command, "--store", str(folder), *flags], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        line = child.stdout.readline()
        if not line.startswith("ready "):
            raise RuntimeError(f"the server did not start: {line!r}")
        yield line.split()[1], child.pid
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait()


def family(pid: int) -> list[int]:
    """A process and all below it."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(one for child in children for one in family(int(child)))]


def cpu_s(pid: int) -> float:
    """CPU so far of a process and all below it (s)."""
    total = 0
    for one in family(pid):
        fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total * TICK_S


def requests(authority: bytes) -> dict[str, bytes]:
    """What is sent, by model."""
    echo = {"inputs": [{"name": "input", "shape": [1, 16], "datatype": "FP32", "data": [0.25] * 16}]}
    image = np.random.default_rng(0).random((1, 3, 96, 96), np.float32)
    tensor: dict[str, Any] = {"name": "image", "shape": image.shape, "datatype": "FP32"}
    tensor["parameters"] = {"binary_data_size": image.nbytes}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    binary = b"Inference-Header-Content-Length: %d\r\n" % len(head)
    return {
        "echo": post(authority, "echo", json.dumps(echo).encode(), b""),
        "mobilenet": post(authority, "mobilenet", head + image.tobytes(), binary),
    }


def post(authority: bytes, model: str, body: bytes, headers: bytes) -> bytes:
    return b"POST /v2/models/%b/infer HTTP/1.1\r\nHost: %b\r\n%bContent-Length: %d\r\n\r\n%b" % (
        model.encode(), authority, headers, len(body), body,
    )  # fmt: skip


async def block(url: str, model: str, n_connections: int, seconds: float) -> list[int]:
    """Ask for so long; the latency of every answer (ns)."""
    pool = Pool(url, n_connections)
    request = requests(pool.authority)[model]
    now, done = MonotonicClock.now, asyncio.Event()
    until_at = now() + int(seconds * NS_PER_S)
    spans: list[int] = []
    failed: list[int] = []
    left = n_connections

    def ask() -> None:
        began_at = 0

        def made() -> bytes:
            nonlocal began_at
            began_at = now()
            return request

        def answered(status: int, headers: dict[str, str]) -> None:
            nonlocal left
            if status == 200:
                spans.append(now() - began_at)
            else:
                failed.append(status)
            if now() < until_at and not failed:
                ask()
                return
            left -= 1
            if left == 0:
                done.set()

        pool.post(made, answered)

    for _ in range(n_connections):
        ask()
    await done.wait()
    pool.close()
    if failed:
        raise RuntimeError(f"{model} answered {failed[0]}")
    return spans


def measure(url: str, pid: int, model: str, n_connections: int, seconds: float) -> dict[str, float]:
    """p50 (us), CPU per request (us) and requests per second of one block."""
    before = cpu_s(pid)
    spans = asyncio.run(block(url, model, n_connections, seconds))
    return {
        "p50_us": float(np.median(spans)) / NS_PER_MS * 1000,
        "cpu_us": (cpu_s(pid) - before) / len(spans) * 1e6,
        "per_s": len(spans) / seconds,
    }


# --- the hop alone ----------------------------------------------------------------------------------------


def hop(seconds: float) -> list[Row]:
    """A call to an engine in memory, a process of its own, and back: no HTTP, no scheduler, no model."""
    with listening() as (listener, path):
        engine = os.fork()
        if engine == 0:
            uvloop.run(echo(listener))
        try:
            return [uvloop.run(call(path, engine, n, seconds)) for n in CONNECTIONS]
        finally:
            os.kill(engine, signal.SIGKILL)
            os.waitpid(engine, 0)


async def echo(listener: socket.socket) -> None:
    link = EchoLink()
    server = EngineServer(listener, ARENA_BYTES)
    server.serve(link)
    server.open()
    while True:
        await asyncio.sleep(0.1)
        link.calls.clear()


async def call(path: Path, engine: int, n_callers: int, seconds: float) -> Row:
    link = RemoteLink(path, ["echo"], ARENA_BYTES)
    linking = asyncio.create_task(link.run())
    client, floats, spans = EngineClient(link), np.ones((1, 16), np.float32), []
    while not client.accepting():
        await asyncio.sleep(0.01)
    until_at = client.now() + int(seconds * NS_PER_S)

    async def caller() -> None:
        while (began_at := client.now()) < until_at:
            await client.infer(
                Call(
                    id=client.new_id(), model="echo", inputs={"input": floats}, rows=1, axes=(),
                    arrived_at=began_at,
                )
            )  # fmt: skip
            spans.append(client.now() - began_at)

    before = process_cpu_s() + cpu_s(engine)
    await asyncio.gather(*(caller() for _ in range(n_callers)))
    used = process_cpu_s() + cpu_s(engine) - before
    linking.cancel()
    text = f"p50 {np.median(spans) / 1000:.0f} us, CPU {used / len(spans) * 1e6:.0f} us (both ends)"
    return Row(f"(the hop alone), {n_callers} at a time", text)


def main() -> int:
    options = arguments(__doc__, seconds=1.0, repeats=7)
    found: dict[tuple[str, int, str], list[dict[str, float]]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cotenant-split-")))
        servers = {}
        for way, flags in WAYS.items():
            note(f"starting: {way}")
            servers[way] = stack.enter_context(server(way, flags, folder))
        cases = [(model, n) for model in ("echo", "mobilenet") for n in CONNECTIONS]
        for repeat in range(options.repeats + 1):
            note(f"repeat {repeat} of {options.repeats}" if repeat else "warming up")
            for model, n in cases:
                for way in WAYS if repeat % 2 else reversed(WAYS):
                    result = measure(*servers[way], model, n, options.seconds)
                    if repeat:
                        found.setdefault((model, n, way), []).append(result)
    medians = {
        key: {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        for key, runs in found.items()
    }
    rows, facts = [], []
    for (model, n, way), figures in medians.items():
        facts.append({"model": model, "connections": n, "way": way, **figures})
        base = medians[model, n, "in process"]
        added = {name: figures[name] - base[name] for name in figures}
        text = f"p50 {figures['p50_us']:.0f} us, CPU {figures['cpu_us']:.0f} us, {figures['per_s']:.0f}/s"
        if way != "in process":
            text += f" (p50 {added['p50_us']:+.0f} us, CPU {added['cpu_us']:+.0f} us)"
        judged = way == "split" and n == 1
        met = added["p50_us"] <= TARGET_US if judged else None
        rows.append(Row(f"{model}, {n}, {way}", text, f"p50 {TARGET_US:+.0f} us" if judged else "", met))
    rows += hop(options.seconds)
    rows.sort(key=lambda row: row.name)
    table("a request through one process and through several (model, connections, way)", rows)
    return finish(options, {"runs": facts}, rows)


if __name__ == "__main__":
    raise SystemExit(main())

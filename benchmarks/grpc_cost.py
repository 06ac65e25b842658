"""Echo of 16 floats through gRPC and through HTTP, of one server: requests/s, p50 and CPU per request.

How this works. One `cotenant serve` process listens on both. A child process of this one offers load to one
of them at a time, closed loop, with so many requests always in flight: over gRPC on one channel, call by call
or on one stream, over HTTP on as many connections, with binary tensors both ways, as the stock clients send
them. They take turns over the repeats; medians are quoted, and ratios within a repeat. CPU is of the server's
processes, all threads. The model has no SLO: with one a policy may hold requests back for a larger batch.
Clients are Python here (grpc's own and a bare socket), so requests/s are what a Python client gets from a
server that shares its cores; CPU per request is the server's alone. Does not measure large tensors nor many
channels.

    python benchmarks/grpc_cost.py [--seconds 4] [--repeats 5] [--json FILE]
"""

from __future__ import annotations

import asyncio
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common import Row, arguments, finish, note, table

CONFIG = """
[[model]]
name = "echo"
source = "zoo:echo"
max_batch = 64
"""
IN_FLIGHT = (1, 8, 64)
FLOATS = np.arange(16, dtype=np.float32).reshape(1, 16) / 4
ECHO = FLOATS.tobytes()
WARM_UP_S = 0.5
PROTOCOLS = ("http", "grpc", "stream")
Ask = Callable[[], Awaitable[bytes]]


@dataclass(frozen=True)
class Address:
    """Where the server listens, and its process."""

    http: int
    grpc: int
    pid: int


# --- the client, in a process of its own ------------------------------------------------------------


def check(answer: bytes) -> None:
    """The answer must hold the echo."""
    if ECHO not in answer:
        raise RuntimeError(f"a wrong answer: {answer[:400]!r}")


async def loop(ask: Ask, spans: list[float], until: float) -> None:
    """One request after the other."""
    while time.perf_counter() < until:
        began = time.perf_counter()
        check(await ask())
        spans.append(time.perf_counter() - began)


async def http_asker(port: int) -> Ask:
    """A connection, kept alive, that sends one V2 request with a binary tensor at a time."""
    tensor = {"name": "input", "shape": [1, 16], "datatype": "FP32", "parameters": {"binary_data_size": 64}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    body = head + ECHO
    request = (
        f"POST /v2/models/echo/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        f"Inference-Header-Content-Length: {len(head)}\r\n\r\n"
    ).encode() + body
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def ask() -> bytes:
        writer.write(request)
        headers = await reader.readuntil(b"\r\n\r\n")
        length = int(headers.partition(b"\r\ncontent-length: ")[2].partition(b"\r\n")[0])
        return await reader.readexactly(length)

    return ask


def grpc_message() -> Any:
    from cotenant.serve.grpc import inference_pb2 as pb

    tensor = pb.ModelInferRequest.InferInputTensor(name="input", datatype="FP32", shape=[1, 16])
    return pb.ModelInferRequest(
        model_name="echo", inputs=[tensor], raw_input_contents=[ECHO]
    ).SerializeToString()


async def offer_http(port: int, in_flight: int, seconds: float) -> list[float]:
    askers = [await http_asker(port) for _ in range(in_flight)]
    return await together(askers, seconds)


async def offer_grpc(port: int, in_flight: int, seconds: float) -> list[float]:
    from grpc import aio

    request = grpc_message()
    async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        method = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")

        async def ask() -> bytes:
            answer: bytes = await method(request)
            return answer

        return await together([ask] * in_flight, seconds)


async def offer_stream(port: int, in_flight: int, seconds: float) -> list[float]:
    """One ModelStreamInfer; answers to equal requests are taken in their order."""
    from grpc import aio

    request = grpc_message()
    spans: list[float] = []
    async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")()
        sent: list[float] = []
        for _ in range(in_flight):
            await call.write(request)
            sent.append(time.perf_counter())
        until, n = time.perf_counter() + seconds, 0
        while time.perf_counter() < until:
            check(await call.read())
            spans.append(time.perf_counter() - sent[n])
            n += 1
            sent.append(time.perf_counter())
            await call.write(request)
        await call.done_writing()
    return spans


async def together(askers: list[Ask], seconds: float) -> list[float]:
    spans: list[float] = []
    until = time.perf_counter() + seconds
    async with asyncio.TaskGroup() as tasks:
        for ask in askers:
            tasks.create_task(loop(ask, spans, until))
    return spans


def offer(protocol: str, port: int, in_flight: int, seconds: float) -> None:
    """What the child does: load, then one line of JSON."""
    import uvloop

    offers = {"http": offer_http, "grpc": offer_grpc, "stream": offer_stream}
    uvloop.run(offers[protocol](port, in_flight, WARM_UP_S))
    print("warm", flush=True)
    sys.stdin.readline()
    began = time.perf_counter()
    spans = uvloop.run(offers[protocol](port, in_flight, seconds))
    spent = time.perf_counter() - began
    print(
        json.dumps({"n": len(spans), "seconds": spent, "p50_ms": 1e3 * statistics.median(spans)}), flush=True
    )


# --- the measurement --------------------------------------------------------------------------------


@contextmanager
def serving() -> Iterator[Address]:
    """A real server on free ports."""
    with tempfile.TemporaryDirectory(prefix="cotenant-bench-") as store:
        config = Path(store) / "echo.toml"
        config.write_text(CONFIG)
        command = [sys.executable, "-m", "cotenant", "serve", str(config), "--http-port", "0"]
        child = subprocess.Popen(
            [*command, "--grpc-port", "0", "--record-mb", "0", "--store", store],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        assert child.stderr is not None
        try:
            line = child.stderr.readline()
            while line and "grpc://" not in line:
                line = child.stderr.readline()
            ready = child.stdout.readline()
            if not ready:
                raise RuntimeError(f"the server did not start: {line}{child.stderr.read()}")
            yield Address(int(ready.rpartition(":")[2]), int(line.rpartition(":")[2]), child.pid)
        finally:
            child.send_signal(signal.SIGTERM)
            child.communicate(timeout=30)


def cpu_s(root: int) -> float:
    """User and system time of a process and all that it has started, all threads (s)."""
    spent_ns, waiting = 0, [root]
    while waiting:
        for thread in Path(f"/proc/{waiting.pop()}/task").iterdir():
            spent_ns += int((thread / "schedstat").read_text().split()[0])
            waiting += map(int, (thread / "children").read_text().split())
    return spent_ns / 1e9


def measure(protocol: str, address: Address, in_flight: int, seconds: float) -> dict[str, float]:
    """One run."""
    port = address.http if protocol == "http" else address.grpc
    command = [sys.executable, __file__, "offer", protocol, str(port), str(in_flight), str(seconds)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        if child.stdout.readline() != "warm\n":
            raise RuntimeError(f"{protocol}: the client failed")
        before = cpu_s(address.pid)
        child.stdin.write("\n")
        child.stdin.flush()
        found = json.loads(child.stdout.readline())
        spent = cpu_s(address.pid) - before
    return {
        "req_per_s": found["n"] / found["seconds"],
        "p50_ms": found["p50_ms"],
        "cpu_us": 1e6 * spent / found["n"],
    }


def main() -> int:
    """Run the benchmark."""
    options = arguments(__doc__, seconds=4.0, repeats=5)
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    with serving() as address:
        for repeat in range(options.repeats):
            for in_flight in IN_FLIGHT:
                for protocol in PROTOCOLS if repeat % 2 == 0 else PROTOCOLS[::-1]:
                    run = measure(protocol, address, in_flight, options.seconds)
                    found.setdefault((protocol, in_flight), []).append(run)
                    note(f"{repeat} {in_flight:2} {protocol:6} {run}")
    rows, facts = [], []
    for (protocol, in_flight), runs in sorted(found.items(), key=lambda entry: (entry[0][1], entry[0][0])):
        median = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        of_http = statistics.median(
            run["cpu_us"] / other["cpu_us"] for run, other in zip(runs, found["http", in_flight], strict=True)
        )
        facts.append({"protocol": protocol, "in_flight": in_flight, **median, "cpu_of_http": of_http})
        rows.append(
            Row(
                f"{protocol}, {in_flight} in flight",
                f"{median['req_per_s']:7.0f} req/s  p50 {median['p50_ms']:.2f} ms  "
                f"CPU {median['cpu_us']:.0f} us ({of_http:.2f} of HTTP)",
            )
        )
    table("Echo through gRPC and HTTP", rows)
    return finish(options, {"runs": facts}, rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["offer"]:
        offer(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5]))
    else:
        sys.exit(main())

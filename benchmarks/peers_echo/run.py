"""Echo of 16 floats through whole servers: requests/s, p50 and CPU per request, ours and three others.

Measures what a server costs when the model costs nothing: HTTP, JSON, batching, scheduling. Each server gets
its own JSON form (ours is V2) and is driven by `wrk` at 8 and 64 connections; servers take turns over the
repeats, medians are quoted. It does not measure tensors of real size, nor anything about deadlines.

    python benchmarks/peers_echo/run.py [--seconds 4] [--repeats 3] [--json FILE] [--only a,b]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from wrk import need_wrk, run_wrk  # noqa: E402

ROOT = HERE.parents[1]
PEERS = ROOT / ".venv-peers"
CONNECTIONS = (8, 64)
FLOATS = [i / 4 for i in range(16)]
START_LIMIT_S = 60.0
CANNOT_RUN = 3
TARGETS = {"mosec": 1.0, "litserve": 4.0}
"""Least ratio of our requests/s to theirs."""
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Peer:
    """One server: how to start it on a port, where to POST what, and how its answer shows the echo."""

    name: str
    command: Callable[[int], list[str]]
    path: str
    body: Any
    echo: Callable[[Any], Any]


def peers() -> list[Peer]:
    python = str(PEERS / "bin" / "python")

    def mosec(name: str, batch: int) -> Peer:
        command = [python, str(HERE / "mosec_echo.py"), "--address", "127.0.0.1", "--log-level", "error"]
        return Peer(
            name,
            lambda port: ["env", f"MOSEC_BATCH={batch}", *command, "--port", str(port)],
            "/inference",
            FLOATS,
            lambda answer: answer,
        )

    v2 = {"inputs": [{"name": "input", "shape": [1, 16], "datatype": "FP32", "data": FLOATS}]}
    store = tempfile.mkdtemp(prefix="cotenant-bench-")
    config = str(HERE / "cotenant_echo.toml")
    return [
        Peer(
            "cotenant",
            lambda port: [
                str(ROOT / ".venv/bin/cotenant"), "serve", config, "--http-port", str(port), "--store", store,
            ],
            "/v2/models/echo/infer",
            v2,
            lambda answer: answer["outputs"][0]["data"],
        ),
        Peer(
            "starlette",
            lambda port: [sys.executable, str(HERE / "bare_starlette.py"), str(port)],
            "/echo",
            FLOATS,
            lambda answer: answer,
        ),
        mosec("mosec", 1),
        mosec("mosec, batching", 64),
        Peer(
            "litserve",
            lambda port: [python, str(HERE / "litserve_echo.py"), str(port)],
            "/predict",
            {"input": FLOATS},
            lambda answer: answer["output"],
        ),
    ]  # fmt: skip


def cannot_run(why: str) -> int:
    """Say why, and tell `benchmarks/run.py` by the exit status that nothing is broken."""
    print(f"cannot run here: {why}", file=sys.stderr)
    return CANNOT_RUN


def need_peers() -> None:
    """Make the peers' own environment from pinned requirements."""
    if not (PEERS / ".installed").exists():
        print("installing the peers into an environment of their own", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(PEERS)], check=True)
        pip = [str(PEERS / "bin" / "python"), "-m", "pip", "install", "-q", "-r"]
        subprocess.run([*pip, str(ROOT / "requirements" / "peers-echo.txt")], check=True)
        (PEERS / ".installed").touch()


@contextmanager
def running(peer: Peer) -> Iterator[tuple[int, int]]:
    """The server as a child in a process group of its own; yields (port, pid)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryFile() as log, ExitStack() as stack:
        child = subprocess.Popen(peer.command(port), stdout=log, stderr=log, start_new_session=True)
        stack.callback(stop, child)
        until = time.monotonic() + START_LIMIT_S
        while not answers(peer, port):
            if child.poll() is not None or time.monotonic() > until:
                log.seek(0)
                raise RuntimeError(f"{peer.name} did not start: {log.read()[-600:].decode(errors='replace')}")
            time.sleep(0.2)
        yield port, child.pid


def stop(child: subprocess.Popen[bytes]) -> None:
    """End the process and whatever it started, first politely."""
    child.terminate()
    with suppress(subprocess.TimeoutExpired):
        child.wait(15)
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def answers(peer: Peer, port: int) -> bool:
    """Whether one request comes back as sent."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{peer.path}",
        json.dumps(peer.body).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return bool(peer.echo(json.load(answer)) == FLOATS)
    except (OSError, ValueError, KeyError):
        return False


def cpu_s(root: int) -> float:
    """User and system time of a process and all its descendants (s)."""
    children: dict[int, list[int]] = {}
    spent: dict[int, float] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            children.setdefault(int(fields[1]), []).append(int(entry.name))
            spent[int(entry.name)] = (int(fields[11]) + int(fields[12])) / TICKS
    total, waiting = 0.0, [root]
    while waiting:
        pid = waiting.pop()
        total += spent.get(pid, 0.0)
        waiting += children.get(pid, [])
    return total


def measure(peer: Peer, port: int, pid: int, connections: int, seconds: float) -> dict[str, float]:
    """One run of wrk."""
    before = cpu_s(pid)
    found = run_wrk(
        f"http://127.0.0.1:{port}{peer.path}", json.dumps(peer.body).encode(),
        {"Content-Type": "application/json"}, connections, seconds,
    )  # fmt: skip
    cpu_us = 1e6 * (cpu_s(pid) - before) / max(1, found["requests"])
    return {
        "req_per_s": found["req_per_s"],
        "p50_ms": found["p50_ms"],
        "cpu_us": cpu_us,
        "errors": found["errors"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    missing = need_wrk()
    if missing:
        return cannot_run(missing)
    try:
        need_peers()
    except subprocess.CalledProcessError as error:
        return cannot_run(f"the peers cannot be installed: {error}")
    chosen = [p for p in peers() if not options.only or p.name in options.only.split(",")]
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    failed: dict[str, str] = {}
    for repeat in range(options.repeats):
        for peer in chosen:
            if peer.name in failed:
                continue
            print(f"repeat {repeat + 1} of {options.repeats}: {peer.name}", file=sys.stderr)
            try:
                with running(peer) as (port, pid):
                    measure(peer, port, pid, 8, 1.0)
                    for connections in CONNECTIONS:
                        row = measure(peer, port, pid, connections, options.seconds)
                        found.setdefault((peer.name, connections), []).append(row)
            except (RuntimeError, subprocess.SubprocessError) as error:
                failed[peer.name] = str(error)
    rows = [
        {
            "server": name,
            "connections": connections,
            **{key: statistics.median(run[key] for run in runs) for key in runs[0]},
        }
        for (name, connections), runs in found.items()
    ]
    show(rows, failed)
    if options.json:
        facts = {
            "echo": rows, "figures": figures(rows), "failed": failed,
            "seconds": options.seconds, "repeats": options.repeats,
            "machine": {"cpu": cpu_name(), "cores": os.cpu_count(), "python": platform.python_version()},
            "pins": (ROOT / "requirements" / "peers-echo.txt").read_text().split("\n")[1:-1],
        }  # fmt: skip
        options.json.write_text(json.dumps(facts, indent=1) + "\n")
    return 1 if "cotenant" in failed else 0


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.+)", info.read_text()) if info.exists() else []
    return names[0] if names else platform.machine()


def figures(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Our requests/s as a multiple of each peer's, against the targets."""
    ours = {row["connections"]: row for row in rows if row["server"] == "cotenant"}
    result = []
    for row in rows:
        own = ours.get(row["connections"])
        if own is None or row is own:
            continue
        ratio = own["req_per_s"] / row["req_per_s"]
        least = TARGETS.get(row["server"])
        result.append(
            {
                "name": f"echo, {row['connections']} connections, against {row['server']}",
                "figure": f"{ratio:.2f} x ({own['req_per_s']:.0f}/s at {own['cpu_us']:.0f} us; "
                f"{row['req_per_s']:.0f}/s at {row['cpu_us']:.0f} us)",
                "target": "" if least is None else f">= {least:g} x",
                "met": None if least is None else ratio >= least,
            }
        )
    return result


def show(rows: list[dict[str, Any]], failed: dict[str, str]) -> None:
    """A table with the ratio of each server's requests/s to ours."""
    console = Console()
    table = Table(box=None, header_style="bold", title="echo of 16 floats", title_justify="left")
    for name in (
        "connections",
        "server",
        "requests/s",
        "p50 ms",
        "CPU us/request",
        "ours / theirs",
        "errors",
    ):
        table.add_column(name, justify="left" if name == "server" else "right")
    ours = {row["connections"]: row["req_per_s"] for row in rows if row["server"] == "cotenant"}
    for row in sorted(rows, key=lambda row: (row["connections"], -row["req_per_s"])):
        ratio = ours.get(row["connections"], 0.0) / row["req_per_s"] if row["req_per_s"] else 0.0
        table.add_row(
            str(row["connections"]), row["server"], f"{row['req_per_s']:.0f}", f"{row['p50_ms']:.2f}",
            f"{row['cpu_us']:.0f}", f"{ratio:.2f}", f"{row['errors']:.0f}",
        )  # fmt: skip
    console.print(table)
    for name, reason in failed.items():
        console.print(f"{name} failed: {reason}", highlight=False)


if __name__ == "__main__":
    sys.exit(main())

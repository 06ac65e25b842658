"""What the device does apart from models: transfers, partitions, memory; and what it is."""

from __future__ import annotations

import os
import platform
import resource
import statistics
from importlib import metadata
from typing import Any

import torch
from driver import Driver
from episodes import Solo
from subjects import SEED, Subject

from cotenant.clock import Clock
from cotenant.cores import available_cores
from cotenant.domain import NS_PER_MS, NS_PER_S
from cotenant.execute.torch.executor import TorchExecutor
from cotenant.execute.torch.partitions import new_stream

COPIES = (1, 2, 4)
"""Concurrent copies in one direction."""
COPY_BYTES = (64 << 10, 1 << 20, 16 << 20)
COPY_REPEATS = 20
CONFINED_RUNS = 7


def describe(*, cuda: bool) -> dict[str, Any]:
    """The device and the versions."""
    facts: dict[str, Any] = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cores": len(available_cores()),
        "seed": SEED,
    }
    if cuda:
        properties = torch.cuda.get_device_properties(0)
        facts |= {
            "name": properties.name,
            "sms": properties.multi_processor_count,
            "memory_mib": properties.total_memory >> 20,
            "cuda": torch.version.cuda,
            "max_connections": os.environ.get("CUDA_DEVICE_MAX_CONNECTIONS"),
            "cuda_bindings": version("cuda-bindings"),
        }
    return facts


def version(package: str) -> str | None:
    """Of an installed package, else None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def memory_mib() -> dict[str, float]:
    """What the process holds (MiB): its peak on the host; on a GPU also what torch has reserved."""
    found = {"host_peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    if torch.cuda.is_available():
        found["device_reserved"] = torch.cuda.memory_reserved() / (1 << 20)
        found["device_free"] = torch.cuda.mem_get_info()[0] / (1 << 20)
    return found


def transfers(clock: Clock, *, cuda: bool) -> list[dict[str, Any]]:
    """GB/s from pinned memory to the device and back, by bytes and by how many copies run at once; on a CPU
    from memory to memory, one at a time."""
    rows = []
    for direction in ("in", "out"):
        for size in COPY_BYTES:
            for n in COPIES if cuda else (1,):
                rows.append(
                    {
                        "direction": direction,
                        "bytes": size,
                        "concurrent": n,
                        **_copies(clock, direction, size, n),
                    }
                    if cuda
                    else {"direction": direction, "bytes": size, "concurrent": 1, **_plain(clock, size)}
                )
    return rows


def _copies(clock: Clock, direction: str, size: int, n: int) -> dict[str, float]:
    device = torch.device("cuda:0")
    streams = [new_stream(device) for _ in range(n)]
    host = [torch.empty(size, dtype=torch.uint8, pin_memory=True) for _ in range(n)]
    there = [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(n)]
    spans = []
    for _ in range(3):
        torch.cuda.synchronize()
        began_at = clock.now()
        for _ in range(COPY_REPEATS):
            for stream, a, b in zip(streams, host, there, strict=True):
                with torch.cuda.stream(stream):
                    (b if direction == "in" else a).copy_(a if direction == "in" else b, non_blocking=True)
        torch.cuda.synchronize()
        spans.append(clock.now() - began_at)
    span_ns = statistics.median(spans) / COPY_REPEATS
    return {"gb_per_s": n * size / span_ns, "each_us": span_ns / 1000}


def _plain(clock: Clock, size: int) -> dict[str, float]:
    a, b = torch.zeros(size, dtype=torch.uint8), torch.zeros(size, dtype=torch.uint8)
    spans = []
    for _ in range(COPY_REPEATS):
        began_at = clock.now()
        b.copy_(a)
        spans.append(clock.now() - began_at)
    span_ns = statistics.median(spans)
    return {"gb_per_s": size / span_ns, "each_us": span_ns / 1000}


def partitions(
    driver: Driver, executor: TorchExecutor, subjects: dict[str, Subject], solo_ns: Solo, seconds: float
) -> dict[str, Any]:
    """What confining to SMs changes: each model alone on each share, and pairs free against halves."""
    shares = executor.lanes[0].shares
    if executor.ladder is None:
        return {"available": False, "why": executor.why_whole}
    names = sorted(subjects)
    pairs = [(a, b) for a in names for b in names if a < b]
    each_ns = max(20 * NS_PER_MS, int(seconds * NS_PER_S / (2 * len(pairs))))
    rows = []
    for a, b in pairs:
        first, second = subjects[a], subjects[b]
        work = first.work(first.middle), second.work(second.middle)
        row: dict[str, Any] = {"first": a, "second": b}
        for label, confined in (("free", (1.0, 1.0)), ("halves", (0.5, 0.5))):
            spans = driver.beside(*work, each_ns, confined)
            row[label] = [
                statistics.median(found) / solo_ns[variant, 1.0]
                for found, variant in zip(spans, (first.middle, second.middle), strict=True)
            ]
        rows.append(row)
    return {
        "available": True,
        "sms": {
            str(share): [executor.ladder.sms(share, lane.index) for lane in executor.lanes]
            for share in shares
        },
        "pairs": rows,
    }

"""Kernel by kernel: what each segment of a model launches, by torch.profiler (operators, on a CPU).

Segments run one by one, each inside an annotation that ends when the device is idle; what began within it is
its. Profiling slows the host down, not the kernels: durations are the device's own.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from subjects import Subject

from cotenant.domain import Variant
from cotenant.execute.torch.model import example_state

MARK = "cotenant segment "
LONGEST_NAME = 60


@dataclass(frozen=True)
class Launched:
    """One kernel (operator) of a segment. `blocks, threads, registers, shared_bytes`: 0 on a CPU."""

    variant: Variant
    segment: int
    index: int
    name: str
    duration_us: float
    blocks: int
    threads: int
    registers: int
    shared_bytes: int


def kernels(subject: Subject, variant: Variant) -> list[Launched]:
    """Every kernel of one run of a variant, in order."""
    model = subject.model
    on_cuda = model.device.type == "cuda"
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if on_cuda:
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.inference_mode():
        _run(subject, variant, on_cuda)
        with torch.profiler.profile(activities=kinds) as profiler:
            _run(subject, variant, on_cuda)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    return list(_by_segment(variant, events, "kernel" if on_cuda else "cpu_op"))


def _run(subject: Subject, variant: Variant, on_cuda: bool) -> None:
    state = example_state(subject.model.metadata, variant, subject.model.device)
    if on_cuda:
        torch.cuda.synchronize()
    for k, segment in enumerate(subject.model.segments):
        with torch.profiler.record_function(f"{MARK}{k}"):
            state = segment(*state)
            if on_cuda:
                torch.cuda.synchronize()


def _by_segment(variant: Variant, events: list[dict[str, Any]], kind: str) -> Iterator[Launched]:
    marks = [
        (e["ts"], e["ts"] + e["dur"], int(e["name"].removeprefix(MARK)))
        for e in events
        if e.get("cat") == "user_annotation" and e.get("name", "").startswith(MARK)
    ]
    launched = sorted((e for e in events if e.get("cat") == kind), key=lambda e: (e["ts"], -e["dur"]))
    index = dict.fromkeys((k for _, _, k in marks), 0)
    over_at = -1.0
    for event in launched:
        if kind == "cpu_op" and event["ts"] < over_at:
            continue  # within another operator
        over_at = event["ts"] + event["dur"]
        segment = next((k for begin, end, k in marks if begin <= event["ts"] <= end), None)
        if segment is None:
            continue
        args = event.get("args", {})
        blocks, threads = (_product(args.get(key)) for key in ("grid", "block"))
        yield Launched(
            variant=variant,
            segment=segment,
            index=index[segment],
            name=event["name"][:LONGEST_NAME],
            duration_us=float(event["dur"]),
            blocks=blocks,
            threads=threads,
            registers=int(args.get("registers per thread", 0)),
            shared_bytes=int(args.get("shared memory", 0)),
        )
        index[segment] += 1


def _product(sizes: Any) -> int:
    if not sizes:
        return 0
    total = 1
    for size in sizes:
        total *= int(size)
    return total

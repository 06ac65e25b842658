"""What a model does on a device: its kernels, in order, at any batch.

A file of kernels (CSV, columns model, batch, index, kind, bound, sms, duration_ns, in any order) holds traces
of single runs: one row per kernel, what it was bound by, how many SMs its blocks fill, and how long it took
alone. From a trace at batch b0 on a device of S SMs follow all other batches b:

    c = ceil(max(1, sms b/b0) / S) / ceil(sms / S)
    compute-bound and unknown: duration x c;  memory-bound: duration x max(c, b/b0) for b > b0, else x c

Traces are of a V100. On another device the time of one wave of blocks of a compute-bound (or unknown) kernel
scales with the fp32 peak per SM and the number of waves is counted anew; a memory-bound kernel's time scales
with the bandwidth. No kernel becomes shorter than `FLOOR_NS` by that: short ones are latency.

Traces do not say how much of the bandwidth a kernel takes. A memory-bound one is taken to use
`BANDWIDTH[MEMORY]` of it once it fills half of the SMs, in proportion below; a compute-bound or unknown one
`BANDWIDTH[...]` with all SMs. The first `RAMP_NS` of any kernel move nothing.
"""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from cotenant.simulate.twin.specs import V100, DeviceSpec, clock

COMPUTE, MEMORY, UNKNOWN, COPY_IN, COPY_OUT = range(5)
"""What a kernel is bound by; copies from and to the host run on the copy engines and take no SM."""
BOUNDS = {
    "compute": COMPUTE, "memory": MEMORY, "unknown": UNKNOWN, "copy_in": COPY_IN, "copy_out": COPY_OUT
}  # fmt: skip
COLUMNS = ("model", "batch", "index", "kind", "bound", "sms", "duration_ns")
BANDWIDTH = {COMPUTE: 0.25, MEMORY: 0.85, UNKNOWN: 0.45}
"""Share (0..1) of the memory bandwidth that a kernel takes alone with the SMs it can use."""
MEMORY_TIME = {MEMORY: 1.0, UNKNOWN: 0.5}
"""Share (0..1) of a kernel's time that goes with the bandwidth; a compute-bound kernel's own use of it."""
SM_WATTS = {COMPUTE: 1.0, MEMORY: 0.6, UNKNOWN: 0.7}
"""Power of a busy SM in units of one busy on arithmetic."""
SATURATES = 0.5
"""Share of the SMs with which a memory-bound kernel has all the bandwidth it can get."""
RAMP_NS = 2000.0
FLOOR_NS = 2000.0

Array = np.ndarray[Any, np.dtype[np.float64]]


class KernelFileError(ValueError):
    """A file of kernels that cannot be used; the message names file, line or model, and what is expected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Kernels of one run at `batch` on a V100, in order: n_kernels each. `bound` holds COMPUTE and so on;
    `sms` how many SMs the blocks fill (may exceed the device's); `duration_ns` the span alone."""

    batch: int
    bound: np.ndarray[Any, np.dtype[np.int64]]
    sms: Array
    duration_ns: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernels:
    """Kernels of a model at one batch on one device, in order: n_kernels each.

    loads: SMs wanted; what does not fit at once comes in further waves. wave_ns: span of one wave alone.
    bandwidth: share (0..1) of the memory bandwidth used alone. memory_time: share of the time that goes with
    the bandwidth. watts: of one SM busy with it. kind: COMPUTE and so on."""

    kind: np.ndarray[Any, np.dtype[np.int64]]
    loads: Array
    wave_ns: Array
    bandwidth: Array
    memory_time: Array
    watts: Array
    n_sms: int

    @property
    def duration_ns(self) -> Array:
        """Spans of the kernels alone."""
        return self.wave_ns * _waves(self.loads, self.n_sms)

    def __len__(self) -> int:
        return len(self.loads)


# --- reading --------------------------------------------------------------------------------------


def read_traces(path: Path, model: str) -> tuple[Trace, ...]:
    """The model's traces in a file, smallest batch first. Raises KernelFileError."""
    rows: dict[int, list[tuple[int, int, float, float]]] = defaultdict(list)
    known: set[str] = set()
    for line, row in _rows(path):
        known.add(row["model"])
        if row["model"] == model:
            batch, index, bound, sms, span = _checked(path, line, row)
            rows[batch].append((index, bound, sms, span))
    if not rows:
        there = ", ".join(sorted(known)) or "none"
        raise KernelFileError(f"{path}: has no model {model!r}; models there: {there}")
    return tuple(_trace(path, model, batch, found) for batch, found in sorted(rows.items()))


def _rows(path: Path) -> Iterable[tuple[int, dict[str, str]]]:
    """(line, fields) of every row. Raises KernelFileError for what is no such file."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            found = reader.fieldnames or []
            for column in COLUMNS:
                if column not in found:
                    raise KernelFileError(
                        f"{path}: has no column {column!r}; it needs {', '.join(COLUMNS)} in its first line"
                    )
            for row in reader:
                missing = [column for column in COLUMNS if row[column] is None]
                if missing:
                    raise KernelFileError(f"{path}, line {reader.line_num}: has no value for {missing[0]!r}")
                yield reader.line_num, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise KernelFileError(f"{path}: cannot be read: {reason}") from error


def _checked(path: Path, line: int, row: Mapping[str, str]) -> tuple[int, int, int, float, float]:
    def number(column: str, least: float, whole: bool) -> float:
        text, kind = row[column], "a whole number" if whole else "a number"
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value >= least and (not whole or value == int(value))):
            raise KernelFileError(
                f"{path}, line {line}: {column} must be {kind}, at least {least:g}, not {text!r}"
            )
        return value

    bound = BOUNDS.get(row["bound"])
    if bound is None:
        raise KernelFileError(
            f"{path}, line {line}: bound must be one of {', '.join(BOUNDS)}, not {row['bound']!r}"
        )
    is_copy = bound in (COPY_IN, COPY_OUT)
    return (
        int(number("batch", 1, True)),
        int(number("index", 0, True)),
        bound,
        number("sms", 0 if is_copy else 1, False),
        number("duration_ns", 1, False),
    )


def _trace(path: Path, model: str, batch: int, rows: list[tuple[int, int, float, float]]) -> Trace:
    rows.sort(key=lambda row: row[0])
    for before, after in pairwise(rows):
        if before[0] == after[0]:
            raise KernelFileError(
                f"{path}: model {model!r}, batch {batch} has two kernels with index {before[0]}"
            )
    _, bound, sms, span = zip(*rows, strict=True)
    return Trace(
        batch=batch,
        bound=np.array(bound, np.int64),
        sms=np.array(sms, np.float64),
        duration_ns=np.array(span, np.float64),
    )


# --- the batch law ----------------------------------------------------------------------------------


def at_batch(traces: Sequence[Trace], batch: int, spec: DeviceSpec) -> Kernels:
    """The kernels at `batch` rows on a device, from the trace nearest below (else the smallest)."""
    trace = max((t for t in traces if t.batch <= batch), key=lambda t: t.batch, default=traces[0])
    growth = batch / trace.batch
    copies = (trace.bound == COPY_IN) | (trace.bound == COPY_OUT)
    loads = np.where(copies, 0.0, np.maximum(1.0, trace.sms * growth))
    c = _waves(loads, V100.n_sms) / _waves(trace.sms, V100.n_sms)
    grown = np.maximum(c, growth) if growth > 1.0 else c
    factor = np.where(trace.bound == MEMORY, grown, np.where(copies, growth, c))
    span = trace.duration_ns * factor
    if spec is not V100:
        span = _moved(trace, loads, growth, span, spec)
    return kernels(trace.bound, loads, span, spec)


def _moved(trace: Trace, loads: Array, growth: float, span: Array, spec: DeviceSpec) -> Array:
    """Spans (ns) on a device other than the V100."""
    waves, waves_there = _waves(trace.sms, V100.n_sms), _waves(loads, spec.n_sms)
    faster = spec.fp32_flop_per_s / spec.n_sms * V100.n_sms / V100.fp32_flop_per_s
    compute = trace.duration_ns / waves / faster * waves_there
    c = waves_there / _waves(trace.sms, spec.n_sms)
    grown = np.maximum(c, growth) if growth > 1.0 else c
    memory = trace.duration_ns * (V100.bytes_per_s / spec.bytes_per_s) * grown
    copied = span * (V100.pcie_bytes_per_s / spec.pcie_bytes_per_s)
    moved: Array = np.choose(trace.bound, [compute, memory, compute, copied, copied])
    return np.asarray(np.maximum(moved, np.minimum(span, FLOOR_NS)))


def kernels(
    bound: np.ndarray[Any, np.dtype[np.int64]],
    loads: Array,
    span_ns: Array,
    spec: DeviceSpec,
    bandwidth: Array | None = None,
) -> Kernels:
    """Kernels from what they are bound by, the SMs they want, their spans alone, and the share of the
    bandwidth that they take unless it follows from the rest (n_kernels each)."""
    full = np.minimum(1.0, loads / spec.n_sms)
    moving = np.maximum(0.0, 1.0 - RAMP_NS / span_ns)
    none = np.zeros_like(loads)
    of_memory = BANDWIDTH[MEMORY] * np.minimum(1.0, full / SATURATES)
    used = [BANDWIDTH[COMPUTE] * full, of_memory, BANDWIDTH[UNKNOWN] * full, none, none]
    if bandwidth is None:
        bandwidth = np.choose(bound, used) * moving
    memory_time = np.choose(
        bound, [bandwidth, none + MEMORY_TIME[MEMORY], none + MEMORY_TIME[UNKNOWN], none, none]
    )
    per_sm = spec.sms_w / spec.n_sms
    watts = np.choose(bound, [none + per_sm * SM_WATTS.get(kind, 0.0) for kind in range(5)])
    return Kernels(
        kind=bound,
        loads=loads,
        wave_ns=span_ns / _waves(loads, spec.n_sms),
        bandwidth=bandwidth,
        memory_time=memory_time,
        watts=watts,
        n_sms=spec.n_sms,
    )


def clocks_alone(of: Kernels, spec: DeviceSpec) -> Array:
    """Share of the clocks that each kernel has when it runs alone: its span was measured with them."""
    watts = spec.idle_w + np.minimum(of.loads, spec.n_sms) * of.watts + spec.memory_w * of.bandwidth
    return np.array([clock(value, spec) for value in watts.tolist()])


def _waves(loads: Array, n_sms: int) -> Array:
    return np.maximum(1.0, np.ceil(loads / n_sms))

"""A recording as files: profiles, segments and co-runs as CSV, facts as JSON."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from driver import Ended

from cotenant.domain import NS_PER_MS, Variant
from cotenant.execute.torch.cost import RATES
from cotenant.execute.torch.model import TorchModel


@dataclass
class Recorded:
    """What was measured: models, runs alone by variant, episodes of co-runs by number."""

    models: dict[str, TorchModel]
    alone: dict[Variant, list[Ended]]
    episodes: list[tuple[int, list[Ended]]]

    def slowdowns(self, solo_ns: dict[Variant, float]) -> dict[str, Any]:
        """Median and 90 % quantile of span / solo, by how many others were in flight at dispatch."""
        by_n: dict[int, list[float]] = {}
        for _, ended in self.episodes:
            for run in ended:
                by_n.setdefault(run.in_flight, []).append(run.span_ns / solo_ns[run.variant])
        return {
            str(n): {
                "median": float(np.median(found)),
                "p90": float(np.percentile(found, 90)),
                "n": len(found),
            }
            for n, found in sorted(by_n.items())
        }


def write(out: Path, recorded: Recorded, facts: dict[str, Any]) -> None:
    """All files of the recording."""
    _csv(out / "corun.profiles.csv", PROFILE_COLUMNS, _profiles(recorded))
    _csv(out / "corun.segments.csv", SEGMENT_COLUMNS, _segments(recorded))
    _csv(out / "corun.coruns.csv", CORUN_COLUMNS, _coruns(recorded), compress=True)
    (out / "facts.json").write_text(json.dumps(facts, indent=1) + "\n")


PROFILE_COLUMNS = (
    "workload", "batch", "share", "solo_ms", "solo_mad_ms", "demand_compute", "demand_memory",
    "feature_gflop", "feature_mb", "feature_operations", "feature_segments",
)  # fmt: skip


def _profiles(recorded: Recorded) -> Iterable[tuple[Any, ...]]:
    for variant, runs in recorded.alone.items():
        spans = [run.span_ns / NS_PER_MS for run in runs]
        median = statistics.median(spans)
        mad = statistics.median(abs(span - median) for span in spans)
        model = recorded.models[variant.model]
        scale = variant.rows / model.metadata.spec.max_batch
        flops = sum(cost.flops for cost in model.costs) * scale
        size = sum(cost.bytes for cost in model.costs)
        compute, memory = _demand(model, flops, size, median)
        yield (
            variant.model, variant.rows, 1.0, f"{median:.4f}", f"{mad:.4f}", compute, memory,
            f"{flops / 1e9:.3f}", f"{size / 1e6:.2f}", sum(cost.operations for cost in model.costs),
            model.n_segments,
        )  # fmt: skip


def _demand(model: TorchModel, flops: float, size: float, span_ms: float) -> tuple[str, str]:
    """Shares (0..1) of nominal arithmetic and memory rates that were used, from static counts."""
    rates = RATES["cuda" if model.device.type == "cuda" else "cpu"]
    span_s = span_ms / 1000
    return f"{min(1.0, flops / span_s / rates.flops):.4f}", f"{min(1.0, size / span_s / rates.bytes):.4f}"


SEGMENT_COLUMNS = ("workload", "batch", "share", "index", "solo_ms", "demand_compute", "demand_memory")


def _segments(recorded: Recorded) -> Iterable[tuple[Any, ...]]:
    for variant, runs in recorded.alone.items():
        model = recorded.models[variant.model]
        bounds = np.array([[run.started_at, *run.segment_ends_at] for run in runs])
        spans = np.median(np.diff(bounds, axis=1), axis=0) / NS_PER_MS
        scale = variant.rows / model.metadata.spec.max_batch
        for k, (span, cost) in enumerate(zip(spans, model.costs, strict=True)):
            demand = _demand(model, cost.flops * scale, cost.bytes, max(1e-6, float(span)))
            yield (variant.model, variant.rows, 1.0, k, f"{span:.4f}", *demand)


CORUN_COLUMNS = (
    "run", "workload", "batch", "share", "start_ms", "end_ms", "dispatched_ms", "lane", "queue_n",
    "segment_ends_ms",
)  # fmt: skip


def _coruns(recorded: Recorded) -> Iterable[tuple[Any, ...]]:
    for number, ended in recorded.episodes:
        origin = min(run.dispatched_at for run in ended)

        def ms(at: int, origin: int = origin) -> str:
            return f"{(at - origin) / NS_PER_MS:.4f}"

        for run in sorted(ended, key=lambda run: run.started_at):
            ends = ";".join(ms(at) for at in run.segment_ends_at)
            yield (
                number, run.variant.model, run.variant.rows, 1.0, ms(run.started_at), ms(run.ended_at),
                ms(run.dispatched_at), run.lane, run.in_flight, ends,
            )  # fmt: skip


def _csv(
    path: Path, columns: tuple[str, ...], rows: Iterable[tuple[Any, ...]], *, compress: bool = False
) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    body = text.getvalue().encode()
    packed = _zstd(body) if compress else None
    path.write_bytes(body) if packed is None else path.with_name(path.name + ".zst").write_bytes(packed)


def _zstd(body: bytes) -> bytes | None:
    """Compressed, by whichever library is there; None when there is none."""
    try:
        import zstandard

        return zstandard.ZstdCompressor(level=19).compress(body)
    except ImportError:
        pass
    try:
        import pyarrow

        packed: bytes = pyarrow.Codec("zstd", compression_level=19).compress(body, asbytes=True)
        return packed
    except ImportError:
        return None

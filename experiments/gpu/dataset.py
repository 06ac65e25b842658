"""A recording as files: profiles, segments, co-runs, stressors and kernels as CSV, facts as JSON.

Columns and names are those of the repository's co-run data sets (docs/datasets.md); `sm_mhz` and the two
tables besides are additions.
"""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from counters import Counters
from driver import Ended
from episodes import Solo
from stress import Stressed
from subjects import Subject, say
from timeline import Launched

from cotenant.domain import NS_PER_MS, Variant
from cotenant.execute.torch.cost import RATES
from cotenant.execute.torch.model import TorchModel
from cotenant.experiment.packed import write_packed

ROWS_ABOVE_WHICH_PACKED = 5_000


@dataclass
class Recorded:
    """What was measured. `alone`: runs alone by variant and share; `episodes`: co-runs by number; `used`:
    counters of a variant run back to back alone."""

    subjects: dict[str, Subject]
    counters: Counters
    alone: dict[tuple[Variant, float], list[Ended]] = field(default_factory=dict)
    episodes: list[tuple[int, list[Ended]]] = field(default_factory=list)
    stressed: list[Stressed] = field(default_factory=list)
    kernels: list[Launched] = field(default_factory=list)
    used: dict[Variant, dict[str, float]] = field(default_factory=dict)

    @property
    def solo_ns(self) -> Solo:
        """Median spans alone (ns)."""
        return {key: statistics.median(e.span_ns for e in runs) for key, runs in self.alone.items() if runs}

    def slowdowns(self) -> dict[str, Any]:
        """Median and 90 % quantile of span / solo, by how many others were in flight at dispatch."""
        solo_ns = self.solo_ns
        by_n: dict[int, list[float]] = {}
        for _, ended in self.episodes:
            for run in ended:
                by_n.setdefault(run.in_flight, []).append(run.span_ns / solo_ns[run.variant, run.share])
        return {
            str(n): {
                "median": float(np.median(found)),
                "p90": float(np.percentile(found, 90)),
                "n": len(found),
            }
            for n, found in sorted(by_n.items())
        }

    def model(self, variant: Variant) -> TorchModel:
        """The loaded model of a variant."""
        return self.subjects[variant.model].model


def write(out: Path, recorded: Recorded, facts: dict[str, Any], *, coruns: bool = True) -> None:
    """All files of the recording, that of the co-runs only with `coruns`."""
    _csv(out / "corun.profiles.csv", _profiles(recorded))
    _csv(out / "corun.segments.csv", _segments(recorded))
    _csv(out / "corun.stressors.csv", _stressors(recorded))
    _csv(out / "corun.kernels.csv", _kernels(recorded))
    if coruns:
        _csv(out / "corun.coruns.csv", _coruns(recorded), packed=True)
    (out / "facts.json").write_text(json.dumps(facts, indent=1) + "\n")


Row = dict[str, Any]


def _profiles(recorded: Recorded) -> Iterable[Row]:
    """Sensitivities and pressures are log slowdowns at the highest intensity, from the batch (the smallest or
    the largest) that is nearer; counters are shares (0..1) where they were percentages."""
    for (variant, share), runs in recorded.alone.items():
        if not runs:
            continue
        spans = [run.span_ns / NS_PER_MS for run in runs]
        median = statistics.median(spans)
        model = recorded.model(variant)
        flops, size = _work(model, variant)
        compute, memory = _demand(model, flops, size, median)
        row: Row = {
            "workload": variant.model,
            "batch": variant.rows,
            "share": share,
            "solo_ms": f"{median:.4f}",
            "solo_mad_ms": f"{statistics.median(abs(span - median) for span in spans):.4f}",
            "demand_compute": compute,
            "demand_memory": memory,
            "feature_gflop": f"{flops / 1e9:.4f}",
            "feature_mb": f"{size / 1e6:.3f}",
            "feature_operations": sum(cost.operations for cost in model.costs),
            "feature_segments": model.n_segments,
        }
        for stressed in _nearest(recorded, variant):
            row[f"feature_sensitivity_{stressed.resource}"] = f"{np.log(stressed.sensitivity):.4f}"
            row[f"feature_pressure_{stressed.resource}"] = f"{np.log(stressed.pressure):.4f}"
        for name, value in recorded.used.get(variant, {}).items():
            row[f"feature_{name}"] = f"{value if name.endswith('_s') else value / 100:.4f}"
        yield row


def _nearest(recorded: Recorded, variant: Variant) -> Iterable[Stressed]:
    rows = {s.variant.rows for s in recorded.stressed if s.variant.model == variant.model}
    nearest = min(rows, key=lambda n: abs(np.log(n / variant.rows)), default=None)
    return [
        s
        for s in recorded.stressed
        if s.variant.model == variant.model and s.variant.rows == nearest and s.intensity == 1.0
    ]


def _work(model: TorchModel, variant: Variant) -> tuple[float, float]:
    """FLOPs and bytes of a run: counted at the largest batch; FLOPs go with the rows."""
    scale = variant.rows / model.metadata.spec.max_batch
    return sum(cost.flops for cost in model.costs) * scale, sum(cost.bytes for cost in model.costs)


def _demand(model: TorchModel, flops: float, size: float, span_ms: float) -> tuple[str, str]:
    """Shares (0..1) of nominal arithmetic and memory rates that were used, from static counts."""
    rates = RATES["cuda" if model.device.type == "cuda" else "cpu"]
    span_s = span_ms / 1000
    return f"{min(1.0, flops / span_s / rates.flops):.4f}", f"{min(1.0, size / span_s / rates.bytes):.4f}"


def _segments(recorded: Recorded) -> Iterable[Row]:
    for (variant, share), runs in recorded.alone.items():
        if not runs:
            continue
        model = recorded.model(variant)
        bounds = np.array([[run.started_at, *run.segment_ends_at] for run in runs])
        spans = np.median(np.diff(bounds, axis=1), axis=0) / NS_PER_MS
        scale = variant.rows / model.metadata.spec.max_batch
        for k, (span, cost) in enumerate(zip(spans, model.costs, strict=True)):
            compute, memory = _demand(model, cost.flops * scale, cost.bytes, max(1e-6, float(span)))
            yield {
                "workload": variant.model,
                "batch": variant.rows,
                "share": share,
                "index": k,
                "solo_ms": f"{span:.4f}",
                "demand_compute": compute,
                "demand_memory": memory,
            }


def _stressors(recorded: Recorded) -> Iterable[Row]:
    for s in recorded.stressed:
        yield {
            "workload": s.variant.model,
            "batch": s.variant.rows,
            "stressor": s.resource,
            "intensity": s.intensity,
            "sensitivity": f"{s.sensitivity:.4f}",
            "pressure": f"{s.pressure:.4f}",
            "n": s.n,
        }


def _kernels(recorded: Recorded) -> Iterable[Row]:
    for k in recorded.kernels:
        yield {
            "workload": k.variant.model,
            "batch": k.variant.rows,
            "segment": k.segment,
            "index": k.index,
            "kernel": k.name,
            "duration_us": f"{k.duration_us:.3f}",
            "blocks": k.blocks,
            "threads": k.threads,
            "registers": k.registers,
            "shared_bytes": k.shared_bytes,
        }


def _coruns(recorded: Recorded) -> Iterable[Row]:
    for number, ended in recorded.episodes:
        origin = min(run.dispatched_at for run in ended)

        def ms(at: int, origin: int = origin) -> str:
            return f"{(at - origin) / NS_PER_MS:.4f}"

        for run in sorted(ended, key=lambda run: run.started_at):
            clock = recorded.counters.at(run.started_at, "sm_mhz")
            yield {
                "run": number,
                "workload": run.variant.model,
                "batch": run.variant.rows,
                "share": run.share,
                "start_ms": ms(run.started_at),
                "end_ms": ms(run.ended_at),
                "dispatched_ms": ms(run.dispatched_at),
                "lane": run.lane,
                "queue_n": run.in_flight,
                "segment_ends_ms": ";".join(ms(at) for at in run.segment_ends_at),
                "sm_mhz": "" if clock is None else f"{clock:.0f}",
            }


def _csv(path: Path, rows: Iterable[Row], *, packed: bool = False) -> None:
    found = list(rows)
    if not found:  # nor may the table of an earlier recording stay
        path.unlink(missing_ok=True)
        path.with_name(path.name + ".zst").unlink(missing_ok=True)
        return
    columns = list(dict.fromkeys(key for row in found for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    if packed or len(found) > ROWS_ABOVE_WHICH_PACKED:
        try:
            write_packed(path, text.getvalue())
            path.unlink(missing_ok=True)  # of an earlier recording; it would be read first
            return
        except RuntimeError as error:  # no library for it: large is better than lost
            say(f"{path.name} is not packed: {error}")
    path.write_text(text.getvalue())
    path.with_name(path.name + ".zst").unlink(missing_ok=True)

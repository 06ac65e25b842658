"""Data sets of co-runs: read and written.

`BASE.profiles.csv`: `workload[,batch,share],solo_ms,demand_*...,feature_*...`; demands are shares (0..1) of a
resource used when alone. `BASE.segments.csv` (optional): `workload[,batch,share],index,solo_ms,demand_*`.
`BASE.coruns.csv` (may be packed, `.zst`): `run,workload[,batch,share][,start_ms],end_ms` and optionally
`began_s,dispatched_ms,lane,units,queue_n,segment_ends_ms`. Rows of one run overlap. Without `start_ms` a run
is steady: every row's co-runners were there throughout, and `end_ms` is its latency. Columns are found by
name, in any order; unknown ones are ignored. `units`: compute units of the lane, `;` between them. A workload
with axes is called `bert_mini[seq=64]`, further axes after `;`. See `docs/datasets.md`.
"""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cotenant.domain import Variant
from cotenant.experiment.packed import pack, read_text
from cotenant.profile.features import FeatureTable, WorkloadFeatures

DEMAND, FEATURE = "demand_", "feature_"
KEYS = ["workload", "batch", "share"]
WITH_AXES = re.compile(r"([^\[\]]+)\[(\w+=\d+(?:;\w+=\d+)*)\]")


class DatasetError(ValueError):
    """A data set that cannot be used; the message names the file, the line, and what is wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CoRun:
    """One row: a dispatch that ran beside the others of its run. Times in ms from the begin of the run;
    `start_ms` is None in a steady run. `queue_n`: others in flight when it was dispatched. `began_s`: when
    the run began, in s from the begin of the recording."""

    run: str
    variant: Variant
    share: float
    end_ms: float
    start_ms: float | None = None
    dispatched_ms: float | None = None
    lane: int | None = None
    units: tuple[int, ...] = ()
    queue_n: int | None = None
    segment_ends_ms: tuple[float, ...] = ()
    began_s: float | None = None

    @property
    def span_ms(self) -> float:
        """From start to end."""
        return self.end_ms - (self.start_ms or 0.0)


@dataclass(slots=True, kw_only=True)
class Dataset:
    """Profiles and co-runs. `runs` keeps the order of the file."""

    name: str
    features: FeatureTable
    runs: dict[str, list[CoRun]] = field(default_factory=dict)

    @property
    def steady(self) -> bool:
        """Whether co-runners were present throughout."""
        return all(row.start_ms is None for rows in self.runs.values() for row in rows)

    @property
    def n(self) -> int:
        """Rows of co-runs."""
        return sum(map(len, self.runs.values()))


def read_dataset(base: Path) -> Dataset:
    """The data set `BASE`. Raises DatasetError."""
    profiles = _table(base, "profiles", required=True)
    segments = _table(base, "segments", required=False)
    features = _features(base, profiles, segments)
    dataset = Dataset(name=base.name, features=features)
    for number, row in enumerate(_table(base, "coruns", required=True), 2):
        where = f"{base}.coruns.csv, line {number}"
        entry = _corun(where, row)
        if not features.has(entry.variant, entry.share):
            raise DatasetError(
                f"{where}: no profile of workload {entry.variant.model!r}, batch {entry.variant.rows}, "
                f"share {entry.share:g}; add it to {base.name}.profiles.csv"
            )
        dataset.runs.setdefault(entry.run, []).append(entry)
    if not dataset.runs:
        raise DatasetError(f"{base}.coruns.csv: there are no rows")
    kinds = {row.start_ms is None for rows in dataset.runs.values() for row in rows}
    if len(kinds) > 1:
        raise DatasetError(f"{base}.coruns.csv: some rows have start_ms and some have not")
    return dataset


def _table(base: Path, name: str, *, required: bool) -> list[dict[str, str]]:
    path = base.with_name(f"{base.name}.{name}.csv")
    try:
        text = read_text(path)
    except FileNotFoundError as error:
        if required:
            raise DatasetError(str(error)) from error
        return []
    except (ValueError, OSError) as error:
        raise DatasetError(f"{path}: {error}") from error
    reader = csv.DictReader(io.StringIO(text))
    rows = []
    try:
        for number, row in enumerate(reader, 2):
            if None in row or None in row.values():
                raise DatasetError(f"{path}, line {number}: expected {len(reader.fieldnames or ())} columns")
            rows.append(row)
    except csv.Error as error:
        raise DatasetError(f"{path}: is not a CSV text: {error}") from error
    for column in REQUIRED[name]:
        if column not in (reader.fieldnames or ()):
            raise DatasetError(f"{path}: there is no column {column!r}")
    return rows


NEEDED = ("solo_ms", "end_ms", "index")
"""Columns in which a row must have a number."""
REQUIRED = {
    "profiles": ("workload", "solo_ms"),
    "segments": ("workload", "index", "solo_ms"),
    "coruns": ("run", "workload", "end_ms"),
}


def _features(
    base: Path, profiles: Sequence[Mapping[str, str]], segments: Sequence[Mapping[str, str]]
) -> FeatureTable:
    resources = tuple(
        c.removeprefix(DEMAND) for c in (profiles[0] if profiles else ()) if c.startswith(DEMAND)
    )
    statics = tuple(
        c.removeprefix(FEATURE) for c in (profiles[0] if profiles else ()) if c.startswith(FEATURE)
    )
    parts: dict[tuple[Variant, float], list[tuple[int, float, tuple[float, ...]]]] = {}
    for number, row in enumerate(segments, 2):
        where = f"{base}.segments.csv, line {number}"
        demands = tuple(_number(where, row, DEMAND + name) for name in resources)
        index = int(_number(where, row, "index", least=0))
        parts.setdefault(_key(where, row), []).append((index, _solo(where, row, least=0.0), demands))
    table = FeatureTable(resources, statics)
    for number, row in enumerate(profiles, 2):
        where = f"{base}.profiles.csv, line {number}"
        variant, share = _key(where, row)
        found = sorted(parts.get((variant, share), ()))
        table.add(
            WorkloadFeatures(
                variant=variant,
                share=share,
                solo_ns=_solo(where, row) * 1e6,
                demand=tuple(_number(where, row, DEMAND + name) for name in resources),
                statics=tuple(_number(where, row, FEATURE + name) for name in statics),
                segment_ns=tuple(solo * 1e6 for _, solo, _ in found),
                segment_demand=tuple(demands for *_, demands in found),
            )
        )
    return table


def _key(where: str, row: Mapping[str, str]) -> tuple[Variant, float]:
    rows = _number(where, row, "batch", default=1.0, least=1.0)
    return _variant(row["workload"], int(rows)), _number(where, row, "share", default=1.0)


def _variant(workload: str, rows: int) -> Variant:
    found = WITH_AXES.fullmatch(workload)
    if found is None:
        return Variant(workload, rows)
    sizes = (axis.partition("=") for axis in found[2].split(";"))
    return Variant(found[1], rows, tuple((axis, int(size)) for axis, _, size in sizes))


def workload_name(variant: Variant) -> str:
    """What the column `workload` says: the model, and the sizes of its axes where it has any."""
    axes = ";".join(f"{axis}={size}" for axis, size in variant.axes)
    return f"{variant.model}[{axes}]" if axes else variant.model


def _corun(where: str, row: Mapping[str, str]) -> CoRun:
    variant, share = _key(where, row)
    start = _optional(where, row, "start_ms")
    end = _number(where, row, "end_ms")
    if not math.isfinite(end) or end <= (start or 0.0):
        raise DatasetError(f"{where}: end_ms is {row['end_ms']!r}, but it should be later than the start")
    lane, queue_n = _optional(where, row, "lane"), _optional(where, row, "queue_n")
    try:
        ends = tuple(float(x) for x in (row.get("segment_ends_ms") or "").split(";") if x)
        units = tuple(int(x) for x in (row.get("units") or "").split(";") if x)
    except ValueError as error:
        raise DatasetError(f"{where}: {error}") from error
    return CoRun(
        run=row["run"],
        variant=variant,
        share=share,
        start_ms=start,
        end_ms=end,
        dispatched_ms=_optional(where, row, "dispatched_ms"),
        lane=None if lane is None else int(lane),
        units=units,
        queue_n=None if queue_n is None else int(queue_n),
        segment_ends_ms=ends,
        began_s=_optional(where, row, "began_s"),
    )


def _solo(where: str, row: Mapping[str, str], *, least: float = 1e-9) -> float:
    return _number(where, row, "solo_ms", least=least)


def _number(
    where: str, row: Mapping[str, str], column: str, *, default: float = math.nan, least: float = -math.inf
) -> float:
    text = row.get(column) or ""
    if not text:
        if column in NEEDED:
            raise DatasetError(f"{where}: {column} is empty")
        return default
    try:
        value = float(text)
    except ValueError:
        raise DatasetError(f"{where}: {column} is {text!r}, but a number is expected") from None
    if math.isnan(value) and column not in NEEDED:
        return default
    if value < least or not math.isfinite(value):
        expected = "a finite number" if least == -math.inf else f"a finite number, at least {least:g}"
        raise DatasetError(f"{where}: {column} is {text!r}, but should be {expected}")
    return value


def _optional(where: str, row: Mapping[str, str], column: str) -> float | None:
    value = _number(where, row, column)
    return None if math.isnan(value) else value


# --- writing ----------------------------------------------------------------------------------------


def write_dataset(base: Path, features: FeatureTable, rows: Iterable[CoRun], *, packed: bool = True) -> None:
    """Write `BASE.*`; the folder is made. Each file is replaced as a whole: an interrupted write leaves the
    one that was there."""
    write_features(base, features)
    plain = base.with_name(f"{base.name}.coruns.csv")
    zipped = plain.with_name(plain.name + ".zst")
    body = corun_text(rows).encode()
    target, other = (zipped, plain) if packed else (plain, zipped)
    _replace(target, pack(body) if packed else body)
    other.unlink(missing_ok=True)


def write_features(base: Path, features: FeatureTable) -> None:
    """Write `BASE.profiles.csv` and `BASE.segments.csv`; the folder is made."""
    base.parent.mkdir(parents=True, exist_ok=True)
    demands = [DEMAND + name for name in features.resources]
    known = list(features)

    def numbers(values: Iterable[float]) -> list[str]:
        return ["" if math.isnan(value) else f"{value:.6g}" for value in values]

    profiles = _text(
        [*KEYS, "solo_ms", *demands, *(FEATURE + name for name in features.statics)],
        ([*_cells(f), f"{f.solo_ns / 1e6:.6g}", *numbers(f.demand), *numbers(f.statics)] for f in known),
    )
    segments = _text(
        [*KEYS, "index", "solo_ms", *demands],
        (
            [*_cells(f), k, f"{span / 1e6:.6g}", *numbers(demand)]
            for f in known
            for k, (span, demand) in enumerate(zip(f.segment_ns, f.segment_demand, strict=True))
        ),
    )
    _replace(base.with_name(f"{base.name}.profiles.csv"), profiles.encode())
    _replace(base.with_name(f"{base.name}.segments.csv"), segments.encode())


CORUN_COLUMNS = [
    "run", *KEYS, "start_ms", "end_ms", "began_s", "dispatched_ms", "lane", "units", "queue_n",
    "segment_ends_ms",
]  # fmt: skip


def corun_text(rows: Iterable[CoRun], *, header: bool = True) -> str:
    """The lines of `BASE.coruns.csv`; without `header` they can be appended to it."""
    return _text(
        CORUN_COLUMNS if header else None,
        (
            [
                row.run, *_cells(row), _ms(row.start_ms), _ms(row.end_ms), _ms(row.began_s),
                _ms(row.dispatched_ms), "" if row.lane is None else row.lane, ";".join(map(str, row.units)),
                "" if row.queue_n is None else row.queue_n, ";".join(map(_ms, row.segment_ends_ms)),
            ]
            for row in rows
        ),
    )  # fmt: skip


def _cells(entry: WorkloadFeatures | CoRun) -> list[object]:
    return [workload_name(entry.variant), entry.variant.rows, f"{entry.share:g}"]


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _text(columns: list[str] | None, rows: Iterable[list[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if columns is not None:
        writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()


def _replace(path: Path, body: bytes) -> None:
    whole = path.with_name(path.name + ".part")
    try:
        whole.write_bytes(body)
        os.replace(whole, path)
    except OSError:
        whole.unlink(missing_ok=True)
        raise

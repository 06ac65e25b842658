"""What is measured and what it is keyed by: the bytes of the model, its variant, the share, the device."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec
from msgspec import Struct

from cotenant.domain import Axes, ModelSpec, SoloProfile, Variant
from cotenant.ports import LaneInfo

MAX_SAMPLES = 64
"""Most samples that are kept of a variant, spread evenly over its sorted spans."""


class DeviceFingerprint(Struct, frozen=True, kw_only=True, dict=True):
    """All that makes measurements of one device unfit for another. `lane_units` are the compute units of
    each lane: its layout and thread budgets."""

    kind: str
    name: str
    n_units: int
    lane_units: tuple[tuple[int, ...], ...]
    runtime: str
    system: str

    @cached_property
    def digest(self) -> str:
        """Short hash of every field, the same in every process."""
        return hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()[:16]


class SoloRecord(Struct, frozen=True, kw_only=True):
    """The solo latency of a variant, with samples (ns, ascending, at most `MAX_SAMPLES`) to draw from.

    `source` is the hash of the model file."""

    source: str
    profile: SoloProfile
    samples_ns: tuple[int, ...]


class PairRecord(Struct, frozen=True, kw_only=True):
    """How many times longer `victim` takes while `aggressor` runs back to back on another lane: the ratio of
    medians, from `n_samples` runs beside it."""

    victim_source: str
    victim: Variant
    aggressor_source: str
    aggressor: Variant
    ratio: float
    n_samples: int


class StoredProfiles:
    """Implements the `ProfileTable` port over records in memory."""

    def __init__(self, specs: Iterable[ModelSpec], records: Iterable[SoloRecord]) -> None:
        self._specs = {spec.name: spec for spec in specs}
        self._records = {record.profile.variant: record for record in records}

    def solo(self, variant: Variant) -> SoloProfile:
        return self._records[variant].profile

    def spec(self, model: str) -> ModelSpec:
        return self._specs[model]

    @property
    def records(self) -> Sequence[SoloRecord]:
        """Every record, in the order in which they came."""
        return tuple(self._records.values())

    def samples(self) -> Mapping[Variant, Sequence[int]]:
        """Sampled spans (ns) of every measured variant, for a simulated device."""
        return {variant: record.samples_ns for variant, record in self._records.items()}

    def renew(self, spec: ModelSpec, profiles: Sequence[SoloProfile]) -> None:
        self._records = {
            variant: record for variant, record in self._records.items() if variant.model != spec.name
        }
        self.add(spec, [SoloRecord(source="", profile=profile, samples_ns=()) for profile in profiles])

    def add(self, spec: ModelSpec, records: Iterable[SoloRecord]) -> None:
        """Take in a model loaded later; replaces what was known of it."""
        self._specs[spec.name] = spec
        self._records.update({record.profile.variant: record for record in records})


def cpu_fingerprint(
    lanes: Sequence[LaneInfo], n_cores: int, runtime: str = "onnxruntime"
) -> DeviceFingerprint:
    """The host CPU as these lanes use it. `runtime` is the distribution whose version counts."""
    try:
        release = version(runtime)
    except PackageNotFoundError:
        release = "none"
    return DeviceFingerprint(
        kind="cpu",
        name=_cpu_name(),
        n_units=n_cores,
        lane_units=tuple(lane.units for lane in lanes),
        runtime=f"{runtime} {release}",
        system=f"{platform.system()} {platform.machine()}",
    )


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine() or "unknown"


def source_hash(path: Path) -> str:
    """SHA-256 of the file; of external data only the location counts. Blocks for the reading."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def shape_key(variant: Variant) -> str:
    """The variant without its model, `4,seq=64`: the model is keyed by its bytes, never by its name."""
    return ",".join([str(variant.rows), *(f"{axis}={size}" for axis, size in variant.axes)])


def variant_of(model: str, shape: str) -> Variant:
    """The inverse of `shape_key`, for a model of any name."""
    rows, *axes = shape.split(",")
    pairs: Axes = tuple((axis, int(size)) for axis, _, size in (part.rpartition("=") for part in axes))
    return Variant(model, int(rows), pairs)

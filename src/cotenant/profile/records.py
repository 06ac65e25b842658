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


# --- features -------------------------------------------------------------------------------------

RESOURCES = ("compute", "bandwidth", "cache", "core")
"""What lanes of a CPU compete for: arithmetic, memory bandwidth, last-level cache, time on a core."""


class DeviceRates(Struct, frozen=True, kw_only=True):
    """What the device can do, measured by stressors that ran alone. `core_*`: one core; `bytes_per_s`: all
    cores together reading memory; `cache_bytes`: the last-level cache; `lane_cores`: cores of a lane."""

    core_flop_per_s: float
    core_bytes_per_s: float
    bytes_per_s: float
    cache_bytes: int
    lane_cores: int = 1

    @property
    def lane_flop_per_s(self) -> float:
        """Of all cores of a lane."""
        return self.core_flop_per_s * self.lane_cores


class Cost(Struct, frozen=True, kw_only=True):
    """What a run must do, counted from the graph. A multiply-add is two operations, an element-wise result
    one. `moved_bytes`: each operator's weights and activations, read and written once, whatever the caches
    hold. `held_bytes`: weights touched plus the largest operator's activations: the working set."""

    flops: float = 0.0
    conv_flops: float = 0.0
    matmul_flops: float = 0.0
    weight_bytes: float = 0.0
    moved_bytes: float = 0.0
    held_bytes: float = 0.0
    n_operators: int = 0


class SegmentRecord(Struct, frozen=True, kw_only=True):
    """A contiguous part of a run: its solo span (ns) and what it does meanwhile."""

    solo_ns: float
    cost: Cost


class ProbeRecord(Struct, frozen=True, kw_only=True):
    """A model beside a stressor of `resource` that did work `intensity` (0..1] of the time: how many times
    longer the model took, and a unit of the stressor's work (None: it ended none meanwhile). `n_samples`:
    runs of the model beside it."""

    resource: str
    intensity: float
    slowdown: float
    stressor_slowdown: float | None
    n_samples: int


class Quiet(Struct, frozen=True, kw_only=True):
    """How quiet the machine was. `spread`: of a fixed piece of work, its 90 % quantile over its median,
    less 1; `others`, `stolen`: cores used meanwhile by other processes and withheld by the hypervisor."""

    spread: float
    others: float
    stolen: float


class FeatureRecord(Struct, frozen=True, kw_only=True):
    """What is known of a variant besides its solo latency. `cost` comes from the graph; the rest only if it
    was `measured`, and is empty where the runtime does not tell. `busy_ns`: CPU time of a solo run per core
    of its lane; `cores`: the cores kept busy meanwhile, as a share of the lane's. Only some variants of a
    model have these two, `probes` and `quiet`."""

    source: str
    variant: Variant
    solo_ns: float
    cost: Cost
    share: float = 1.0
    measured: bool = False
    segments: tuple[SegmentRecord, ...] = ()
    busy_ns: float | None = None
    cores: float | None = None
    probes: tuple[ProbeRecord, ...] = ()
    quiet: Quiet | None = None


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

"""Settings of the arrival processes, and what makes them sensible. `docs/workloads.md` explains each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROCESSES = ("poisson", "gamma", "trace", "mmpp", "diurnal", "flash")
Complaint = tuple[str, str]
PREFIXES = {"burst_": "mmpp", "diurnal_": "diurnal", "flash_": "flash"}
"""Keys that begin like this belong to one process."""
ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficShape:
    """Keys of `[[model]]` and `[phase.model.NAME]` that say how arrivals are spread over time. Instants are
    seconds from the start of the run."""

    cv: float = 1.0
    """`gamma`: coefficient of variation of the gaps."""
    column: str | None = None
    """`trace`: column of the file; found by name when not given."""
    offset_s: float = 0.0
    """`trace`: where in the recording the replay begins, seconds of the recording."""
    burst_ratio: tuple[float, ...] = (4.0,)
    """`mmpp`: rate in a burst / mean rate; a list for several kinds of burst."""
    burst_share: tuple[float, ...] = (0.1,)
    """`mmpp`: share of time (0..1) spent in that kind of burst."""
    burst_s: tuple[float, ...] = (1.0,)
    """`mmpp`: mean length of that kind of burst, seconds."""
    diurnal_amplitude: float = 0.5
    """`diurnal`: largest departure from the mean rate, as a share of it (0..1)."""
    diurnal_period_s: float = 60.0
    """`diurnal`: length of a day, seconds."""
    diurnal_phase: float = 0.0
    """`diurnal`: where in the day the run begins, in days; 0: at the mean, rising; 0.25: at the peak."""
    flash_factor: float = 5.0
    """`flash`: rate at the height of the crowd / rate before it."""
    flash_at_s: float | None = None
    """`flash`: when the rate begins to rise, seconds."""
    flash_s: float | None = None
    """`flash`: from the first rise to the first fall, seconds."""
    flash_ramp_s: float = 0.0
    """`flash`: how long rise and fall each take, seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic(TrafficShape):
    """How requests of one model arrive from `from_s` on. `rate_per_s` is the mean; 0 with a trace means
    `speed` times as fast as recorded."""

    from_s: float
    rate_per_s: float
    process: str = "poisson"
    file: Path | None = None
    speed: float = 1.0


def complaints(process: str, rate_per_s: float, file: object, shape: TrafficShape) -> Iterator[Complaint]:
    """What is wrong with these settings: (key, message); only keys of the process itself are judged."""
    if rate_per_s < 0:
        yield "rate_per_s", "must not be negative"
    if shape.cv <= 0:
        yield "cv", "must be greater than 0"
    if process == "trace":
        if file is None:
            yield "arrivals", '"trace" needs `file`'
        if shape.offset_s < 0:
            yield "offset_s", "must be 0 or more"
    elif process == "mmpp":
        yield from _burst_complaints(shape)
    elif process == "diurnal":
        if not 0 <= shape.diurnal_amplitude <= 1:
            yield "diurnal_amplitude", "must be from 0 to 1, a share of the mean rate"
        if shape.diurnal_period_s <= 0:
            yield "diurnal_period_s", "must be greater than 0"
    elif process == "flash":
        yield from _flash_complaints(shape)


def _burst_complaints(shape: TrafficShape) -> Iterator[Complaint]:
    n = len(shape.burst_ratio)
    for key in ("burst_ratio", "burst_share", "burst_s"):
        values = getattr(shape, key)
        if not values or len(values) != n:
            yield key, f"must have as many entries as burst_ratio ({n}), one per kind of burst, at least 1"
            return
        if min(values) <= 0:
            yield key, "must be greater than 0"
    if min(shape.burst_ratio) <= 1:
        yield "burst_ratio", "must be greater than 1: in a burst the rate is above the mean"
    if sum(shape.burst_share) >= 1:
        yield "burst_share", "must leave some time outside bursts: less than 1 in all"
    taken = sum(ratio * share for ratio, share in zip(shape.burst_ratio, shape.burst_share, strict=True))
    if taken > 1 + ROUNDING:
        yield (
            "burst_ratio",
            f"x burst_share must be at most 1 in all, not {taken:g}: bursts alone would exceed the mean rate",
        )


def _flash_complaints(shape: TrafficShape) -> Iterator[Complaint]:
    if shape.flash_at_s is None or shape.flash_s is None:
        missing = "flash_at_s" if shape.flash_at_s is None else "flash_s"
        yield "arrivals", f'"flash" needs `{missing}`'
        return
    if shape.flash_at_s < 0:
        yield "flash_at_s", "must be 0 or more"
    if shape.flash_s <= 0:
        yield "flash_s", "must be greater than 0"
    if not 0 <= shape.flash_ramp_s <= shape.flash_s:
        yield "flash_ramp_s", "must be from 0 to flash_s"
    if shape.flash_factor <= 0:
        yield "flash_factor", "must be greater than 0"

"""Profiles of a twin, measured as those of a device: through its executor, in virtual time, and kept.

How this works. Every variant runs alone, for its solo span, the spans of its segments and what counters say
of each (SMs in use, memory bandwidth in use: a GPU has both). Then it runs beside each stressor, back to back
on another lane: how much longer it takes is its sensitivity, how much longer the stressor's runs take its
pressure (logarithms). N models cost N measurements. Nothing is read from the kernels themselves. What was
measured lies in the store, keyed by a hash of the kernels, the device, the noise and the law.
"""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
from msgspec import Struct

from cotenant.clock import VirtualClock
from cotenant.domain import Completion, Event, ModelSpec, Progress, Variant
from cotenant.ports import Sink
from cotenant.profile.drive_lanes import LaneDriver
from cotenant.profile.features import FeatureTable, WorkloadFeatures
from cotenant.profile.measure import Budget, Subject, measure_solo
from cotenant.profile.records import DeviceFingerprint, SoloRecord
from cotenant.simulate.driver import VirtualTimers
from cotenant.simulate.twin.device import LAW_VERSION, Noise, Programs
from cotenant.simulate.twin.executor import TwinDevice
from cotenant.simulate.twin.stressors import STRESSES, add_stressors, stress_spec, stress_variant

DEMANDS = ("compute", "bandwidth")
"""Share (0..1) of the SMs and of the memory bandwidth in use."""
STATICS = (
    "operations",
    *(f"sensitivity_{resource}_{level}" for resource, level in STRESSES),
    *(f"pressure_{resource}_{level}" for resource, level in STRESSES),
)
SOLO = Budget(per_variant_s=0.5, min_runs=10, min_slow_runs=5, max_runs=200)
COUNTED_RUNS = 5
STRESSED_RUNS, STRESSOR_RUNS = 3, 2
"""Fewest runs of a model, and of the stressor, beside each other."""
SEED = 20261123
METHOD_VERSION = 1
"""Of this measurement: raise it with every change, and kept profiles are measured anew."""


class VariantProfile(Struct, frozen=True, kw_only=True):
    """What was measured of a variant. `segment_demand`: n_segments x DEMANDS."""

    solo: SoloRecord
    statics: tuple[float, ...]
    segment_ns: tuple[float, ...]
    segment_demand: tuple[tuple[float, ...], ...]

    def features(self) -> WorkloadFeatures:
        """As predictors take them."""
        spans = np.array(self.segment_ns)
        mean = spans @ np.array(self.segment_demand) / spans.sum()
        return WorkloadFeatures(
            variant=self.solo.profile.variant,
            share=1.0,
            solo_ns=float(self.solo.profile.median_ns),
            demand=tuple(mean.tolist()),
            statics=self.statics,
            segment_ns=self.segment_ns,
            segment_demand=self.segment_demand,
        )


_DECODER = msgspec.json.Decoder(tuple[VariantProfile, ...])


def twin_fingerprint(programs: Programs, n_lanes: int) -> DeviceFingerprint:
    """The simulated device, for reports and profiles."""
    return DeviceFingerprint(
        kind="twin",
        name=programs.spec.name,
        n_units=programs.spec.n_sms,
        lane_units=((0,),) * n_lanes,
        runtime=f"twin law {LAW_VERSION}",
        system="simulated",
    )


def feature_table(profiles: Sequence[VariantProfile]) -> FeatureTable:
    """Features of every variant."""
    table = FeatureTable(DEMANDS, STATICS)
    for profile in profiles:
        table.add(profile.features())
    return table


def profile_of(spec: ModelSpec, programs: Programs, noise: Noise, folder: Path) -> tuple[VariantProfile, ...]:
    """The profile of a model's variants, kept in `folder`, else measured, which takes a second or less.
    `programs` has them already. Raises OSError when the folder cannot be used."""
    source = digest(spec, programs, noise)
    path = folder / f"{source[:32]}.json"
    found = kept(path, _DECODER)
    if found is None:
        found = measure(spec, programs, noise, source)
        keep(path, found)
    return tuple(_renamed(profile, spec.name) for profile in found)


# --- keeping --------------------------------------------------------------------------------------


def digest(spec: ModelSpec, programs: Programs, noise: Noise) -> str:
    """Of everything that the measurement depends on, but not the model's name."""
    table, _ = programs.tables()
    told = hashlib.sha256()
    versions = LAW_VERSION, METHOD_VERSION, SEED, COUNTED_RUNS, STRESSED_RUNS, STRESSOR_RUNS, STRESSES
    told.update(repr((versions, astuple(SOLO), astuple(programs.spec), astuple(programs.law))).encode())
    told.update(repr(astuple(noise)).encode())
    for variant in spec.variants():
        program = programs.of[variant]
        ends = tuple(end - program.first for end in program.ends)
        told.update(repr((variant.rows, variant.axes, ends)).encode())
        told.update(table[program.first : program.ends[-1]].tobytes())
    return told.hexdigest()


T = TypeVar("T")


def kept(path: Path, decoder: msgspec.json.Decoder[T]) -> T | None:
    """None where there is nothing, or nothing that can be read: it is measured again then."""
    try:
        return decoder.decode(path.read_bytes())
    except (FileNotFoundError, msgspec.MsgspecError):
        return None


def keep(path: Path, found: object) -> None:
    """Whole or not at all: several processes may measure at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.stem}-", delete=False) as file:
        try:
            file.write(msgspec.json.encode(found))
            file.close()
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def _renamed(profile: VariantProfile, model: str) -> VariantProfile:
    """Under the name that the scenario at hand gives the model."""
    solo = profile.solo.profile
    variant = Variant(model, solo.variant.rows, solo.variant.axes)
    named = msgspec.structs.replace(profile.solo, profile=msgspec.structs.replace(solo, variant=variant))
    return msgspec.structs.replace(profile, solo=named)


# --- measuring --------------------------------------------------------------------------------------


def measure(spec: ModelSpec, programs: Programs, noise: Noise, source: str) -> tuple[VariantProfile, ...]:
    """Everything of every variant of a model, on a device of its own with the kernels of `programs`."""
    bench = _Bench(spec, programs, noise, source)
    return tuple(bench.profile(variant) for variant in spec.variants())


class _Counted:
    """Passes a device's events on, noting at each boundary what the counters say."""

    def __init__(self, device: TwinDevice, sink: Sink) -> None:
        self._device, self._sink = device, sink
        self.notes: list[tuple[float, float]] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, Progress | Completion):
            self.notes.append(self._device.counters())
        self._sink(event)


class _Bench:
    """A device with one model and the stressors, driven in virtual time."""

    def __init__(self, spec: ModelSpec, programs: Programs, noise: Noise, source: str) -> None:
        self._spec, self._source = spec, source
        own = programs.only(spec.variants())
        add_stressors(own)
        self._programs = own
        self._fingerprint = twin_fingerprint(own, 2)
        self._clock = VirtualClock()
        self._timers = VirtualTimers(self._clock)
        self._device = TwinDevice(own, self._timers, n_lanes=2, seed=SEED, noise=noise)
        self._driver = self._drive(self._device)
        self._telling = TwinDevice(own, self._timers, n_lanes=1, seed=SEED + 1, noise=noise, progress=True)
        self._stress_alone = {stress: self._stress_solo(*stress) for stress in STRESSES}

    def _drive(self, device: TwinDevice) -> LaneDriver:
        return LaneDriver(device, self._clock, self._pump)

    def _pump(self) -> None:
        self._clock.advance_to(self._timers.next_at())
        self._timers.run_next()

    def profile(self, variant: Variant) -> VariantProfile:
        """Of one variant."""
        subject = Subject(spec=self._one(variant), source=self._source, inputs=lambda _: {})
        (solo,) = measure_solo(self._driver, [subject], device=self._fingerprint, budget=SOLO).records
        spans, demand = self._segments(variant, float(solo.profile.median_ns))
        suffered, caused = [], []
        for stress in STRESSES:
            beside_ns, stressor_ns = self._beside(variant, *stress)
            suffered.append(math.log(beside_ns / solo.profile.median_ns))
            caused.append(math.log(stressor_ns / self._stress_alone[stress]))
        n_kernels = self._programs.of[variant].ends[-1] - self._programs.of[variant].first
        return VariantProfile(
            solo=solo,
            statics=(float(n_kernels), *suffered, *caused),
            segment_ns=spans,
            segment_demand=demand,
        )

    def _one(self, variant: Variant) -> ModelSpec:
        """The model as if it had this variant only."""
        return msgspec.structs.replace(
            self._spec,
            max_batch=variant.rows,
            row_buckets=(variant.rows,),
            axis_buckets=tuple((axis, (size,)) for axis, size in variant.axes),
        )

    def _segments(
        self, variant: Variant, solo_ns: float
    ) -> tuple[tuple[float, ...], tuple[tuple[float, ...], ...]]:
        """Median spans of the segments, adding up to `solo_ns`, and what of each resource they use."""
        driver = self._drive(self._telling)
        spans, used = [], []
        for _ in range(COUNTED_RUNS):
            before = self._telling.counters()
            counted = _Counted(self._telling, driver.post)
            self._telling.attach(counted)
            done = driver.run(self._spec, variant, {})
            ends = np.array([done.started_at, *done.segment_ended_at], np.float64)
            notes = np.array([before, *counted.notes])
            spans.append(np.diff(ends))
            used.append(np.diff(notes, axis=0) / np.diff(ends)[:, None])
        demand = np.median(used, axis=0) / (self._programs.spec.n_sms, 1.0)
        median = np.median(spans, axis=0)
        return (
            tuple((median * solo_ns / median.sum()).tolist()),
            tuple(tuple(row) for row in np.clip(demand, 0.0, 1.0).tolist()),
        )

    def _stress_solo(self, resource: str, level: int) -> float:
        spans = []
        for _ in range(COUNTED_RUNS):
            done = self._driver.run(stress_spec(resource), stress_variant(resource, level), {})
            spans.append(done.ended_at - done.started_at)
        return float(np.median(spans))

    def _beside(self, variant: Variant, resource: str, level: int) -> tuple[float, float]:
        """Median span of the model's runs and mean span of the stressor's, both back to back."""
        driver, stressor = self._driver, stress_variant(resource, level)
        spans: dict[int, list[int]] = {0: [], 1: []}
        fewest = {0: STRESSED_RUNS, 1: STRESSOR_RUNS}

        def begin(lane: int) -> None:
            if lane == 0:
                driver.start(0, self._spec, variant, {})
            else:
                driver.start(1, stress_spec(resource), stressor, {})

        begin(1)
        begin(0)
        n_running = 2
        while n_running:
            done = driver.wait(variant)
            open_lanes = any(len(spans[lane]) < fewest[lane] for lane in spans)
            if open_lanes:
                spans[done.lane].append(done.ended_at - done.started_at)
                begin(done.lane)
            else:
                n_running -= 1
        return float(np.median(spans[0])), float(np.mean(spans[1]))

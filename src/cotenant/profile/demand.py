"""From what was measured to what predictors get: demands, static features, sensitivity and pressure.

How this works. Demand is the share (0..1) of what the device has. The time in it is the solo span, or the
CPU time where that was measured and is less: the difference went to other processes.
- `compute`: operations over solo time x the peak of the lane's cores; `core`: cores kept busy.
- `cache`: the working set over the last-level cache.
- `bandwidth`: counted bytes from memory (`segments.memory_bytes`) over solo time x the peak of all cores.
  Where the bandwidth stressor was slowed by a factor f, the model took at least (1 - 1/f) of that stressor's
  own bandwidth. The larger of the two counts: counting misses what a cache fetches in vain, the stressor
  misses what both could have at once.
Segments have their own demands by the same rules; one factor per variant makes their bandwidth agree with
what the stressor said. Between the two probed variants of a model, probes are interpolated in log size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cotenant.domain import NS_PER_S
from cotenant.profile.features import FeatureTable, WorkloadFeatures, variant_size
from cotenant.profile.records import RESOURCES, Cost, DeviceRates, FeatureRecord
from cotenant.profile.segments import memory_bytes

COSTS = ("gflop", "weight_mb", "moved_mb", "held_mb", "flop_per_byte", "conv_share", "matmul_share")
"""Static features from the graph. All but the shares are positive and of any scale."""
SENSITIVITY, PRESSURE = "sensitivity_", "pressure_"
"""Prefixes of log slowdowns beside a stressor of full intensity: of the model, and of the stressor."""
STATICS = (*COSTS, *(SENSITIVITY + name for name in RESOURCES), *(PRESSURE + name for name in RESOURCES))
SMALLEST = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Probes:
    """Of one variant, in the order of RESOURCES; NaN is "not measured"."""

    sensitivity: tuple[float, ...]
    pressure: tuple[float, ...]
    cores: float


UNKNOWN = Probes(
    sensitivity=(math.nan,) * len(RESOURCES), pressure=(math.nan,) * len(RESOURCES), cores=math.nan
)


def feature_table(records: Iterable[FeatureRecord], rates: DeviceRates | None) -> FeatureTable:
    """Features of every record. Without `rates`, which only a measured device has, demands are NaN."""
    table = FeatureTable(RESOURCES, STATICS)
    of_model: dict[str, list[FeatureRecord]] = {}
    for record in records:
        of_model.setdefault(record.variant.model, []).append(record)
    for known in of_model.values():
        for record in known:
            table.add(_workload(record, _probes(record, known), rates))
    return table


def _workload(record: FeatureRecord, probes: Probes, rates: DeviceRates | None) -> WorkloadFeatures:
    span_ns = min(record.solo_ns, record.busy_ns or record.solo_ns)
    demand = _demand(record.cost, span_ns, record, probes, rates)
    probed = _probed_bandwidth(probes, rates) if rates is not None else 0.0
    segments = [
        _agreed(
            _demand(part.cost, part.solo_ns * span_ns / record.solo_ns, record, probes, rates), demand, probed
        )
        for part in record.segments
    ]
    return WorkloadFeatures(
        variant=record.variant,
        share=record.share,
        solo_ns=record.solo_ns,
        demand=_agreed(demand, demand, probed),
        statics=(*_costs(record.cost), *probes.sensitivity, *probes.pressure),
        segment_ns=tuple(part.solo_ns for part in record.segments),
        segment_demand=tuple(segments),
    )


def _demand(
    cost: Cost, span_ns: float, run: FeatureRecord, probes: Probes, rates: DeviceRates | None
) -> tuple[float, ...]:
    """Of a part of a run, in the order of RESOURCES, by counting."""
    if rates is None:
        return (math.nan,) * len(RESOURCES)
    seconds = max(span_ns, 1.0) / NS_PER_S
    read = memory_bytes(cost, run.cost, rates.cache_bytes)
    return (
        min(1.0, cost.flops / seconds / rates.lane_flop_per_s),
        min(1.0, read / seconds / rates.bytes_per_s),
        min(1.0, cost.held_bytes / rates.cache_bytes),
        1.0 if math.isnan(probes.cores) else probes.cores,
    )


def _probed_bandwidth(probes: Probes, rates: DeviceRates) -> float:
    """Demand that the bandwidth stressor's slowdown shows; 0 without one."""
    pressure = probes.pressure[RESOURCES.index("bandwidth")]
    if math.isnan(pressure) or pressure <= 0.0:
        return 0.0
    return (1.0 - math.exp(-pressure)) * rates.core_bytes_per_s / rates.bytes_per_s


def _agreed(part: tuple[float, ...], whole: tuple[float, ...], probed: float) -> tuple[float, ...]:
    """The demand of a part of a run with as many times the bandwidth as makes that of the `whole` reach what
    was `probed`; where no bandwidth at all was counted, the probed one throughout."""
    at = RESOURCES.index("bandwidth")
    counted = whole[at]
    bandwidth = part[at] * max(1.0, probed / counted) if counted > 0.0 else max(part[at], probed)
    return (*part[:at], min(bandwidth, 1.0), *part[at + 1 :])


def _costs(cost: Cost) -> tuple[float, ...]:
    """In the order of COSTS."""
    flops = max(cost.flops, 1.0)
    scales = (
        cost.flops / 1e9,
        cost.weight_bytes / 1e6,
        cost.moved_bytes / 1e6,
        cost.held_bytes / 1e6,
        cost.flops / max(cost.moved_bytes, 1.0),
    )
    return (*(max(SMALLEST, value) for value in scales), cost.conv_flops / flops, cost.matmul_flops / flops)


# --- probes ---------------------------------------------------------------------------------------


def _probes(record: FeatureRecord, known: Sequence[FeatureRecord]) -> Probes:
    """Those of the record, else between its probed neighbours of the same model in log size."""
    if record.probes:
        return _own(record)
    size = math.log(variant_size(record.variant))
    probed = [(math.log(variant_size(other.variant)), _own(other)) for other in known if other.probes]
    probed.sort(key=lambda entry: entry[0])
    if not probed:
        return UNKNOWN
    below = max(
        (entry for entry in probed if entry[0] <= size), default=probed[0], key=lambda entry: entry[0]
    )
    above = min(
        (entry for entry in probed if entry[0] >= size), default=probed[-1], key=lambda entry: entry[0]
    )
    gap = above[0] - below[0]
    share = (size - below[0]) / gap if gap > 0 else 0.0

    def between(low: float, high: float) -> float:
        return low + share * (high - low)

    return Probes(
        sensitivity=tuple(map(between, below[1].sensitivity, above[1].sensitivity)),
        pressure=tuple(map(between, below[1].pressure, above[1].pressure)),
        cores=between(below[1].cores, above[1].cores),
    )


def _own(record: FeatureRecord) -> Probes:
    sensitivity, pressure = [], []
    for resource in RESOURCES:
        probes = [probe for probe in record.probes if probe.resource == resource]
        suffered = [(probe.intensity, probe.slowdown) for probe in probes]
        caused = [(p.intensity, p.stressor_slowdown) for p in probes if p.stressor_slowdown is not None]
        if resource == "core":  # a stressor that often sleeps is let in sooner: only full intensity counts
            caused = [max(caused)] if caused else []
        sensitivity.append(_slope(suffered))
        pressure.append(sum(math.log(s) for _, s in caused) / len(caused) if caused else math.nan)
    cores = math.nan if record.cores is None else record.cores
    return Probes(sensitivity=tuple(sensitivity), pressure=tuple(pressure), cores=cores)


def _slope(points: Sequence[tuple[float, float]]) -> float:
    """Log slowdown at full intensity, by least squares through the origin over all intensities."""
    norm = sum(intensity**2 for intensity, _ in points)
    return sum(i * math.log(s) for i, s in points) / norm if norm else math.nan

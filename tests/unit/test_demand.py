"""What predictors get of what was measured."""

from __future__ import annotations

import math

import pytest
from msgspec import structs

from cotenant.domain import Variant
from cotenant.profile.demand import STATICS, feature_table
from cotenant.profile.records import (
    RESOURCES,
    Cost,
    DeviceRates,
    FeatureRecord,
    ProbeRecord,
    SegmentRecord,
)

MB = 1_000_000
RATES = DeviceRates(core_flop_per_s=100e9, core_bytes_per_s=20e9, bytes_per_s=40e9, cache_bytes=10 * MB)
COST = Cost(flops=3e8, conv_flops=2e8, matmul_flops=1e8, weight_bytes=40 * MB, moved_bytes=40 * MB,
            held_bytes=40 * MB, n_operators=3)  # fmt: skip


def record(rows: int = 1, **changes: object) -> FeatureRecord:
    plain = FeatureRecord(source="s", variant=Variant("m", rows), solo_ns=10e6, cost=COST)
    return structs.replace(plain, **changes)


def probes(**slowdowns: tuple[float, float]) -> tuple[ProbeRecord, ...]:
    return tuple(
        ProbeRecord(resource=r, intensity=1.0, slowdown=s, stressor_slowdown=p, n_samples=9)
        for r, (s, p) in slowdowns.items()
    )


def test_demand_is_counted_work_over_what_the_device_can_do() -> None:
    entry = feature_table([record()], RATES).of(Variant("m", 1))
    assert dict(zip(RESOURCES, entry.demand, strict=True)) == pytest.approx(
        {"compute": 0.3, "bandwidth": 0.1, "cache": 1.0, "core": 1.0}
    )
    statics = dict(zip(STATICS, entry.statics, strict=True))
    assert statics["gflop"] == pytest.approx(0.3)
    assert statics["weight_mb"] == 40.0
    assert statics["conv_share"] == pytest.approx(2 / 3)
    assert math.isnan(statics["sensitivity_bandwidth"])


def test_a_lane_of_several_cores_can_do_as_much_more() -> None:
    entry = feature_table([record()], structs.replace(RATES, lane_cores=2)).of(Variant("m", 1))
    assert entry.demand[0] == pytest.approx(0.15)


def test_every_feature_of_scale_is_positive_even_of_a_model_that_does_nothing() -> None:
    entry = feature_table([record(cost=Cost())], RATES).of(Variant("m", 1))
    assert all(value > 0 for value in entry.statics[:5])
    assert all(0 <= value <= 1 for value in entry.demand)


def test_a_model_that_fits_the_cache_needs_no_bandwidth() -> None:
    fitting = structs.replace(COST, held_bytes=2.0 * MB, weight_bytes=2.0 * MB)
    entry = feature_table([record(cost=fitting)], RATES).of(Variant("m", 1))
    assert entry.demand[RESOURCES.index("bandwidth")] == 0.0
    pressing = record(cost=fitting, probes=probes(bandwidth=(1.0, 2.0)))
    entry = feature_table([pressing], RATES).of(Variant("m", 1))
    assert entry.demand[RESOURCES.index("bandwidth")] == pytest.approx(0.25)


def test_bandwidth_that_the_stressor_missed_counts_where_it_is_more() -> None:
    parts = (SegmentRecord(solo_ns=10e6, cost=COST),)
    found = record(probes=probes(bandwidth=(1.5, 2.0)), cores=0.9, segments=parts)
    entry = feature_table([found], RATES).of(Variant("m", 1))
    at = RESOURCES.index("bandwidth")
    assert entry.demand[at] == pytest.approx(0.25)  # half of the stressor's 20 GB/s, of 40
    assert entry.segment_demand[0][at] == pytest.approx(0.25)
    assert entry.demand[RESOURCES.index("core")] == 0.9


def test_time_that_other_processes_took_does_not_lower_the_demand() -> None:
    parts = (SegmentRecord(solo_ns=10e6, cost=COST),)
    entry = feature_table([record(busy_ns=5e6, segments=parts)], RATES).of(Variant("m", 1))
    assert entry.demand[:2] == pytest.approx((0.6, 0.2))
    assert entry.segment_demand[0] == entry.demand
    longer = feature_table([record(busy_ns=20e6)], RATES).of(Variant("m", 1))
    assert longer.demand[:2] == pytest.approx((0.3, 0.1))


def test_sensitivity_and_pressure_are_log_slowdowns() -> None:
    halves = structs.replace(probes(cache=(math.exp(0.2), 1.0))[0], intensity=0.5)
    found = record(probes=(halves, *probes(cache=(math.exp(0.4), 1.0), core=(2.0, 1.8))))
    statics = dict(zip(STATICS, feature_table([found], RATES).of(Variant("m", 1)).statics, strict=True))
    assert statics["sensitivity_cache"] == pytest.approx(0.4)
    assert statics["sensitivity_core"] == pytest.approx(math.log(2.0))
    assert statics["pressure_core"] == pytest.approx(math.log(1.8))


def test_variants_between_the_probed_ones_are_interpolated_in_log_size() -> None:
    known = [
        record(1, probes=probes(cache=(1.0, 1.0)), cores=1.0),
        record(2),
        record(8, probes=probes(cache=(math.exp(0.6), 1.0)), cores=0.7),
    ]
    entry = feature_table(known, RATES).of(Variant("m", 2))
    assert entry.statics[STATICS.index("sensitivity_cache")] == pytest.approx(0.2)
    assert entry.demand[RESOURCES.index("core")] == pytest.approx(0.9)


def test_without_rates_of_the_device_only_what_the_graph_says_is_known() -> None:
    entry = feature_table([record()], None).of(Variant("m", 1))
    assert all(map(math.isnan, entry.demand))
    assert entry.statics[0] == pytest.approx(0.3)

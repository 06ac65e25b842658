"""Profiles survive in one file, keyed by what was measured and where."""

from __future__ import annotations

import sqlite3
import subprocess
import sys

import msgspec
import pytest

from cotenant.domain import ModelSpec, SoloProfile, Variant
from cotenant.ports import LaneInfo
from cotenant.profile.export import from_json, load_profile, scenario_profile, to_json
from cotenant.profile.records import (
    Cost,
    DeviceFingerprint,
    DeviceRates,
    FeatureRecord,
    PairRecord,
    ProbeRecord,
    Quiet,
    SegmentRecord,
    SoloRecord,
    StoredProfiles,
    cpu_fingerprint,
    shape_key,
    source_hash,
    variant_of,
)
from cotenant.profile.store import ProfileStore, ProfileStoreError

DEVICE = DeviceFingerprint(
    kind="cpu", name="test", n_units=2, lane_units=((0,), (1,)), runtime="none 0", system="Linux x86_64"
)
VARIANT = Variant("bert", 4, (("seq", 64),))


def record(variant: Variant = VARIANT, median_ns: int = 5_000_000, source: str = "aa") -> SoloRecord:
    profile = SoloProfile(
        variant=variant,
        share=1.0,
        median_ns=median_ns,
        spread_ns=100_000,
        n_samples=12,
        quantiles_ns=((0.9, median_ns + 300_000),),
    )
    return SoloRecord(
        source=source, profile=profile, samples_ns=(median_ns - 1000, median_ns, median_ns + 1000)
    )


def pair(victim: str = "bert", aggressor: str = "dlrm", ratio: float = 1.4) -> PairRecord:
    return PairRecord(
        victim_source="aa",
        victim=Variant(victim, 1),
        aggressor_source="bb",
        aggressor=Variant(aggressor, 1),
        ratio=ratio,
        n_samples=9,
    )


def test_a_profile_comes_back_as_it_was_stored(tmp_path):
    with ProfileStore(tmp_path / "p.sqlite") as store:
        store.put_solo(record(), DEVICE)
    with ProfileStore(tmp_path / "p.sqlite") as store:
        assert store.get_solo("aa", VARIANT, DEVICE) == record()


def test_a_profile_is_found_by_its_bytes_under_any_model_name(tmp_path):
    with ProfileStore(tmp_path / "p.sqlite") as store:
        store.put_solo(record(), DEVICE)
        renamed = msgspec.structs.replace(VARIANT, model="other")
        found = store.get_solo("aa", renamed, DEVICE)
        assert found is not None
        assert found.profile.variant == renamed
        assert store.get_solo("bb", VARIANT, DEVICE) is None


def test_a_profile_of_another_device_share_or_shape_is_not_found(tmp_path):
    other = msgspec.structs.replace(DEVICE, lane_units=((0, 1),))
    with ProfileStore(tmp_path / "p.sqlite") as store:
        store.put_solo(record(), DEVICE)
        assert store.get_solo("aa", VARIANT, other) is None
        assert store.get_solo("aa", VARIANT, DEVICE, share=0.5) is None
        assert store.get_solo("aa", Variant("bert", 4, (("seq", 32),)), DEVICE) is None


def test_a_newer_measurement_replaces_the_older(tmp_path):
    with ProfileStore(tmp_path / "p.sqlite") as store:
        store.put_solo(record(), DEVICE)
        store.put_solo(record(median_ns=6_000_000), DEVICE)
        found = store.get_solo("aa", VARIANT, DEVICE)
        assert found is not None
        assert found.profile.median_ns == 6_000_000


def test_slowdowns_come_back_under_the_askers_names(tmp_path):
    with ProfileStore(tmp_path / "p.sqlite") as store:
        store.put_pair(pair(), DEVICE)
        assert store.pairs({"bert": "aa", "dlrm": "bb"}, DEVICE) == [pair()]
        assert store.pairs({"x": "aa", "y": "bb"}, DEVICE) == [pair("x", "y")]
        assert store.pairs({"bert": "aa"}, DEVICE) == []


def test_the_overhead_belongs_to_the_device(tmp_path):
    with ProfileStore(tmp_path / "p.sqlite") as store:
        assert store.overhead(DEVICE) is None
        store.put_overhead(70_000, DEVICE)
        assert store.overhead(DEVICE) == 70_000


def test_a_damaged_file_is_named_and_the_way_out_told(tmp_path):
    path = tmp_path / "p.sqlite"
    path.write_bytes(b"this is no database" * 100)
    with pytest.raises(
        ProfileStoreError, match=r"p\.sqlite is damaged.*delete it and run `cotenant profile`"
    ):
        ProfileStore(path)


def test_a_damaged_row_is_named_too(tmp_path):
    path = tmp_path / "p.sqlite"
    with ProfileStore(path) as store:
        store.put_solo(record(), DEVICE)
        other = sqlite3.connect(path)
        other.execute("UPDATE solo SET samples = '{'")
        other.commit()
        other.close()
        with pytest.raises(ProfileStoreError, match="is damaged"):
            store.get_solo("aa", VARIANT, DEVICE)


def test_a_file_of_another_schema_is_refused(tmp_path):
    path = tmp_path / "p.sqlite"
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(ProfileStoreError, match="schema version 99, but this cotenant reads 1"):
        ProfileStore(path)


def test_a_path_that_cannot_be_written_is_explained(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ProfileStoreError, match="cannot be used"):
        ProfileStore(tmp_path / "file" / "p.sqlite")


def test_several_processes_write_one_new_file(tmp_path):
    code = (
        "import sys; from pathlib import Path\n"
        "from tests_store import put\n"
        "put(Path(sys.argv[1]), sys.argv[2])\n"
    )
    (tmp_path / "tests_store.py").write_text(
        "import msgspec\n"
        "from cotenant.domain import Variant\n"
        "from cotenant.ports import SoloProfile\n"
        "from cotenant.profile.records import DeviceFingerprint, SoloRecord\n"
        "from cotenant.profile.store import ProfileStore\n"
        f"DEVICE = msgspec.json.decode({msgspec.json.encode(DEVICE)!r}, type=DeviceFingerprint)\n"
        "def put(path, source):\n"
        "    with ProfileStore(path) as store:\n"
        "        for rows in range(1, 21):\n"
        "            profile = SoloProfile(variant=Variant('m', rows), share=1.0, median_ns=rows,"
        " spread_ns=0, n_samples=1)\n"
        "            store.put_solo(SoloRecord(source=source, profile=profile, samples_ns=(1,)), DEVICE)\n"
    )
    path = tmp_path / "p.sqlite"
    writers = [
        subprocess.Popen([sys.executable, "-c", code, str(path), source], cwd=tmp_path)
        for source in ("a", "b", "c")
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    with ProfileStore(path) as store:
        for source in ("a", "b", "c"):
            for rows in range(1, 21):
                assert store.get_solo(source, Variant("m", rows), DEVICE) is not None


def test_the_digest_covers_every_field():
    digests = {DEVICE.digest}
    for change in (
        {"kind": "cuda"},
        {"name": "x"},
        {"n_units": 3},
        {"lane_units": ((0,),)},
        {"runtime": "y"},
        {"system": "z"},
    ):
        digests.add(msgspec.structs.replace(DEVICE, **change).digest)
    assert len(digests) == 7


def test_this_machine_has_a_stable_fingerprint():
    lanes = [LaneInfo(index=0, units=(0,))]
    assert cpu_fingerprint(lanes, 2) == cpu_fingerprint(lanes, 2)
    assert cpu_fingerprint(lanes, 2).name


def test_a_shape_is_written_and_read_without_loss():
    variant = Variant("m", 8, (("a=b", 3), ("seq", 128)))
    assert variant_of("m", shape_key(variant)) == variant
    assert variant_of("m", "2") == Variant("m", 2)


def test_the_source_is_hashed_by_its_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"1")
    assert source_hash(tmp_path / "a") == source_hash(tmp_path / "b")


def test_a_variant_never_measured_raises_key_error():
    spec = ModelSpec(name="bert", slo_ns=None)
    profiles = StoredProfiles([spec], [record()])
    assert profiles.solo(VARIANT).median_ns == 5_000_000
    assert profiles.spec("bert") is spec
    with pytest.raises(KeyError):
        profiles.solo(Variant("bert", 8))
    with pytest.raises(KeyError):
        profiles.spec("x")


# --- the file beside a scenario ---------------------------------------------------------------------


def exported():
    specs = [ModelSpec(name="bert", slo_ns=10**8), ModelSpec(name="dlrm", slo_ns=None)]
    records = [record(), record(Variant("dlrm", 1), 3_000_000, "bb")]
    return scenario_profile(DEVICE, specs, records, [pair(), pair("dlrm", "bert", 0.97)], 70_000)


def test_an_exported_profile_reads_back_equal():
    profile = exported()
    assert from_json(to_json(profile)) == profile
    assert profile.overhead_ns == 70_000
    assert profile.records()[0] == record()
    assert profile.profiles().samples()[Variant("dlrm", 1)] == (2_999_000, 3_000_000, 3_001_000)


def test_a_slowdown_below_one_is_noise():
    assert exported().slowdown() == {("bert", "dlrm"): 1.4, ("dlrm", "bert"): 1.0}


def test_an_unreadable_export_is_named(tmp_path):
    path = tmp_path / "demo.profile.json"
    path.write_text(to_json(exported()).replace('"n":12', '"n":"many"'))
    with pytest.raises(ValueError, match=r"demo\.profile\.json cannot be read.*\$\.models"):
        load_profile(path)
    path.write_text(to_json(exported()).replace('"format": 1', '"format": 7'))
    with pytest.raises(ValueError, match="format 7, this cotenant reads 1"):
        load_profile(path)


# --- features ---------------------------------------------------------------------------------------


def features() -> FeatureRecord:
    cost = Cost(flops=1e9, weight_bytes=4e6, n_operators=7)
    return FeatureRecord(
        source="aa",
        variant=VARIANT,
        solo_ns=5e6,
        cost=cost,
        measured=True,
        segments=(SegmentRecord(solo_ns=5e6, cost=cost),),
        cores=0.9,
        probes=(
            ProbeRecord(resource="cache", intensity=0.5, slowdown=1.2, stressor_slowdown=None, n_samples=3),
        ),
        quiet=Quiet(spread=0.1, others=0.0, stolen=0.0),
    )


def test_features_come_back_as_they_were_stored_under_the_askers_name(tmp_path):
    with ProfileStore(tmp_path / "p.sqlite") as store:
        store.put_features(features(), DEVICE)
        renamed = msgspec.structs.replace(VARIANT, model="other")
        assert store.get_features("aa", VARIANT, DEVICE) == features()
        assert store.get_features("aa", renamed, DEVICE) == msgspec.structs.replace(
            features(), variant=renamed
        )
        assert store.get_features("bb", VARIANT, DEVICE) is None
        assert store.get_features("aa", VARIANT, DEVICE, share=0.5) is None


def test_the_rates_belong_to_the_device(tmp_path):
    rates = DeviceRates(core_flop_per_s=1e11, core_bytes_per_s=2e10, bytes_per_s=4e10, cache_bytes=1 << 25)
    with ProfileStore(tmp_path / "p.sqlite") as store:
        assert store.get_rates(DEVICE) is None
        store.put_rates(rates, DEVICE)
        assert store.get_rates(DEVICE) == rates


def test_a_file_from_before_there_were_features_gains_them(tmp_path):
    path = tmp_path / "p.sqlite"
    with ProfileStore(path) as store:
        store.put_solo(record(), DEVICE)
    old = sqlite3.connect(path)
    old.execute("DROP TABLE feature")
    old.execute("DROP TABLE rates")
    old.commit()
    old.close()
    with ProfileStore(path) as store:
        store.put_features(features(), DEVICE)
        assert store.get_solo("aa", VARIANT, DEVICE) == record()
        assert store.get_features("aa", VARIANT, DEVICE) == features()


def test_a_profile_nested_too_deeply_is_refused() -> None:
    """Found by `experiments/fuzz.py`."""
    with pytest.raises(ValueError, match="cannot be read"):
        from_json(b'{"models":[{"spec":' + b'{"a":' * 10_000)

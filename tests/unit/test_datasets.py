"""Data sets of co-runs, as files."""

from __future__ import annotations

from pathlib import Path

import pytest

from cotenant.domain import Axes, Variant
from cotenant.experiment.datasets import CoRun, DatasetError, read_dataset, write_dataset
from cotenant.profile.features import FeatureTable, WorkloadFeatures

PROFILES = "solo_ms,workload,demand_dram,feature_x\n2.5,a,0.5,7\n4,b,,\n"
CORUNS = "run,end_ms,workload\n0,3.5,a\n0,5,b\n"


def dataset(folder: Path, profiles: str = PROFILES, coruns: str = CORUNS, segments: str = "") -> Path:
    base = folder / "set"
    (folder / "set.profiles.csv").write_text(profiles)
    (folder / "set.coruns.csv").write_text(coruns)
    if segments:
        (folder / "set.segments.csv").write_text(segments)
    return base


def test_columns_are_found_by_name_and_batch_and_share_default_to_one(tmp_path: Path) -> None:
    found = read_dataset(dataset(tmp_path))
    assert found.steady
    first, second = found.runs["0"]
    assert (first.variant, first.share, first.span_ms) == (Variant("a", 1), 1.0, 3.5)
    entry = found.features.of(first.variant)
    assert (entry.solo_ns, entry.demand, entry.statics) == (2.5e6, (0.5,), (7.0,))
    missing = found.features.of(second.variant)
    assert missing.demand[0] != missing.demand[0]  # not a number: not measured


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    table = FeatureTable(("cpu", "dram"), ("mb",))
    table.add(
        WorkloadFeatures(
            variant=Variant("a", 4), share=0.5, solo_ns=3e6, demand=(0.25, 0.75), statics=(9.0,),
            segment_ns=(1e6, 2e6), segment_demand=((0.5, 0.5), (0.125, 0.875)),
        )
    )  # fmt: skip
    rows = [
        CoRun(
            run="7", variant=Variant("a", 4), share=0.5, start_ms=1.0, end_ms=4.5, began_s=12.5,
            dispatched_ms=0.5, lane=2, units=(0, 1), queue_n=1, segment_ends_ms=(2.0, 4.5),
        ),
        CoRun(run="7", variant=Variant("a", 4), share=0.5, start_ms=2.0, end_ms=5.0),
    ]  # fmt: skip
    base = tmp_path / "new" / "set"
    write_dataset(base, table, rows)
    found = read_dataset(base)
    assert found.runs == {"7": rows}
    assert list(found.features) == list(table)
    assert not found.steady


@pytest.mark.parametrize("axes", [(), (("seq", 64),), (("height", 8), ("width", 16))])
def test_axes_of_a_variant_are_kept_in_the_name_of_the_workload(tmp_path: Path, axes: Axes) -> None:
    variant = Variant("bert", 2, axes)
    table = FeatureTable()
    table.add(WorkloadFeatures(variant=variant, share=1.0, solo_ns=3e6))
    write_dataset(tmp_path / "set", table, [CoRun(run="0", variant=variant, share=1.0, end_ms=4.0)])
    assert read_dataset(tmp_path / "set").runs["0"][0].variant == variant


def test_a_workload_of_any_other_name_is_taken_as_it_is(tmp_path: Path) -> None:
    odd = "conv[3x3] (big)"
    profiles, coruns = f"workload,solo_ms\n{odd},2\n", f"run,workload,end_ms\n0,{odd},3\n"
    found = read_dataset(dataset(tmp_path, profiles, coruns))
    assert found.runs["0"][0].variant == Variant(odd, 1)


def test_writing_again_replaces_the_set_whichever_form_it_had(tmp_path: Path) -> None:
    table = FeatureTable()
    table.add(WorkloadFeatures(variant=Variant("a", 1), share=1.0, solo_ns=3e6))
    for end_ms, packed in ((4.0, False), (5.0, True), (6.0, False)):
        row = CoRun(run="0", variant=Variant("a", 1), share=1.0, end_ms=end_ms)
        write_dataset(tmp_path / "set", table, [row], packed=packed)
        assert read_dataset(tmp_path / "set").runs == {"0": [row]}
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"set.profiles.csv", "set.segments.csv", "set.coruns.csv"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"coruns": "run,workload\n0,a\n"}, r"coruns\.csv: there is no column 'end_ms'"),
        ({"coruns": "run,end_ms,workload\n0,x,a\n"}, "line 2: end_ms is 'x'"),
        ({"coruns": "run,end_ms,workload\n0,nan,a\n"}, "line 2: end_ms is 'nan'"),
        ({"coruns": "run,end_ms,workload\n0,3,zz\n"}, "no profile of workload 'zz', batch 1, share 1"),
        ({"coruns": "run,end_ms,workload\n"}, "there are no rows"),
        ({"coruns": "run,end_ms,start_ms,workload\n0,3,4,a\n"}, "later than the start"),
        ({"coruns": "run,end_ms,start_ms,workload\n0,3,1,a\n0,3,,a\n"}, "some rows have start_ms"),
        ({"coruns": "run,end_ms,workload\n0,3\n"}, "line 2: expected 3 columns"),
        ({"profiles": "workload,solo_ms\na,0\n"}, "line 2: solo_ms is '0'"),
        ({"profiles": "workload,solo_ms\na,\n"}, "solo_ms is empty"),
        ({"coruns": "run,end_ms,lane,workload\n0,3,inf,a\n"}, "line 2: lane is 'inf'"),
        ({"profiles": "workload,batch,solo_ms\na,inf,2\n"}, "line 2: batch is 'inf'"),
        ({"coruns": "run,end_ms,workload\n0,3," + "a" * 140_000}, "is not a CSV text"),
    ],
)
def test_a_broken_set_names_the_file_the_line_and_the_fault(tmp_path, changes, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        read_dataset(dataset(tmp_path, **changes))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"set\.profiles\.csv"):
        read_dataset(tmp_path / "set")


def test_features_of_an_unmeasured_variant_are_those_of_the_nearest_scaled_by_size() -> None:
    table = FeatureTable(("dram",))
    for rows, solo in ((1, 1e6), (8, 6e6)):
        table.add(WorkloadFeatures(variant=Variant("a", rows), share=1.0, solo_ns=solo, demand=(rows / 10,)))
    found = table.of(Variant("a", 4))
    assert (found.solo_ns, found.demand) == (3e6, (0.8,))
    with pytest.raises(KeyError, match="model 'b'"):
        table.of(Variant("b", 1))

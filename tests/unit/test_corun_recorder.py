"""Live dispatches as data sets: runs by overlap, files within bounds, failures that disturb nobody."""

from __future__ import annotations

import resource
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cotenant.domain import NS_PER_MS, NS_PER_S, Observation, Overlap, Prediction, Variant
from cotenant.experiment.corun_recorder import MAX_REMEMBERED, CoRunRecorder
from cotenant.experiment.datasets import CoRun, read_dataset
from cotenant.experiment.parts import N_PARTS, Parts
from cotenant.experiment.runs import RunGrouper
from cotenant.ports import LaneInfo
from cotenant.profile.features import FeatureTable, WorkloadFeatures

MS = NS_PER_MS
A = Variant("a", 1)
LANES = [LaneInfo(index=0, units=(0, 1)), LaneInfo(index=1, units=(2,))]
Span = tuple[int, int]


def observed(
    number: int, span: Span, beside: dict[int, Span] | None = None, *, variant: Variant = A, lane: int = 0,
    end_segment: int = 1, segment_ended_at: tuple[int, ...] = (), first_segment: int = 0,
) -> Observation:  # fmt: skip
    """A dispatch from `span[0]` to `span[1]` (ms), decided 1 ms before, beside others."""
    began, ended = span
    overlaps = tuple(
        Overlap(other, A, max(began, start) * MS, min(ended, end) * MS)
        for other, (start, end) in (beside or {}).items()
    )
    prediction = Prediction(
        issued_at=0, finish_at=(0,) * 5, slo_level=0.99, version=0, corunners=len(overlaps)
    )
    return Observation(
        dispatch_id=number, variant=variant, rows=1, lane=lane, share=1.0, decided_at=(began - 1) * MS,
        started_at=began * MS, ended_at=ended * MS, first_segment=first_segment, end_segment=end_segment,
        segment_ended_at=segment_ended_at, predictions=(prediction,), overlaps=overlaps,
    )  # fmt: skip


def table(*names: str, solo_ms: float = 5.0) -> FeatureTable:
    found = FeatureTable()
    for name in names or ("a",):
        found.add(WorkloadFeatures(variant=Variant(name, 1), share=1.0, solo_ns=solo_ms * 1e6))
    return found


def observations(spans: list[Span]) -> list[Observation]:
    """Dispatches of these spans, each knowing whom it overlapped, in the order of their ends."""
    numbered = dict(enumerate(spans))

    def meet(one: Span, other: Span) -> bool:
        return one[0] < other[1] and other[0] < one[1]

    found = [
        observed(i, span, {j: other for j, other in numbered.items() if j != i and meet(span, other)})
        for i, span in numbered.items()
    ]
    return sorted(found, key=lambda o: o.ended_at)


def ids(runs: list[list[Observation]]) -> list[list[int]]:
    return [sorted(o.dispatch_id for o in run) for run in runs]


# --- runs -------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 20)), min_size=1, max_size=25))
def test_a_run_is_a_maximal_busy_period(drawn: list[tuple[int, int]]) -> None:
    spans = [(begin, begin + length) for begin, length in drawn]
    grouper = RunGrouper()
    runs = [run for o in observations(spans) for run in grouper.add(o)]
    assert grouper.flush() == []
    assert sorted(i for run in ids(runs) for i in run) == list(range(len(spans)))
    periods = sorted((min(o.started_at for o in run), max(o.ended_at for o in run)) for run in runs)
    assert all(before[1] <= after[0] for before, after in pairwise(periods))
    for run in runs:  # without a gap inside
        reach = min(o.started_at for o in run)
        for o in sorted(run, key=lambda o: o.started_at):
            assert o.started_at < reach or o.started_at == min(p.started_at for p in run)
            reach = max(reach, o.ended_at)


def test_a_run_waits_for_what_is_still_in_flight() -> None:
    short, later, long = observations([(1, 100), (10, 20), (30, 40)])
    grouper = RunGrouper()
    assert grouper.add(short) == []
    assert grouper.add(later) == []
    assert ids(grouper.add(long)) == [[0, 1, 2]]


def test_a_long_run_is_cut_and_what_follows_is_not_waited_for_in_vain() -> None:
    chain = observations([(10 * i + 1, 10 * i + 15) for i in range(10)])
    grouper = RunGrouper(max_rows=4)
    runs = [run for o in chain for run in grouper.add(o)]
    assert ids(runs) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_a_co_runner_that_failed_delays_its_run_and_no_other() -> None:
    grouper = RunGrouper(patience_ns=NS_PER_S)
    assert grouper.add(observed(1, (10, 20), {2: (12, 30)})) == []  # 2 fails: never observed
    assert ids(grouper.add(observed(3, (40, 50)))) == [[3]]
    assert ids(grouper.add(observed(4, (1100, 1101)))) == [[1], [4]]


# --- rows and files ---------------------------------------------------------------------------------------


def record(base: Path, *seen: Observation, features: Callable[[], FeatureTable] = table) -> CoRunRecorder:
    recorder = CoRunRecorder(base, LANES, features)
    for o in seen:
        recorder.observed(o)
    recorder.close()
    return recorder


def test_a_dispatch_becomes_a_row_with_times_from_the_begin_of_its_run(tmp_path: Path) -> None:
    first = observed(1, (101, 140), {2: (121, 160)}, end_segment=2, segment_ended_at=(120 * MS, 140 * MS))
    second = observed(2, (121, 160), {1: (101, 140)}, lane=1)
    record(tmp_path / "set", first, second, observed(3, (2101, 2111)))
    assert read_dataset(tmp_path / "set-00001").runs == {
        "live-1": [
            CoRun(run="live-1", variant=A, share=1.0, start_ms=1, end_ms=40, began_s=0, dispatched_ms=0,
                  lane=0, units=(0, 1), queue_n=1, segment_ends_ms=(20, 40)),
            CoRun(run="live-1", variant=A, share=1.0, start_ms=21, end_ms=60, began_s=0, dispatched_ms=20,
                  lane=1, units=(2,), queue_n=1),
        ],
        "live-2": [
            CoRun(run="live-2", variant=A, share=1.0, start_ms=1, end_ms=11, began_s=2, dispatched_ms=0,
                  lane=0, units=(0, 1), queue_n=0),
        ],
    }  # fmt: skip


def test_preempted_and_resumed_dispatches_are_no_rows(tmp_path: Path) -> None:
    stopped = observed(1, (10, 20), end_segment=3, segment_ended_at=(20 * MS,))
    resumed = observed(2, (30, 50), first_segment=1, end_segment=3, segment_ended_at=(40 * MS, 50 * MS))
    recorder = record(tmp_path / "set", stopped, resumed, observed(3, (60, 70)))
    assert (recorder.counts.n_partial, recorder.counts.n_written) == (2, 1)
    assert read_dataset(tmp_path / "set-00001").n == 1


def test_workloads_without_a_profile_are_counted_and_left_out(tmp_path: Path) -> None:
    recorder = record(tmp_path / "set", observed(1, (10, 20)), observed(2, (30, 40), variant=Variant("b", 1)))
    assert (recorder.counts.n_unknown, recorder.counts.n_written) == (1, 1)
    assert read_dataset(tmp_path / "set-00001").n == 1


def test_where_nothing_was_dispatched_nothing_is_written(tmp_path: Path) -> None:
    record(tmp_path / "new" / "set")
    assert list(tmp_path.iterdir()) == []


def test_what_waits_to_be_written_is_bounded(tmp_path: Path) -> None:
    recorder = CoRunRecorder(tmp_path / "set", LANES, table, flush_s=1e6)
    for i in range(MAX_REMEMBERED + 7):
        recorder.observed(observed(i, (10 * i, 10 * i + 5)))
    assert recorder.counts.n_dropped == 7
    recorder.close()
    assert recorder.counts.n_written == MAX_REMEMBERED


def rows(n: int, run: str) -> list[CoRun]:
    return [CoRun(run=run, variant=A, share=1.0, start_ms=float(i), end_ms=i + 0.5) for i in range(n)]


def test_the_newest_parts_stay_within_the_limit_and_each_is_a_data_set(tmp_path: Path) -> None:
    limit = 40_000
    for _restart in range(3):
        parts = Parts(tmp_path / "set", limit)
        for n in range(100):
            parts.append(rows(20, f"run-{n}"), table())
            assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= limit
        parts.close()
    found = sorted(path.name for path in tmp_path.glob("*.coruns.csv"))
    assert N_PARTS - 2 <= len(found) <= N_PARTS + 1
    assert found[0] != "set-00001.coruns.csv"
    sets = [read_dataset(tmp_path / name.removesuffix(".coruns.csv")) for name in found]
    assert list(sets[-1].runs)[-1] == "run-99"
    assert all(len(rows) == 20 for one in sets for rows in one.runs.values())


def test_other_solo_times_begin_a_new_part(tmp_path: Path) -> None:
    parts = Parts(tmp_path / "set", 1_000_000)
    parts.append(rows(3, "0"), table())
    parts.append(rows(3, "1"), table())
    parts.append(rows(3, "2"), table("a", "b"))
    parts.append(rows(3, "3"), table("a", "b", solo_ms=6))
    parts.close()
    solos = [[entry.solo_ns for entry in read_dataset(tmp_path / f"set-0000{n}").features] for n in (1, 2, 3)]
    assert solos == [[5e6], [5e6, 5e6], [6e6, 6e6]]


# --- a disk that refuses ----------------------------------------------------------------------------------


@contextmanager
def files_no_larger_than(n_bytes: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_write_that_fails_halfway_leaves_whole_rows_and_recording_goes_on(tmp_path: Path) -> None:
    parts = Parts(tmp_path / "set", 1_000_000)
    parts.append(rows(20, "before"), table())
    with files_no_larger_than(1500), pytest.raises(OSError):
        parts.append(rows(100, "lost"), table())
    parts.append(rows(20, "after"), table())
    parts.close()
    assert list(read_dataset(tmp_path / "set-00001").runs) == ["before"]
    assert list(read_dataset(tmp_path / "set-00002").runs) == ["after"]


def test_a_disk_that_takes_nothing_leaves_nothing(tmp_path: Path) -> None:
    parts = Parts(tmp_path / "set", 1_000_000)
    with files_no_larger_than(20), pytest.raises(OSError):
        parts.append(rows(2, "lost"), table())
    assert list(tmp_path.iterdir()) == []


def test_failures_are_counted_and_told_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    told: list[str] = []
    tried = threading.Semaphore(0)

    def features() -> FeatureTable:
        tried.release()
        return table()

    base = tmp_path / "file" / "set"
    recorder = CoRunRecorder(base, LANES, features, complain=told.append, flush_s=0.001)
    for i in range(3):
        recorder.observed(observed(i, (10 * i, 10 * i + 5)))
        assert tried.acquire(timeout=30)
    recorder.close()
    recorder.close()
    assert recorder.counts.n_failed == 3
    assert len(told) == 1
    assert str(base) in told[0]

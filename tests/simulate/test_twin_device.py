"""The twin's law: the compiled device says what the reference says, and what a GPU is known to do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cotenant.domain import Variant
from cotenant.simulate.twin import kernels as kn
from cotenant.simulate.twin.device import SILENT, Law, Noise, Programs, State, segment_cuts
from cotenant.simulate.twin.reference import Job, ReferenceDevice
from cotenant.simulate.twin.specs import L4, V100, DeviceSpec


def made(rows: list[tuple[int, float, float]], spec: DeviceSpec = V100) -> kn.Kernels:
    """Kernels from (bound, SMs wanted, span alone)."""
    bound, loads, span = zip(*rows, strict=True)
    return kn.kernels(np.array(bound), np.array(loads, float), np.array(span, float), spec)


def run(jobs: list[Job], spec: DeviceSpec = V100) -> tuple[list[tuple[float, tuple[float, ...]]], State]:
    """Ends and boundaries by the compiled device, without noise."""
    programs = Programs(spec)
    for s, job in enumerate(jobs):
        program = programs.add(Variant(f"m{s}", 1), job.kernels, len(job.boundaries) + 1)
        job.boundaries = [end - program.first for end in program.ends[:-1]]
    state = State.idle(programs, len(jobs), SILENT, seed=0)
    found: dict[int, tuple[float, tuple[float, ...]]] = {}
    todo = sorted(range(len(jobs)), key=lambda s: jobs[s].at)
    while len(found) < len(jobs):
        until = jobs[todo[0]].at if todo else 1e18
        ended = state.advance(until)
        if ended >= 0:
            found[ended] = state.now, state.passed(ended, 0)[:-1]
            continue
        s = todo.pop(0)
        program = programs.of[Variant(f"m{s}", 1)]
        state.begin(s, program, 0, 0, len(program.ends), 0.0)
    return [found[s] for s in range(len(jobs))], state


a_kernel = st.tuples(
    st.sampled_from([kn.COMPUTE, kn.MEMORY, kn.UNKNOWN, kn.COPY_IN, kn.COPY_OUT]),
    st.one_of(st.integers(1, 79), st.integers(80, 700), st.sampled_from([0.5 * k for k in range(2, 400)])),
    st.integers(2_000, 300_000),
).map(lambda row: (row[0], 0.0 if row[0] >= kn.COPY_IN else float(row[1]), float(row[2])))


@st.composite
def jobs(draw: st.DrawFn) -> list[Job]:
    made_jobs = []
    for _ in range(draw(st.integers(1, 5))):
        rows = draw(st.lists(a_kernel, min_size=1, max_size=12))
        n_boundaries = draw(st.integers(0, min(3, len(rows) - 1)))
        at = float(draw(st.integers(0, 400_000)))
        made_jobs.append(Job(kernels=made(rows), at=at, boundaries=[0] * n_boundaries))
    return made_jobs


@given(jobs())
@settings(max_examples=200, deadline=None)
def test_the_compiled_device_agrees_with_the_reference(some: list[Job]) -> None:
    found, state = run(some)
    reference = ReferenceDevice(V100, some)
    expected = reference.run()
    for (end, passed), (end_there, passed_there) in zip(found, expected, strict=True):
        assert end == pytest.approx(end_there, rel=1e-6)
        assert passed == pytest.approx(passed_there, rel=1e-6)
    assert state.sm_ns == pytest.approx(reference.sm_ns, rel=1e-5)
    assert state.moved_ns == pytest.approx(reference.moved_ns, rel=1e-5)


def spans(*rows: list[tuple[int, float, float]], spec: DeviceSpec = V100) -> list[float]:
    """When each stream's kernels end, all begun at once."""
    return [end for end, _ in run([Job(kernels=made(one, spec)) for one in rows], spec)[0]]


FULL_CONV = [(kn.COMPUTE, 800.0, 500_000.0)] * 10


def test_kernels_that_fill_the_device_run_one_after_the_other() -> None:
    alone = spans(FULL_CONV)[0]
    together = max(spans(FULL_CONV, FULL_CONV))
    assert together == pytest.approx(2 * alone, rel=0.03)


def test_small_kernels_run_beside_each_other_for_nothing() -> None:
    small = [(kn.COMPUTE, 20.0, 50_000.0)] * 10
    alone = spans(small)[0]
    assert max(spans(small, small, small)) == pytest.approx(alone, rel=0.1)


def test_memory_bound_kernels_share_the_bandwidth() -> None:
    copying = [(kn.MEMORY, 40.0, 1_000_000.0)]
    alone = spans(copying)[0]
    law = Law()
    assert max(spans(copying, copying)) / alone == pytest.approx(1.7 + 0.85 * law.cache, rel=0.01)


def test_a_compute_bound_kernel_suffers_from_bandwidth_only_by_its_own_use() -> None:
    convolving = [(kn.COMPUTE, 40.0, 1_000_000.0)]
    copying = [(kn.MEMORY, 40.0, 1_000_000.0)]
    beside, other = spans(convolving, copying)
    assert 1.0 < beside / 1_000_000 < 1.1
    assert other / 1_000_000 > beside / 1_000_000


def test_what_arrives_behind_a_kernel_with_many_waves_waits_for_its_last() -> None:
    long = [(kn.COMPUTE, 80.0 * 10, 1_000_000.0)]
    short = [(kn.COMPUTE, 10.0, 20_000.0)]
    ends = [end for end, _ in run([Job(kernels=made(long)), Job(kernels=made(short), at=5_000.0)])[0]]
    assert ends[1] == pytest.approx(1_020_000, rel=0.01)


def test_blocks_that_found_no_place_take_sms_as_they_come_free() -> None:
    first = [(kn.COMPUTE, 60.0, 100_000.0)]
    second = [(kn.COMPUTE, 40.0, 100_000.0)]
    ends = spans(first, second)
    assert ends[0] == pytest.approx(100_000, rel=0.01)
    assert ends[1] == pytest.approx(200_000, rel=0.01)


def test_copies_of_one_direction_wait_for_each_other_and_disturb_no_kernel() -> None:
    ends = spans(
        [(kn.COPY_IN, 0.0, 50_000.0)], [(kn.COPY_IN, 0.0, 50_000.0)], [(kn.COPY_OUT, 0.0, 50_000.0)],
        [(kn.COMPUTE, 80.0, 60_000.0)],
    )  # fmt: skip
    assert ends == pytest.approx([50_000, 100_000, 50_000, 60_000])


def test_what_is_dropped_leaves_its_sms_and_its_copy_engine_to_what_waits() -> None:
    programs = Programs(V100)
    for name, row in (("copy", (kn.COPY_IN, 0.0, 50_000.0)), ("full", (kn.COMPUTE, 80.0, 50_000.0))):
        programs.add(Variant(name, 1), made([row]))
    state = State.idle(programs, 4, SILENT, seed=0)
    for stream, name in enumerate(("copy", "copy", "full", "full")):
        state.begin(stream, programs.of[Variant(name, 1)], stream, 0, 1, 0.0)
    assert state.advance(20_000.0) == -1
    state.drop(0)
    state.drop(2)
    ends = {state.advance(): state.now for _ in range(2)}
    assert ends == pytest.approx({1: 70_000.0, 3: 70_000.0})


def test_clocks_fall_when_the_power_is_above_the_cap() -> None:
    hot = [(kn.COMPUTE, 29.0, 1_000_000.0)]
    streaming = [(kn.MEMORY, 29.0, 1_000_000.0)]
    assert spans(hot, spec=L4)[0] == pytest.approx(1_000_000)
    assert spans(hot, hot, spec=L4)[0] == pytest.approx(1_000_000, rel=0.005)
    beside = spans(hot, streaming, spec=L4)[0]
    cool = DeviceSpec(**{**{f: getattr(L4, f) for f in L4.__slots__}, "cap_w": 60.0})
    assert spans(hot, streaming, spec=cool)[0] > 1.01 * beside


def test_a_copy_of_a_state_goes_on_to_the_same_instants_and_leaves_the_original() -> None:
    programs = Programs(V100)
    for n in range(3):
        programs.add(Variant("m", n), made([(kn.COMPUTE, 50.0, 30_000.0), (kn.MEMORY, 90.0, 40_000.0)] * 20))
    noise = Noise(run_sigma=0.02, kernel_sigma=0.05, drift=0.1, drift_s=0.001, stall_chance=0.5)
    state = State.idle(programs, 3, noise, seed=5)
    for n in range(3):
        state.begin(n, programs.of[Variant("m", n)], n, 0, 1, 0.0)
    state.advance(300_000.0)
    ahead = state.copy()
    ends = [(ahead.advance(), ahead.now) for _ in range(3)]
    assert state.now == 300_000.0
    stepped = []
    while len(stepped) < 3:
        ended = state.advance(state.now + 7_000.0)
        if ended >= 0:
            stepped.append((ended, state.now))
    assert [s for s, _ in stepped] == [s for s, _ in ends]
    assert [at for _, at in stepped] == pytest.approx([at for _, at in ends], rel=1e-9)


def test_noise_differs_from_run_to_run_about_a_median_of_one() -> None:
    programs = Programs(V100)
    program = programs.add(Variant("m", 1), made([(kn.COMPUTE, 50.0, 30_000.0)] * 50))
    state = State.idle(programs, 1, Noise(run_sigma=0.02, kernel_sigma=0.05), seed=1)
    found = []
    for serial in range(400):
        began = state.now
        state.begin(0, program, serial, 0, 1, 0.0)
        state.advance()
        found.append(np.log((state.now - began) / program.solo_ns))
    assert abs(float(np.mean(found))) < 0.004
    assert float(np.std(found)) == pytest.approx(0.021, abs=0.003)


def test_segments_have_about_equal_time_and_at_least_one_kernel() -> None:
    assert segment_cuts(np.ones(16), 4) == [4, 8, 12, 16]
    assert segment_cuts(np.array([100.0, 1.0, 1.0, 1.0]), 3) == [1, 2, 4]
    assert segment_cuts(np.array([1.0, 1.0, 100.0]), 3) == [1, 2, 3]

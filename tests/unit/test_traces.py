"""Recorded arrivals keep their shape, take the rate that is wanted, and go on over phases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cotenant.config import Scenario, load_scenario
from cotenant.experiment.load import arrivals
from cotenant.workload.arrivals import instants
from cotenant.workload.traces import read_gaps
from cotenant.workload.traffic import Traffic

TRACES = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "traces"
PUBLIC = {"azure_llm_2023_code.csv": 8818, "orion_gaps.csv": 6240}
needs_traces = pytest.mark.skipif(
    not TRACES.is_dir(), reason="the shared data folder is not beside this checkout"
)


def trace(file: Path, rate: float = 0.0, **more: object) -> list[Traffic]:
    return [Traffic(from_s=0.0, rate_per_s=rate, process="trace", file=file, **more)]  # type: ignore[arg-type]


@pytest.fixture
def gaps(tmp_path: Path) -> Path:
    """Five arrivals in 10 s."""
    path = tmp_path / "gaps.csv"
    path.write_text("gap_s\n1\n1\n1\n1\n6\n")
    return path


def scenario(folder: Path, model: str, load: str = "", phases: str = "") -> Scenario:
    path = folder / "s.toml"
    path.write_text(
        f"[load]\nduration_s = 40\n{load}\n[[model]]\nname = 'a'\nsource = 'zoo:echo'\narrivals = 'trace'\n"
        f"{model}\n{phases}"
    )
    return load_scenario(path)


def test_gap_and_timestamp_traces_are_scaled_to_the_rate(tmp_path: Path) -> None:
    (tmp_path / "gaps.csv").write_text("gap_s\n0.5\n1.5\n1.0\n")
    (tmp_path / "times.csv").write_text("TIMESTAMP,x\n2024-01-01 00:00:00.0,1\n2024-01-01 00:00:02.5,2\n")
    for name in ("gaps.csv", "times.csv"):
        assert len(instants(trace(tmp_path / name, 10), 100, 1, "m")) == pytest.approx(1000, rel=0.02)


def test_without_a_rate_a_trace_is_replayed_as_recorded_and_repeated(gaps: Path) -> None:
    at = instants(trace(gaps), 21, 1, "m") / 1e9
    assert at.tolist() == pytest.approx([1, 2, 3, 4, 10, 11, 12, 13, 14, 20])


def test_the_replay_may_begin_anywhere(gaps: Path) -> None:
    at = instants(trace(gaps, offset_s=3.5), 10, 1, "m") / 1e9
    assert at.tolist() == pytest.approx([0.5, 6.5, 7.5, 8.5, 9.5])


def test_a_phase_that_only_changes_the_rate_goes_on_where_the_trace_was(gaps: Path) -> None:
    phases = [*trace(gaps), Traffic(from_s=3.5, rate_per_s=1.0, process="trace", file=gaps)]
    at = instants(phases, 10, 1, "m") / 1e9
    after = [3.5 + t / 2 for t in (0.5, 6.5, 7.5, 8.5, 9.5, 10.5)]  # twice as fast as recorded
    assert at.tolist() == pytest.approx([1, 2, 3, *after])


def test_another_trace_begins_at_its_beginning_and_the_first_one_resumes(gaps: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    other.write_text("gap_s\n2\n")
    phases = [*trace(gaps), *trace(other), *trace(gaps)]
    stretches = [
        Traffic(from_s=t, rate_per_s=0, process="trace", file=p.file)
        for t, p in zip((0.0, 3.5, 7.5), phases, strict=True)
    ]
    at = instants(stretches, 9, 1, "m") / 1e9
    assert at.tolist() == pytest.approx([1, 2, 3, 5.5, 8.0])


@pytest.mark.parametrize("rate", ["", "rate_per_s = 0.5"])
def test_scale_makes_a_trace_faster_with_and_without_a_rate(gaps: Path, rate: str) -> None:
    chosen = scenario(gaps.parent, f"file = 'gaps.csv'\n{rate}")
    once, twice = (arrivals(chosen, scale=scale)[0] for scale in (1.0, 2.0))
    assert len(once) == 19  # the twentieth is at 40 s
    assert len(twice) == 39
    assert twice[:19] * 2 == pytest.approx(once, abs=2)


def test_units_are_taken_from_the_name_and_a_chosen_column_may_be_either(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("id,Inter_Arrival_Time_ms,end_timestamp\n1,500,7\n2,250,3\n")
    assert read_gaps(path, "inter_arrival_time_ms").tolist() == [0.5, 0.25]
    assert read_gaps(path, "end_timestamp").tolist() == [4.0]
    with pytest.raises(ValueError, match="no column 'start'; it has id, Inter_Arrival"):
        read_gaps(path, "start")


@pytest.mark.parametrize(
    "stamps",
    [
        ("2024-05-10 00:00:00.00993+00:00", "2024-05-10 00:00:01.009930+00:00"),
        ("2023-11-16 18:17:03.9799600", "2023-11-16 18:17:04.9799600"),
        ("2024-03-31 01:59:59.5", "2024-03-31 02:00:00.5"),  # summer time begins in places
        ("1715299200.5", "1715299201.5"),
    ],
)
def test_timestamps_of_many_forms_are_read(tmp_path: Path, stamps: tuple[str, str]) -> None:
    path = tmp_path / "t.csv"
    path.write_text("Timestamp\n" + "\n".join(stamps) + "\n")
    assert read_gaps(path).tolist() == pytest.approx([1.0])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gap\n1\nx\n", "line 3"),
        ("gap\n-1\n", "line 2"),
        ("gap\nnan\n", "line 2"),
        ("a,b\n1,2\n", "gap or a timestamp"),
        ("gap\n", "at least 1"),
        ("", "no header"),
        ("timestamp\n5\n", "at least 2"),
    ],
)
def test_a_bad_trace_is_refused_with_file_and_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=words) as caught:
        read_gaps(path)
    assert "trace.csv" in str(caught.value)


@needs_traces
@pytest.mark.parametrize("name", PUBLIC)
def test_public_traces_are_read_in_full_and_replayed_at_any_rate(name: str) -> None:
    assert len(read_gaps(TRACES / name)) == PUBLIC[name]
    recorded = instants(trace(TRACES / name), 1e4, 1, "m")[: PUBLIC[name]]
    for rate in (0.5, 40.0, 900.0):
        n = round(3.5 * PUBLIC[name])
        at = instants(trace(TRACES / name, rate), n / rate, 1, "m")
        assert len(at) == pytest.approx(n, rel=0.1)
        whole = at[: PUBLIC[name]]
        assert len(whole) / (whole[-1] / 1e9) == pytest.approx(rate, rel=1e-6)
        assert _cv(whole) == pytest.approx(_cv(recorded), rel=1e-3)  # the shape is kept


@needs_traces
@pytest.mark.parametrize("name", PUBLIC)
def test_public_traces_follow_scale_and_phases(name: str, tmp_path: Path) -> None:
    file = f"file = '{TRACES / name}'\nrate_per_s = 50"
    phases = "[[phase]]\nat_s = 10\n[phase.model.a]\nrate_per_s = 100\n"
    plain, changed = scenario(tmp_path, file), scenario(tmp_path, file, phases=phases)
    whole, (at, _) = arrivals(plain)[0], arrivals(changed)
    assert (at[at < 10e9] == whole[whole < 10e9]).all()
    n = min((at >= 10e9).sum(), (whole >= 10e9).sum())
    resumed = (at[at >= 10e9][:n] - 10e9) * 2
    assert resumed == pytest.approx(whole[whole >= 10e9][:n] - 10e9, abs=4)
    faster = arrivals(changed, scale=1.5)[0]
    assert len(faster) == pytest.approx(1.5 * len(at), rel=0.35)


def _cv(at: np.ndarray) -> float:
    gaps = np.diff(at)
    return float(gaps.std() / gaps.mean())

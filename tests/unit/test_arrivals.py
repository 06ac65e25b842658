"""Arrivals are seeded, independent per model, and keep the rate and burstiness that was asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cotenant.workload.arrivals import Traffic, instants, merged, read_gaps


def poisson(rate: float, **more: object) -> list[Traffic]:
    return [Traffic(from_s=0.0, rate_per_s=rate, **more)]  # type: ignore[arg-type]


def test_the_same_seed_and_name_give_the_same_arrivals_and_others_do_not() -> None:
    first = instants(poisson(50), 20, 1, "a")
    assert (first == instants(poisson(50), 20, 1, "a")).all()
    assert len(np.intersect1d(first, instants(poisson(50), 20, 2, "a"))) == 0
    assert len(np.intersect1d(first, instants(poisson(50), 20, 1, "b"))) == 0


@pytest.mark.parametrize(("process", "cv"), [("poisson", 1.0), ("gamma", 2.0), ("gamma", 0.5)])
def test_rate_and_burstiness_are_those_asked_for(process: str, cv: float) -> None:
    at = instants(poisson(200, process=process, cv=cv), 500, 7, "m")
    gaps = np.diff(at) / 1e9
    assert len(at) / 500 == pytest.approx(200, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.08)
    assert (gaps >= 0).all()
    assert at[-1] < 500e9


def test_a_phase_changes_the_rate_from_its_instant_on() -> None:
    phases = [Traffic(from_s=0, rate_per_s=10), Traffic(from_s=50, rate_per_s=200)]
    at = instants(phases, 100, 1, "m") / 1e9
    assert (at < 50).sum() == pytest.approx(500, rel=0.2)
    assert (at >= 50).sum() == pytest.approx(10_000, rel=0.1)


def test_merging_keeps_order_and_owner() -> None:
    at, which = merged([np.array([1, 5]), np.array([2, 5])])
    assert at.tolist() == [1, 2, 5, 5]
    assert which.tolist() == [0, 1, 0, 1]


def test_a_model_without_rate_never_arrives() -> None:
    assert len(instants(poisson(0), 10, 1, "m")) == 0


def test_gap_and_timestamp_traces_are_scaled_to_the_rate(tmp_path: Path) -> None:
    (tmp_path / "gaps.csv").write_text("gap_s\n0.5\n1.5\n1.0\n")
    (tmp_path / "times.csv").write_text("TIMESTAMP,x\n2024-01-01 00:00:00.0,1\n2024-01-01 00:00:02.5,2\n")
    for name in ("gaps.csv", "times.csv"):
        at = instants(poisson(10, process="trace", file=tmp_path / name), 100, 1, "m")
        assert len(at) == pytest.approx(1000, rel=0.02)


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

"""Explanations of slow requests outlive the server, within bounds."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from cotenant.telemetry.explanation import Explanation
from cotenant.telemetry.slow_store import SlowStoreError, SlowWriter, find_slow


def told(number: int) -> Explanation:
    return Explanation(id=f"{number:x}-1", model="m", outcome="late", ended_ms=float(number), sentence="late")


def written(path: Path, explanations: list[Explanation], kept: int = 100) -> list[str]:
    """Complaints of a writer that was given these."""
    complaints: list[str] = []
    writer = SlowWriter(path, complaints.append, kept=kept)
    for one in explanations:
        writer.put(one)
    writer.close()
    return complaints


def test_what_was_written_is_found_again_in_full(tmp_path: Path) -> None:
    path = tmp_path / "store" / "slow.sqlite"
    assert written(path, [told(1), told(2)]) == []
    assert find_slow(path, "2-1") == told(2)
    assert find_slow(path, "3-1") is None


def test_the_newest_stay(tmp_path: Path) -> None:
    path = tmp_path / "slow.sqlite"
    for number in range(12):
        written(path, [told(number)], kept=5)
    found = [number for number in range(12) if find_slow(path, f"{number:x}-1") is not None]
    assert found == [7, 8, 9, 10, 11]


def test_two_servers_may_write_to_one_file(tmp_path: Path) -> None:
    path = tmp_path / "slow.sqlite"
    complaints: list[str] = []
    writers = [SlowWriter(path, complaints.append) for _ in range(2)]
    for number in range(20):
        writers[number % 2].put(told(number))
    for writer in writers:
        writer.close()
    assert complaints == []
    assert all(find_slow(path, f"{number:x}-1") for number in range(20))


def test_a_file_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    assert find_slow(tmp_path / "slow.sqlite", "1-1") is None


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "slow.sqlite"
    path.write_bytes(b"this is no database" * 100)
    with pytest.raises(SlowStoreError, match=r"slow\.sqlite cannot be read"):
        find_slow(path, "1-1")
    (complaint,) = written(path, [told(1)])
    assert "slow.sqlite" in complaint


def test_a_file_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "slow.sqlite"
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    (complaint,) = written(path, [told(1)])
    assert "format 99" in complaint
    with pytest.raises(SlowStoreError, match="format 99"):
        find_slow(path, "1-1")


def test_a_store_that_cannot_be_written_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    complaints = written(tmp_path / "file" / "slow.sqlite", [told(n) for n in range(5)])
    assert len(complaints) == 1
    assert "not kept" in complaints[0]

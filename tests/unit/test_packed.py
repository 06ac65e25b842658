"""Packed text files."""

from __future__ import annotations

from pathlib import Path

import pytest

from cotenant.experiment.packed import read_text, write_packed

TEXT = "run,workload\n" + "0,größer\n" * 1000


def test_what_was_packed_is_read_by_the_plain_name(tmp_path: Path) -> None:
    path = tmp_path / "corun.coruns.csv"
    written = write_packed(path, TEXT)
    assert written.name == "corun.coruns.csv.zst"
    assert written.stat().st_size < len(TEXT) / 10
    assert read_text(path) == read_text(written) == TEXT


def test_a_plain_file_goes_before_a_packed_one(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    write_packed(path, TEXT)
    path.write_text("plain")
    assert read_text(path) == "plain"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"a\.csv nor a\.csv\.zst"):
        read_text(tmp_path / "a.csv")


@pytest.mark.parametrize("body", [b"", b"not packed", b"\x28\xb5\x2f\xfd\xff\xff"])
def test_a_broken_file_is_named(tmp_path: Path, body: bytes) -> None:
    (tmp_path / "a.csv.zst").write_bytes(body)
    if not body:
        assert read_text(tmp_path / "a.csv") == ""
        return
    with pytest.raises(ValueError, match=r"a\.csv\.zst: cannot be unpacked"):
        read_text(tmp_path / "a.csv")

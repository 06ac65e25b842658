"""A recording without end on a bounded disk: data sets `BASE-00001`, `BASE-00002` and so on, the oldest
deleted."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from cotenant.experiment.datasets import CoRun, corun_text, write_features
from cotenant.profile.features import FeatureTable

N_PARTS = 8
"""Parts that fill the limit."""
KINDS = ("coruns", "profiles", "segments")


class Parts:
    """Appends rows to the newest part; a new one begins when it is an eighth of the limit, or when models or
    their solo times change. Existing parts of BASE are kept and count. Each part is a whole data set at any
    time: what was appended survives a crash."""

    def __init__(self, base: Path, max_bytes: int) -> None:
        self.base, self.max_bytes = base, max_bytes
        self._file: IO[bytes] | None = None
        self._size = 0
        self._known: object = None

    def append(self, rows: Sequence[CoRun], features: FeatureTable) -> int:
        """Write whole runs; returns how many rows were written: those of workloads without profile are left
        out, since nothing can be learned from them. Raises OSError; then none of them was written, and the
        next call begins a new part."""
        good = [row for row in rows if features.has(row.variant, row.share)]
        if not good:
            return 0
        known = [(entry.variant, entry.share, entry.solo_ns) for entry in features]
        try:
            if self._file is None or known != self._known or self._size > self.max_bytes // N_PARTS:
                self._begin(features)
                self._known = known
            assert self._file is not None
            body = corun_text(good, header=False).encode()
            self._write(body)
        except OSError:
            self._break_off()
            raise
        return len(good)

    def close(self) -> None:
        """Close the newest part. Idempotent."""
        if self._file is not None:
            file, self._file = self._file, None
            file.close()

    def _begin(self, features: FeatureTable) -> None:
        self.close()
        self.base.parent.mkdir(parents=True, exist_ok=True)
        self._make_room()
        part = self._part(max(self._numbers(), default=0) + 1)
        self._file = _file(part, "coruns").open("xb", buffering=0)
        self._size = 0
        try:
            write_features(part, features)
            self._write(corun_text([]).encode())
        except OSError:
            for kind in KINDS:
                _file(part, kind).unlink(missing_ok=True)
            raise

    def _write(self, body: bytes) -> None:
        assert self._file is not None
        left = memoryview(body)
        while left:  # a disk that fills up takes a piece first and fails then
            left = left[self._file.write(left) :]
        self._size += len(body)

    def _break_off(self) -> None:
        """Cut off what was written of the last piece."""
        if self._file is not None:
            file, self._file = self._file, None
            try:
                file.truncate(self._size)
            finally:
                file.close()

    def _make_room(self) -> None:
        numbers = sorted(self._numbers())
        sizes = [
            sum(_file(self._part(n), k).stat().st_size for k in KINDS if _file(self._part(n), k).exists())
            for n in numbers
        ]
        left = sum(sizes)
        for number, size in zip(numbers, sizes, strict=True):
            if left <= self.max_bytes - self.max_bytes // N_PARTS:
                return
            for kind in KINDS:
                _file(self._part(number), kind).unlink(missing_ok=True)
            left -= size

    def _numbers(self) -> list[int]:
        pattern = re.compile(re.escape(self.base.name) + r"-(\d{5,})\.coruns\.csv")
        found = (pattern.fullmatch(path.name) for path in self.base.parent.iterdir())
        return [int(match[1]) for match in found if match]

    def _part(self, number: int) -> Path:
        return self.base.with_name(f"{self.base.name}-{number:05d}")


def _file(part: Path, kind: str) -> Path:
    return part.with_name(f"{part.name}.{kind}.csv")

"""Files of arrivals: every request that a run offers, so that the same load can be offered elsewhere.

A CSV with the columns `timestamp_s` (from the start of the run, to the nanosecond), `model`, `rows` and
`deadline_ms` (from arrival to when the answer is due; empty: none), found by name, in any order.
"""

from __future__ import annotations

import csv
import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TextIO

import numpy as np
from numpy.typing import NDArray

from cotenant.config import Scenario
from cotenant.domain import NS_PER_MS, NS_PER_S
from cotenant.workload.arrivals import Instants

COLUMNS = ("timestamp_s", "model", "rows", "deadline_ms")
NO_DEADLINE = -1
LARGEST = 2**62
"""Largest whole number that is believed (ns, or rows)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offered:
    """Every request of a run in order of time: arrival (ns from 0), index of the model, rows, and span from
    arrival to deadline (ns, `NO_DEADLINE` for none); `budget_ns` None: what the models' SLOs say."""

    at: Instants
    which: Instants
    rows: Instants
    budget_ns: Instants | None = None

    def budgets(self, slo_ns: Sequence[int | None]) -> Instants:
        """Span from arrival to deadline of every request; `slo_ns`: of each model, None without."""
        if self.budget_ns is not None:
            return self.budget_ns
        return np.asarray([NO_DEADLINE if slo is None else slo for slo in slo_ns], np.int64)[self.which]


def write_arrivals(path: Path, scenario: Scenario, offered: Offered, slo_ns: Sequence[int | None]) -> None:
    """Write what is offered; `slo_ns`: of each model of the scenario, None without."""
    names = [model.name for model in scenario.models]
    columns = (offered.at, offered.which, offered.rows, offered.budgets(slo_ns))
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(COLUMNS)
        rows.writerows(
            (_decimal(at, 9), names[model], n_rows, "" if budget == NO_DEADLINE else _decimal(budget, 6))
            for at, model, n_rows, budget in zip(*(column.tolist() for column in columns), strict=True)
        )


def read_arrivals(path: Path, scenario: Scenario) -> Offered:
    """What a file offers to the models of a scenario. Without a column of rows or deadlines the scenario's
    own hold. Raises ValueError that names the file, the line and what was expected."""
    return _Reader(path).offered(scenario)


class _Reader:
    """One file; every complaint carries its path."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: list[int] = []
        self._cells: dict[str, list[str]] = {}
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                self._read(file)
        except OSError as error:
            raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{path}: is not a CSV text: {error}") from error

    def _read(self, file: TextIO) -> None:
        reader = csv.reader(file)
        header = [name.strip() for name in next(reader, [])]
        for name in COLUMNS[:2]:
            if name not in header:
                has = ", ".join(header) or "no header"
                raise ValueError(f"{self._path}: needs the columns {', '.join(COLUMNS)}; it has {has}")
        rows = []
        for row in reader:
            if row:
                rows.append(row)
                self._lines.append(reader.line_num)
                if len(row) != len(header):
                    self._fail(len(rows) - 1, f"has {len(row)} entries, the header {len(header)}")
        for name in COLUMNS:
            if name in header:
                index = header.index(name)
                self._cells[name] = [row[index].strip() for row in rows]

    def offered(self, scenario: Scenario) -> Offered:
        names = {model.name: i for i, model in enumerate(scenario.models)}
        which = self._models(names)
        at = self._numbers("timestamp_s", NS_PER_S, least=0)
        after = np.flatnonzero(at >= scenario.load.duration_s * NS_PER_S)
        if after.size:
            what = f"is not before the end of the run: raise [load] duration_s ({scenario.load.duration_s:g})"
            self._fail(int(after[0]), f"timestamp_s {self._cells['timestamp_s'][after[0]]} {what}")
        rows = self._rows(scenario, which)
        budget_ns = self._numbers("deadline_ms", NS_PER_MS, least=1) if "deadline_ms" in self._cells else None
        order = np.argsort(at, kind="stable")
        return Offered(
            at=at[order],
            which=which[order],
            rows=rows[order],
            budget_ns=None if budget_ns is None else budget_ns[order],
        )

    def _models(self, names: dict[str, int]) -> Instants:
        found = [names.get(name, -1) for name in self._cells["model"]]
        if -1 in found:
            first = found.index(-1)
            name = self._cells["model"][first]
            close = difflib.get_close_matches(name, names, 1, 0.4)
            hint = f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(names)}"
            self._fail(first, f"the scenario has no model {name!r}{hint}")
        return np.asarray(found, np.int64)

    def _rows(self, scenario: Scenario, which: Instants) -> Instants:
        if "rows" not in self._cells:
            return np.asarray([model.rows for model in scenario.models], np.int64)[which]
        rows = self._numbers("rows", 1, least=1)
        most = np.asarray([model.max_batch for model in scenario.models], np.int64)[which]
        if (beyond := np.flatnonzero(rows > most)).size:
            first = int(beyond[0])
            name = self._cells["model"][first]
            self._fail(first, f"rows {rows[first]} exceed max_batch {most[first]} of model {name!r}")
        return rows

    def _numbers(self, column: str, unit: int, least: int) -> Instants:
        """A column in whole units; empty deadlines are `NO_DEADLINE`."""
        cells = self._cells[column]
        empty = np.asarray([column == "deadline_ms" and not cell for cell in cells], bool)
        values = self._floats(column, np.where(empty, "1", cells).tolist() if empty.any() else cells)
        fits = np.abs(values) <= LARGEST / unit  # not so for NaN
        whole = np.rint(np.where(fits, values, -1) * unit).astype(np.int64)
        bad = (whole < least) | ((unit == 1) & (whole != values))
        if bad.any():
            first = int(np.flatnonzero(bad)[0])
            wanted = {"timestamp_s": "a number of seconds, 0 or more", "rows": "a whole number, 1 or more"}
            expected = wanted.get(column, "a number of milliseconds greater than 0, or empty")
            self._fail(first, f"{column} must be {expected}, not {cells[first]!r}")
        return np.where(empty, NO_DEADLINE, whole)

    def _floats(self, column: str, cells: Sequence[str]) -> NDArray[np.float64]:
        try:
            return np.asarray(cells, float)
        except ValueError:
            return np.asarray([_float(cell) for cell in cells])

    def _fail(self, index: int, message: str) -> NoReturn:
        raise ValueError(f"{self._path}, line {self._lines[index]}: {message}")


def _float(text: str) -> float:
    """The number, NaN where it is none."""
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _decimal(value: int, digits: int) -> str:
    """An integer count of 10^-digits, written in full."""
    return f"{value // 10**digits}.{value % 10**digits:0{digits}d}"

"""The requests of a run as arrays, one entry per request: what a report counts, fast for millions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from cotenant.domain import NS_PER_MS, JobClass, OutcomeKind

Ints = NDArray[np.int64]
KINDS = tuple(OutcomeKind)
CODES = {kind: code for code, kind in enumerate(KINDS)}
ANSWERED = (CODES[OutcomeKind.OK], CODES[OutcomeKind.LATE])
NEVER = np.iinfo(np.int64).min
"""Stands for an instant that there is not."""


class RequestRecord(Struct, frozen=True, kw_only=True, gc=False):
    """What a report needs of one offered request. Instants in ns of one clock; `intended_at` is when the
    load said it should arrive."""

    model: str
    job_class: JobClass
    kind: OutcomeKind
    intended_at: int
    ended_at: int
    deadline_at: int | None = None
    dispatched_at: int | None = None
    batch_rows: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestColumns:
    """Requests in no particular order. `model` is an index of `names` (sorted), `kind` one of `KINDS`."""

    names: tuple[str, ...]
    model: Ints
    job_class: Ints
    kind: Ints
    intended_at: Ints
    ended_at: Ints
    deadline_at: Ints
    dispatched_at: Ints
    batch_rows: Ints

    def __len__(self) -> int:
        return len(self.model)

    @property
    def counts_in(self) -> NDArray[np.bool_]:
        """Which requests are protected or standard."""
        counted: NDArray[np.bool_] = self.job_class != JobClass.BEST_EFFORT
        return counted

    @property
    def answered(self) -> NDArray[np.bool_]:
        """Which requests were answered, in time or late."""
        answered: NDArray[np.bool_] = (self.kind == ANSWERED[0]) | (self.kind == ANSWERED[1])
        return answered

    @property
    def latency_ms(self) -> NDArray[np.float64]:
        """From the intended arrival; an unanswered request counts at its deadline, without one at its
        end."""
        at_deadline = ~self.answered & (self.deadline_at != NEVER)
        return (np.where(at_deadline, self.deadline_at, self.ended_at) - self.intended_at) / NS_PER_MS

    def take(self, which: NDArray[np.bool_] | Ints) -> RequestColumns:
        """Some of the requests."""
        return RequestColumns(
            names=self.names,
            model=self.model[which],
            job_class=self.job_class[which],
            kind=self.kind[which],
            intended_at=self.intended_at[which],
            ended_at=self.ended_at[which],
            deadline_at=self.deadline_at[which],
            dispatched_at=self.dispatched_at[which],
            batch_rows=self.batch_rows[which],
        )

    def by_model(self) -> Iterator[tuple[str, RequestColumns]]:
        """The requests of each model that has any, in the order of the names."""
        order = np.argsort(self.model, kind="stable")
        ends = np.cumsum(np.bincount(self.model, minlength=len(self.names)))
        for name, which in zip(self.names, np.split(order, ends[:-1]) if len(ends) else (), strict=True):
            if len(which):
                yield name, self.take(which)

    def by_class(self) -> Iterator[tuple[str, RequestColumns]]:
        """The requests of each class that has any, in the order of the names."""
        for job_class in sorted(JobClass, key=lambda job_class: job_class.name):
            which = self.job_class == job_class
            if which.any():
                yield job_class.name.lower(), self.take(which)


def columns_of(records: Sequence[RequestRecord]) -> RequestColumns:
    """The records as columns."""
    names = tuple(sorted(set(map(attrgetter("model"), records))))
    return RequestColumns(
        names=names,
        model=_coded(records, "model", {name: i for i, name in enumerate(names)}),
        job_class=_whole(records, "job_class"),
        kind=_coded(records, "kind", CODES),
        intended_at=_whole(records, "intended_at"),
        ended_at=_whole(records, "ended_at"),
        deadline_at=_instants(records, "deadline_at"),
        dispatched_at=_instants(records, "dispatched_at"),
        batch_rows=_whole(records, "batch_rows"),
    )


def _whole(records: Sequence[RequestRecord], field: str) -> Ints:
    return np.fromiter(map(attrgetter(field), records), np.int64, len(records))


def _coded(records: Sequence[RequestRecord], field: str, codes: Mapping[Any, int]) -> Ints:
    return np.fromiter(map(codes.__getitem__, map(attrgetter(field), records)), np.int64, len(records))


def _instants(records: Sequence[RequestRecord], field: str) -> Ints:
    found = map(attrgetter(field), records)
    return np.fromiter((NEVER if at is None else at for at in found), np.int64, len(records))

"""Admit or refuse at arrival, from the predicted completion behind everything due earlier.

How this works. The queues are cut into the batches they would run as; in deadline order each is put on the
lane that is free first, as earliest-deadline-first without preemption would. The newcomer is refused
when it would more likely miss its deadline than keep it (a refusal keeps none), or when it would push an
admitted request of its class or a more important one past a deadline that it now keeps, unless that one
takes more time. Requests that are
past saving veto nothing. Pessimism cannot lock a model out: see `Admission.probe`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heapify, heapreplace

from cotenant.domain import NS_PER_MS, NS_PER_S, JobClass, Request, Variant
from cotenant.schedule.plan import Chunk, chunks
from cotenant.schedule.queue import NEVER, due
from cotenant.schedule.view import View


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether a request may wait, why not, and when it could have been served (ns, None if unknown)."""

    admitted: bool
    reason: str = ""
    predicted_at: int | None = None
    probe: bool = False


ADMITTED = Verdict(admitted=True)


def admit_all(view: View, request: Request) -> Verdict:
    """No admission control: what common servers do."""
    return ADMITTED


def admit_if_feasible_alone(view: View, request: Request) -> Verdict:
    """Refuse only what could not be served in time on an idle device."""
    variant = view.specs[request.model].bucket(request.rows, request.axes)
    finish_at = view.at + view.median(variant)
    if finish_at <= due(request):
        return ADMITTED
    return _refusal(view, request, finish_at)


def _refusal(view: View, request: Request, finish_at: int) -> Verdict:
    budget_ms = (due(request) - request.arrived_at) / NS_PER_MS
    predicted_ms = (finish_at - request.arrived_at) / NS_PER_MS
    reason = f"deadline infeasible: predicted {predicted_ms:.1f} ms, budget {budget_ms:.1f} ms"
    return Verdict(admitted=False, reason=reason, predicted_at=finish_at)


@dataclass(slots=True)
class Admission:
    """Admission by predicted completion, with the probes that keep it honest. One per policy instance."""

    probed_at: dict[str, int] = field(default_factory=dict)
    _chunks: dict[str, tuple[int, int, list[Chunk]]] = field(default_factory=dict)

    def admit(self, view: View, request: Request) -> Verdict:
        """Decide for one request; `view.at` is its arrival."""
        deadline = due(request)
        if deadline >= NEVER:
            return ADMITTED
        finish_at, harms = self._completion(view, request, deadline)
        if finish_at <= deadline and not harms:
            return ADMITTED
        if self.probe(view, request):
            return Verdict(admitted=True, probe=True)
        if finish_at <= deadline:
            why = "deadline infeasible: it would break a deadline already promised"
            return Verdict(admitted=False, reason=why, predicted_at=finish_at)
        return _refusal(view, request, finish_at)

    def probe(self, view: View, request: Request) -> bool:
        """At least one request per model per second is admitted against the learned prediction when it is
        feasible on profile times alone: otherwise nothing would ever correct a pessimistic model."""
        last_at = self.probed_at.get(request.model)
        if last_at is not None and view.at - last_at < NS_PER_S:
            return False
        variant = view.specs[request.model].bucket(request.rows, request.axes)
        if view.at + view.predictor.prior(variant) > due(request):
            return False
        self.probed_at[request.model] = view.at
        return True

    def _backlog(self, view: View, job_class: JobClass) -> list[Chunk]:
        """Every batch that waits, of this class or a more important one, in order of deadline."""
        merged: list[Chunk] = []
        slot = view.at // (100 * NS_PER_MS)
        for queue in view.waiting():
            if queue.job_class > job_class:
                continue
            cached = self._chunks.get(queue.model)
            if cached is None or cached[0] != queue.version or cached[1] != slot:
                cached = (queue.version, slot, chunks(view, queue))
                self._chunks[queue.model] = cached
            merged += cached[2]
        merged.sort(key=lambda chunk: (chunk.due_at, chunk.model))
        return merged

    def _completion(self, view: View, request: Request, deadline: int) -> tuple[int, bool]:
        """Predicted (median) completion of the newcomer, and whether it harms others more than it is worth.

        It may only push out work that costs more, per request, than itself, so that most deadlines are met
        (Moore and Hodgson's rule for the fewest late jobs drops the longest)."""
        variant = view.specs[request.model].bucket(request.rows, request.axes)
        solo = view.predictor.solo(variant, view.at)
        frees = [view.free_at(lane) for lane in view.apart()]
        if not frees:
            return NEVER, False
        marginal = self._marginal(view, request, variant)
        backlog = self._backlog(view, request.job_class)
        position = bisect_right(backlog, deadline, key=lambda chunk: chunk.due_at)
        _list_schedule(frees, backlog[:position])
        finish_at = frees[0] + max(0, marginal - solo[0]) + solo[0]
        later = backlog[position:]
        if not later or finish_at > deadline:
            return finish_at, False
        others = list(frees)
        heapreplace(frees, frees[0] + marginal)
        after = _list_schedule(frees, later)
        missed = [
            i for i, chunk in enumerate(later) if after[i] > chunk.due_at and chunk.model != request.model
        ]
        if not missed:
            return finish_at, False
        before = _list_schedule(others, later)
        harmed = [later[i] for i in missed if before[i] <= later[i].due_at]
        dearest = max((chunk.span_ns / chunk.n for chunk in harmed), default=0.0)
        return finish_at, bool(harmed) and dearest <= marginal

    @staticmethod
    def _marginal(view: View, request: Request, variant: Variant) -> int:
        """Device time (ns) that the newcomer adds: alone, or by joining a batch of its model with room."""
        queue = view.queues[request.model]
        spec = view.specs[request.model]
        rows = queue.rows % spec.max_batch
        alone = view.median(variant)
        if not rows or rows + request.rows > spec.max_batch:
            return alone
        joined = view.median(spec.bucket(rows + request.rows, request.axes))
        return min(alone, max(0, joined - view.median(spec.bucket(rows, request.axes))))


def _list_schedule(frees: list[int], batches: Sequence[Chunk]) -> list[int]:
    """Put the batches, in order, on whichever lane is free first; returns when each ends. `frees` becomes a
    heap of when each lane is then free."""
    heapify(frees)
    ends = []
    for chunk in batches:
        end = frees[0] + chunk.span_ns
        ends.append(end)
        heapreplace(frees, end)
    return ends

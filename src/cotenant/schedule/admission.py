"""Admit or refuse at arrival: who is given up so that the fewest deadlines are missed?

How this works. The queues are cut into the batches they would run as; in deadline order each is put on the
lane that is free first, as earliest-deadline-first without preemption would. Whenever one would miss its
deadline, the batch that costs most device time per request is given up, the least important class first
(Moore 1968, Hodgson's rule for the fewest late jobs, here on several lanes). A newcomer that would be
given up is refused, with the instant at which it could have been served. Nobody else is dropped for it:
what is queued keeps its chance. Pessimism cannot lock a model out: see `Admission.probe`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heapreplace

from cotenant.domain import NS_PER_MS, NS_PER_S, JobClass, Request, Variant
from cotenant.schedule.plan import Chunk, chunks, paying_rows
from cotenant.schedule.queue import NEVER, DeadlineQueue, due
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
    _most: dict[str, tuple[int, int]] = field(default_factory=dict)
    _dearest: dict[str, tuple[int, int]] = field(default_factory=dict)
    _chunks: dict[str, tuple[int, int, list[Chunk]]] = field(default_factory=dict)

    def admit(self, view: View, request: Request) -> Verdict:
        """Decide for one request; `view.at` is its arrival."""
        deadline, lanes = due(request), view.apart()
        if deadline >= NEVER or not lanes:
            return ADMITTED
        variant = view.specs[request.model].bucket(request.rows, request.axes)
        alone = view.median(variant)
        if self._all_fits(view, request, view.first_free(lanes) + alone):
            return ADMITTED
        frees = [view.free_at(lane) for lane in lanes]
        backlog = self._backlog(view, request.job_class)
        position = bisect_right(backlog, deadline, key=lambda chunk: chunk.due_at)
        newcomer = Chunk(
            deadline, self._marginal(view, request, variant), 1, request.model, request.job_class
        )
        kept = fewest_late(frees, [*backlog[:position], newcomer, *backlog[position:]])
        if newcomer in kept and min(frees) + alone <= deadline:
            return ADMITTED
        if self.probe(view, request):
            return Verdict(admitted=True, probe=True)
        others = [chunk for chunk in kept if chunk is not newcomer]
        behind = [chunk for chunk in others if chunk.due_at <= deadline]
        finish_at = _list_schedule(frees, behind) + alone
        if finish_at > deadline:
            return _refusal(view, request, finish_at)
        why = "deadline infeasible: it would break a deadline already promised"
        return Verdict(admitted=False, reason=why, predicted_at=_list_schedule(frees, others) + alone)

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

    def _all_fits(self, view: View, request: Request, finish_at: int) -> bool:
        """Whether everything that waits would end by the earliest deadline even if one lane ran it all, row
        by row: then nothing needs to be weighed. `finish_at`: when the newcomer would end with no backlog."""
        earliest = due(request)
        slot = view.at // (100 * NS_PER_MS)
        for queue in view.waiting():
            if queue.job_class <= request.job_class:
                finish_at += queue.rows * self._row_ns(view, queue.model, slot)
                earliest = min(earliest, queue.head_due)
        return finish_at <= earliest

    def _row_ns(self, view: View, model: str, slot: int) -> int:
        """The longest median span of the model's variants per row they hold (ns)."""
        known = self._dearest.get(model)
        if known is None or known[0] != slot:
            spans = [view.median(variant) // variant.rows for variant in view.specs[model].variants()]
            known = self._dearest[model] = (slot, max(spans))
        return known[1]

    def _backlog(self, view: View, job_class: JobClass) -> list[Chunk]:
        """Every batch that waits, of this class or a more important one, in order of deadline."""
        merged: list[Chunk] = []
        slot = view.at // (100 * NS_PER_MS)
        for queue in view.waiting():
            if queue.job_class > job_class:
                continue
            cached = self._chunks.get(queue.model)
            if cached is None or cached[0] != queue.version or cached[1] != slot:
                cached = (queue.version, slot, chunks(view, queue, self._most_rows(view, queue, slot)))
                self._chunks[queue.model] = cached
            merged += cached[2]
        merged.sort(key=lambda chunk: (chunk.due_at, chunk.model))
        return merged

    def _most_rows(self, view: View, queue: DeadlineQueue, slot: int) -> int:
        known = self._most.get(queue.model)
        if known is None or known[0] != slot:
            rows = paying_rows(view, view.specs[queue.model], next(iter(queue)).axes)
            known = self._most[queue.model] = (slot, rows)
        return known[1]

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


def fewest_late(frees: Sequence[int], batches: Sequence[Chunk]) -> list[Chunk]:
    """The batches, in order of deadline, that can be kept; `frees` = when each lane is free (ns)."""
    kept: list[Chunk] = []
    lanes = sorted(frees)
    for chunk in batches:
        kept.append(chunk)
        end = lanes[0] + chunk.span_ns
        if end <= chunk.due_at:
            heapreplace(lanes, end)
            continue
        dearest = max(kept, key=lambda chunk: (chunk.job_class, chunk.span_ns / chunk.n))
        kept.remove(dearest)
        if dearest is not chunk:
            lanes = sorted(frees)
            for other in kept:
                heapreplace(lanes, lanes[0] + other.span_ns)
    return kept


def _list_schedule(frees: Sequence[int], batches: Sequence[Chunk]) -> int:
    """When a lane is free again after the batches ran, in order, each on the lane that was free first."""
    lanes = sorted(frees)
    for chunk in batches:
        heapreplace(lanes, lanes[0] + chunk.span_ns)
    return lanes[0]

"""Joins what is remembered of a request, its dispatches and what ran meanwhile to an `Explanation`.

Pure functions over values that have already happened; nothing here is on the decision path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

from msgspec import Struct, structs, to_builtins

from cotenant.domain import (
    LEVELS,
    NS_PER_MS,
    NS_PER_S,
    SLO_COLUMN,
    Dispatch,
    Outcome,
    OutcomeKind,
    Request,
    Variant,
)
from cotenant.telemetry.explanation import (
    RUNNING,
    WAITING,
    Behind,
    Considered,
    CoRunner,
    Decision,
    Explanation,
    Part,
    Revision,
    sentence,
    shown,
)
from cotenant.telemetry.remembered import Run, beside
from cotenant.telemetry.waiting import Busy, Wait, split

MOST_REVISED = 8
"""Later predictions that are shown, the last ones."""
LEVEL_NAMES = (*(f"{level:g}" for level in LEVELS), "slo")


class Known(Struct, frozen=True, kw_only=True):
    """What is remembered: runs by dispatch id and in the order in which they ended, dispatches that have not,
    and what instants and spans mean."""

    runs: Mapping[int, Run]
    in_order: Sequence[Run]
    in_flight: Mapping[int, Dispatch]
    n_lanes: int
    solo: Callable[[Variant], int]
    now: int
    wall_s: float


def explained(outcome: Outcome, taken_at: int, answer_ns: int | None, known: Known) -> Explanation:
    """The whole story of a request that has ended."""
    told = _outline(outcome, taken_at, known)
    parts = _parts(outcome, known)
    if parts:
        told = _with_runs(told, outcome.request.arrived_at, parts, known)
    told = structs.replace(told, answer_ms=None if answer_ns is None else _ms(answer_ns))
    return structs.replace(told, sentence=sentence(told))


def in_progress(
    request: Request, taken_at: int, dispatch: Dispatch | None, n_ahead: int | None, known: Known
) -> Explanation:
    """Of a request that has not ended: it waits behind `n_ahead` others of its model, or runs, or has been
    stopped (`n_ahead` None)."""
    told = _of_request(request, known)
    until = known.now if dispatch is None else dispatch.decided_at
    told = structs.replace(told, **_waits(request, taken_at, until, known))
    so_far = shown(_ms(known.now - request.arrived_at))
    if dispatch is not None:
        told = _with_dispatch(told, request.arrived_at, dispatch)
        ends = shown(told.predicted_ms or 0.0)
        text = f"still runs: {so_far} since it arrived, its end predicted after {ends}"
        return structs.replace(told, state=RUNNING, sentence=text)
    left = "" if told.deadline_ms is None else f", its deadline {shown(told.deadline_ms)} after its arrival"
    before = "stopped at a segment boundary" if n_ahead is None else f"{n_ahead} of {request.model} before it"
    text = f"still waits: {so_far} since it arrived{left}, {before}"
    return structs.replace(told, state=WAITING, sentence=text)


# --- pieces -------------------------------------------------------------------------------------------------


def _of_request(request: Request, known: Known) -> Explanation:
    arrived_s = known.wall_s - (known.now - request.arrived_at) / NS_PER_S
    return Explanation(
        id=request.id,
        model=request.model,
        job_class=request.job_class.name.lower(),
        deadline_ms=_since(request.arrived_at, request.deadline_at),
        arrived=datetime.fromtimestamp(arrived_s, UTC).isoformat(timespec="milliseconds"),
    )


def _outline(outcome: Outcome, taken_at: int, known: Known) -> Explanation:
    """What the outcome alone tells, and how the request waited."""
    request = outcome.request
    began_at = request.arrived_at
    until = outcome.ended_at if outcome.dispatched_at is None else outcome.dispatched_at
    parts = _parts(outcome, known)
    if parts:
        until = parts[0].decided_at
    refused = outcome.kind is OutcomeKind.REJECTED
    return structs.replace(
        _of_request(request, known),
        in_flight=_in_flight(outcome.ended_at, known) if refused else [],
        outcome=outcome.kind.value,
        reason=outcome.reason,
        dispatched_ms=_since(began_at, outcome.dispatched_at),
        started_ms=_since(began_at, outcome.started_at),
        predicted_ms=_since(began_at, outcome.predicted_at),
        ended_ms=_since(began_at, outcome.ended_at),
        batch_rows=outcome.batch_rows,
        **_waits(request, taken_at, until, known),
    )


def _waits(request: Request, taken_at: int, until: int, known: Known) -> dict[str, object]:
    """How long the request was read, and how it then waited until the instant `until`."""
    until = max(until, taken_at)
    wait: Wait = split(taken_at, until, _busy(taken_at, known), known.n_lanes)
    behind = [
        Behind(model=model, runs=runs, rows=rows, ms=_ms(span))
        for model, (runs, rows, span) in sorted(wait.behind.items(), key=lambda entry: -entry[1][2])
    ]
    return {
        "read_ms": _ms(max(0, taken_at - request.arrived_at)),
        "queue_ms": _ms(until - taken_at),
        "batch_wait_ms": _ms(wait.idle_ns),
        "apart_ms": _ms(wait.part_ns),
        "lanes_busy_ms": _ms(wait.full_ns),
        "behind": behind,
    }


def _busy(since: int, known: Known) -> Iterable[Busy]:
    """What ran after `since`: the newest runs first, which end nearly in order of time."""
    for dispatch in known.in_flight.values():
        yield Busy(dispatch.lane, dispatch.decided_at, known.now, dispatch.variant.model, dispatch.rows)
    for run in reversed(known.in_order):
        if run.ended_at < since - SLACK_NS:
            return
        began_at = run.started_at if run.staged else run.decided_at
        yield Busy(run.lane, began_at, run.ended_at, run.variant.model, run.rows)


def _in_flight(at: int, known: Known) -> list[str]:
    """Variants that ran or were staged at an instant."""
    dispatches = [one.variant.label for one in known.in_flight.values() if one.decided_at <= at]
    for run in reversed(known.in_order):
        if run.ended_at < at - SLACK_NS:
            break
        if run.decided_at <= at < run.ended_at:
            dispatches.append(run.variant.label)
    return sorted(dispatches)


SLACK_NS = 50 * NS_PER_MS
"""By how much runs may be told of out of the order of their ends (ns)."""


def _parts(outcome: Outcome, known: Known) -> list[Run]:
    """The runs of a request's batch in order: several when it was stopped and resumed."""
    found: list[Run] = []
    run = None if outcome.dispatch_id is None else known.runs.get(outcome.dispatch_id)
    while run is not None:
        found.append(run)
        run = None if run.resumes is None else known.runs.get(run.resumes)
    return found[::-1]


def _with_runs(told: Explanation, arrived_at: int, parts: list[Run], known: Known) -> Explanation:
    first, last = parts[0], parts[-1]
    run_ns = sum(part.ended_at - part.started_at for part in parts)
    staged_ns = sum(max(0, part.started_at - part.decided_at) for part in parts)
    gaps = [max(0, after.decided_at - before.ended_at) for before, after in pairwise(parts)]
    solo_ns = _solo(first.variant, known)
    whole = last.whole and first.first_segment == 0
    quantiles = last.predictions[0].finish_at if last.predictions else ()
    return structs.replace(
        told,
        staged_ms=_ms(staged_ns),
        run_ms=_ms(run_ns),
        suspended_ms=_ms(sum(gaps)) if gaps else None,
        variant=last.variant.label,
        batch_rows=last.rows,
        batch_requests=last.n_requests,
        lane=last.lane,
        decision=_decision(first, arrived_at),
        predicted=_quantiles(quantiles, arrived_at),
        within=_within(quantiles, last.ended_at),
        revised=[
            Revision(
                at_ms=_ms(later.issued_at - arrived_at),
                predicted_ms=_ms(later.finish_at[0] - arrived_at),
                corunners=later.corunners,
            )
            for later in last.predictions[1:][-MOST_REVISED:]
        ],
        solo_ms=None if solo_ns is None else _ms(solo_ns),
        slowdown=round(run_ns / solo_ns, 3) if solo_ns and whole else None,
        corunners=_corunners(parts, run_ns, known),
        n_corunners=sum(part.n_corunners for part in parts),
        parts=[_part(part, arrived_at) for part in parts] if len(parts) > 1 else [],
    )


def _with_dispatch(told: Explanation, arrived_at: int, dispatch: Dispatch) -> Explanation:
    """What a dispatch that has not ended tells."""
    quantiles = dispatch.prediction.finish_at
    return structs.replace(
        told,
        dispatched_ms=_since(arrived_at, dispatch.decided_at),
        predicted_ms=_since(arrived_at, quantiles[0]),
        variant=dispatch.variant.label,
        batch_rows=dispatch.rows,
        batch_requests=len(dispatch.requests),
        lane=dispatch.lane,
        decision=_decision(dispatch, arrived_at, beside(dispatch)),
        predicted=_quantiles(quantiles, arrived_at),
    )


def _decision(of: Run | Dispatch, arrived_at: int, beside: tuple[Variant, ...] | None = None) -> Decision:
    variants = beside if beside is not None else of.beside if isinstance(of, Run) else ()
    return Decision(
        dispatch=of.id,
        why=of.why,
        latest_start_ms=_since(arrived_at, of.latest_start_at),
        beside=[variant.label for variant in variants],
        alternatives=[
            Considered(
                model=other.variant.model,
                variant=other.variant.label,
                due_ms=_since(arrived_at, other.due_at),
                why=other.why,
            )
            for other in of.alternatives
        ],
    )


def _corunners(parts: list[Run], run_ns: int, known: Known) -> list[CoRunner]:
    """Who ran beside the parts, the longest first."""
    found: list[CoRunner] = []
    for part in parts:
        for overlap in part.overlaps:
            ended_at = part.ended_at if overlap.ended_at is None else min(overlap.ended_at, part.ended_at)
            span = ended_at - max(overlap.began_at, part.started_at)
            if span > 0:
                other = known.runs.get(overlap.dispatch_id)
                found.append(
                    CoRunner(
                        model=overlap.variant.model,
                        variant=overlap.variant.label,
                        rows=overlap.variant.rows if other is None else other.rows,
                        lane=overlap.lane,
                        ms=_ms(span),
                        share=round(span / max(1, run_ns), 4),
                    )
                )
    return sorted(found, key=lambda other: -other.ms)


def _part(run: Run, arrived_at: int) -> Part:
    return Part(
        dispatch=run.id,
        lane=run.lane,
        started_ms=_ms(run.started_at - arrived_at),
        ended_ms=_ms(run.ended_at - arrived_at),
        first_segment=run.first_segment,
        end_segment=run.end_segment,
    )


def _quantiles(finish_at: Sequence[int], arrived_at: int) -> dict[str, float]:
    return {name: _ms(at - arrived_at) for name, at in zip(LEVEL_NAMES, finish_at, strict=False)}


def _within(finish_at: Sequence[int], ended_at: int) -> str | None:
    """Name of the lowest level by which it had ended."""
    fixed = zip(LEVEL_NAMES[:SLO_COLUMN], finish_at, strict=False)
    return next((name for name, at in fixed if ended_at <= at), None)


def _solo(variant: Variant, known: Known) -> int | None:
    try:
        return known.solo(variant)
    except KeyError:
        return None


def _ms(span_ns: int) -> float:
    return round(span_ns / NS_PER_MS, 3)


def _since(arrived_at: int, at: int | None) -> float | None:
    return None if at is None else _ms(at - arrived_at)


def public(told: Explanation) -> Explanation:
    """Without what a failure says of the server's inside: only the phrase before ':' is for clients."""
    if told.outcome != OutcomeKind.FAILED.value:
        return told
    brief = told.reason.partition(":")[0]
    hidden = structs.replace(told, reason=brief)
    return structs.replace(hidden, sentence=sentence(hidden))


def to_json(told: Explanation) -> dict[str, Any]:
    """As clients get it: plain values, and `public`."""
    found: dict[str, Any] = to_builtins(public(told))
    return found

"""What became of a request, for people and as JSON: where its time went, what was predicted, who ran beside.

Instants (`..._ms`) count from the request's arrival, spans are spans; both in ms. A key is null where it
does not apply or nothing is known.
"""

from __future__ import annotations

from msgspec import Struct, field

ENDED, RUNNING, WAITING = "ended", "running", "waiting"
"""States of a request that is known."""
UNKNOWN, FORGOTTEN = "unknown", "forgotten"
"""States of one that is not: no such id was given, or it was and nothing is kept."""


class Behind(Struct, frozen=True, kw_only=True):
    """Batches of one model that ran while the request waited: how many, with how many rows, and for how long
    in all of the wait (ms)."""

    model: str
    runs: int
    rows: int
    ms: float


class CoRunner(Struct, frozen=True, kw_only=True):
    """A dispatch that ran beside the request's; `share`: of the request's run (0..1)."""

    model: str
    variant: str
    rows: int
    lane: int
    ms: float
    share: float


class Considered(Struct, frozen=True, kw_only=True):
    """Another batch that could have been chosen, and why it was not."""

    model: str
    variant: str
    due_ms: float | None
    why: str


class Decision(Struct, frozen=True, kw_only=True):
    """Why the batch was started when it was. `beside`: variants in flight then; `latest_start_ms`: by when it
    had to start."""

    dispatch: int
    why: str
    latest_start_ms: float | None
    beside: list[str] = []
    alternatives: list[Considered] = []


class Revision(Struct, frozen=True, kw_only=True):
    """A later prediction of the same run: when (`at_ms`), its median, and how many ran beside."""

    at_ms: float
    predicted_ms: float
    corunners: int


class Part(Struct, frozen=True, kw_only=True):
    """One of several dispatches of a run that was stopped at a segment boundary and resumed."""

    dispatch: int
    lane: int
    started_ms: float
    ended_ms: float
    first_segment: int
    end_segment: int


class Explanation(Struct, frozen=True, kw_only=True):
    """See the module's head. The keys up to `batch_rows` are as they always were."""

    id: str
    model: str = ""
    job_class: str = field(name="class", default="")
    outcome: str | None = None
    reason: str = ""
    deadline_ms: float | None = None
    dispatched_ms: float | None = None
    started_ms: float | None = None
    predicted_ms: float | None = None
    """Median finish: predicted at dispatch, or when the request was refused."""
    ended_ms: float | None = None
    batch_rows: int = 0
    state: str = ENDED
    sentence: str = ""
    arrived: str = ""
    """Wall-clock time, ISO 8601, UTC."""
    read_ms: float | None = None
    """From the headers until the scheduler had the request: reading and checking its body."""
    queue_ms: float | None = None
    """From then until its batch was dispatched, or until it ended without one."""
    batch_wait_ms: float | None = None
    """The part of it with nothing running: held back for a larger batch, or nobody had time to decide."""
    apart_ms: float | None = None
    """The part with a lane free beside what ran: kept apart from it."""
    lanes_busy_ms: float | None = None
    """The part with every lane taken."""
    staged_ms: float | None = None
    """From the dispatch to the start: hand-over, and the end of what ran on the lane."""
    run_ms: float | None = None
    suspended_ms: float | None = None
    """Between the parts of a run that was stopped at segment boundaries."""
    answer_ms: float | None = None
    """From the end until the answer was sent."""
    behind: list[Behind] = []
    variant: str | None = None
    batch_requests: int | None = None
    lane: int | None = None
    decision: Decision | None = None
    predicted: dict[str, float] = {}
    """Finish as quantiles at dispatch, by level; `slo`: the model's own."""
    within: str | None = None
    """The lowest of these levels by which it had ended; null: none."""
    revised: list[Revision] = []
    solo_ms: float | None = None
    """Measured span of its variant with nobody beside it."""
    slowdown: float | None = None
    corunners: list[CoRunner] = []
    """The longest of them, at most 64 ..."""
    n_corunners: int | None = None
    """... of so many."""
    in_flight: list[str] = []
    """Variants in flight when it was refused."""
    parts: list[Part] = []


def shown(ms: float) -> str:
    """A span for people: `12 ms`, `3.4 ms`, `2.5 s`."""
    if abs(ms) >= 1000:
        return f"{ms / 1000:.1f} s"
    return f"{ms:.0f} ms" if abs(ms) >= 10 else f"{ms:.1f} ms"


NOT_WORTH_SAYING = 0.05
"""Causes of less than this share of all the time are left out of the sentence."""


def sentence(told: Explanation) -> str:
    """One sentence that says how it went and what took the time."""
    causes = _causes(told)
    return f"{_verdict(told)}: {'; '.join(causes)}" if causes else _verdict(told)


def _verdict(told: Explanation) -> str:
    ended, deadline = told.ended_ms or 0.0, told.deadline_ms
    spare = None if deadline is None else deadline - ended
    match told.outcome:
        case "ok":
            return _answered(ended + (told.answer_ms or 0.0), deadline)
        case "late":
            return f"late by {shown(-(spare or 0.0))}"
        case "rejected":
            return f"refused after {shown(ended)}, {_refusal(told)}"
        case "expired":
            return f"given up after {shown(ended)}, {told.reason.replace(': ', ', ')}"
        case "cancelled":
            return f"ended after {shown(ended)}, {told.reason}"
        case _:
            return f"failed after {shown(ended)}, {told.reason.replace(': ', ', ')}"


def _answered(sent: float, deadline: float | None) -> str:
    text = f"answered after {shown(sent)}"
    if deadline is None:
        return text
    if sent <= deadline:
        return f"{text}, {shown(deadline - sent)} before its deadline"
    return f"{text}, {shown(sent - deadline)} past its deadline although its run had ended in time"


def _refusal(told: Explanation) -> str:
    if told.predicted_ms is None or told.deadline_ms is None:
        return told.reason
    late = told.predicted_ms - told.deadline_ms
    text = f"it would have ended after {shown(told.predicted_ms)}"
    if late > 0:
        text += f", {shown(late)} past its deadline"
    else:
        text += f", but {told.reason.partition(': ')[2] or told.reason}"
    return f"{text} (in flight: {', '.join(told.in_flight[:4])})" if told.in_flight else text


def _causes(told: Explanation) -> list[str]:
    total = max(told.ended_ms or 0.0, 1e-9)
    found: list[tuple[float, str]] = []

    def cause(ms: float | None, text: str) -> None:
        if ms is not None and ms > NOT_WORTH_SAYING * total:
            found.append((ms, text))

    cause(told.read_ms, f"took {shown(told.read_ms or 0.0)} to arrive in full")
    cause(told.queue_ms, f"waited {shown(told.queue_ms or 0.0)}{_waited_for(told)}")
    cause(told.staged_ms, f"was staged on its lane for {shown(told.staged_ms or 0.0)}")
    cause(told.suspended_ms, f"was suspended for {shown(told.suspended_ms or 0.0)}")
    if told.run_ms is not None:
        found.append((told.run_ms, f"ran {_ran(told)}"))
    cause(told.answer_ms, f"took {shown(told.answer_ms or 0.0)} more to answer")
    return [text for _, text in sorted(found, key=lambda pair: -pair[0])]


def _waited_for(told: Explanation) -> str:
    parts = (told.batch_wait_ms or 0.0, told.apart_ms or 0.0, told.lanes_busy_ms or 0.0)
    if parts[0] > sum(parts) / 2:
        return " for a larger batch" if (told.batch_requests or 0) > 1 else " with every lane free"
    if not told.behind:
        return ""
    names = [f"{counted(one.runs, 'batch')} of {one.model}" for one in told.behind[:2]]
    if len(told.behind) > 2:
        names.append(f"{counted(sum(one.runs for one in told.behind[2:]), 'batch')} of others")
    apart = " although a lane was free" if parts[1] > parts[2] else ""
    return f" behind {listed(names)}{apart}"


def listed(names: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def counted(n: int, noun: str) -> str:
    """`1 batch`, `2 batches`."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}{'es' if noun.endswith('ch') else 's'}"


def _ran(told: Explanation) -> str:
    text = shown(told.run_ms or 0.0)
    if told.slowdown is not None:
        text += f", {told.slowdown:.1f} x its solo time"
    shares: dict[str, float] = {}
    for other in told.corunners:
        shares[other.model] = shares.get(other.model, 0.0) + other.share
    if not shares:
        return f"{text}{'' if told.run_ms is None or told.outcome == 'failed' else ', alone'}"
    most = sorted(shares.items(), key=lambda pair: -pair[1])
    names = [f"{model} ({min(1.0, share):.0%} of the run)" for model, share in most[:3]]
    more = f" and {len(most) - 3} more models" if len(most) > 3 else ""
    return f"{text} beside {', '.join(names)}{more}"

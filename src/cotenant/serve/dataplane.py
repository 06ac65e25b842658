"""What every protocol of the front end shares: find the model, settle the deadline, call, map the outcome."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import orjson
from msgspec import Struct

from cotenant.domain import (
    NS_PER_MS,
    NS_PER_S,
    JobClass,
    ModelMetadata,
    Outcome,
    OutcomeKind,
    model_of,
    version_of,
)
from cotenant.engine_client import Call, EngineClient, Reply
from cotenant.redact import without_paths
from cotenant.serve.errors import BadRequest
from cotenant.serve.oip import Inference

Headers = list[tuple[bytes, bytes]]

LONGEST_BUDGET_NS = 366 * 24 * 3600 * NS_PER_S
HIGHEST_PRIORITY = 2**31
RETRY_AFTER_MS = 1000.0
"""What a refusal advises when nothing better is known."""

UNAVAILABLE = "not available"
"""How the reason of a rejection (or of a cancellation by the server) begins that is no fault of the
request: 503."""

JSON_TYPE = (b"content-type", b"application/json")


class Answer(Struct, frozen=True):
    """What goes back to the client; `ended_at` is when the run ended whose outputs it holds (ns)."""

    status: int
    headers: Headers
    body: bytes
    ended_at: int | None = None


def find_model(client: EngineClient, name: str, version: str | None) -> ModelMetadata:
    """The loaded model; of one with several versions the latest, unless one is asked for. Raises BadRequest:
    404 when unknown, 503 when there is such a model but it is not loaded."""
    models = client.metadata()
    metadata = None if "@" in name else models.get(name)
    if metadata is not None:
        loaded: Sequence[str] = metadata.versions
        if version is None or version in loaded:
            return metadata
    else:
        loaded = versions_of(models, name)
        if version is None and loaded:
            return models[f"{name}@{loaded[-1]}"]
        if version in loaded:
            return models[f"{name}@{version}"]
        _check_known(client, name, version)
    if not loaded:
        raise BadRequest(404, f"unknown model '{name:.100}'")
    raise BadRequest(404, f"model '{name}' has no version '{version:.100}'; it has {', '.join(loaded)}")


def versions_of(models: Mapping[str, ModelMetadata], name: str) -> list[str]:
    """The loaded versions of a repository's model, ascending."""
    prefix = f"{name}@"
    return sorted((found[len(prefix) :] for found in models if found.startswith(prefix)), key=int)


def _check_known(client: EngineClient, name: str, version: str | None) -> None:
    """Raise a BadRequest (503) for a model, or a version of one, that is there but not loaded."""
    for status in client.status():
        if "@" in name or model_of(status.name) != name:
            continue
        if "@" in status.name and version not in (None, version_of(status.name)):
            continue
        why = f" ({without_paths(status.reason)})" if status.reason else ""
        raise BadRequest(503, f"{UNAVAILABLE}: model '{name}' is {status.state.lower()}{why}")


# --- deadline -------------------------------------------------------------------------------------


def budget_ns(
    timeout_us: object, slo_ms: bytes | None, timeout_s: bytes | None, protocol_ns: int | None = None
) -> int | None:
    """The budget the client asked for: the smallest of V2 `timeout` (us), `x-slo-ms`,
    `x-request-timeout-seconds` and what the protocol itself says (a gRPC deadline); None when none is given.
    Raises BadRequest on a malformed one."""
    if timeout_us is None and slo_ms is None and timeout_s is None:
        return protocol_ns
    budgets: list[int] = [] if protocol_ns is None else [protocol_ns]
    if timeout_us is not None:
        if type(timeout_us) is not int or not 0 < timeout_us * 1000 <= LONGEST_BUDGET_NS:
            raise BadRequest(
                400,
                "parameters.timeout: expected whole microseconds above 0 and at most "
                f"{LONGEST_BUDGET_NS // 1000}, got {timeout_us!r:.40}",
            )
        budgets.append(timeout_us * 1000)
    if slo_ms is not None:
        budgets.append(_span_ns(slo_ms, "x-slo-ms", NS_PER_MS, "milliseconds"))
    if timeout_s is not None:
        budgets.append(_span_ns(timeout_s, "x-request-timeout-seconds", NS_PER_S, "seconds"))
    return min(budgets)


def _span_ns(text: bytes, name: str, unit_ns: int, unit: str) -> int:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= LONGEST_BUDGET_NS / unit_ns:
        shown = text.decode("latin-1")
        raise BadRequest(
            400,
            f"header {name}: expected {unit} above 0 and at most {LONGEST_BUDGET_NS // unit_ns}, "
            f"got {shown!r:.40}",
        )
    return max(1, int(value * unit_ns))


def check_priority(value: object, highest: JobClass = JobClass.PROTECTED) -> int:
    """The V2 parameter `priority`: 0 is the model's own class. Never above `highest`. Raises BadRequest."""
    if type(value) is not int or not 0 <= value <= HIGHEST_PRIORITY:
        raise BadRequest(
            400, f"parameters.priority: expected an integer from 0 to {HIGHEST_PRIORITY}, got {value!r:.40}"
        )
    return value if highest is JobClass.PROTECTED else max(value, highest)


# --- the call -------------------------------------------------------------------------------------


async def infer(
    client: EngineClient,
    model: str,
    call_id: str,
    inference: Inference,
    arrived_at: int,
    slo_ns: int | None,
    answer_ns: int = 0,
    highest: JobClass = JobClass.PROTECTED,
) -> Reply:
    """Hand the inference to the engine and wait for its outcome; `answer_ns` is how long answering it will
    take, `highest` the class above which its sender may not rise. Cancelling the task cancels the call."""
    return await client.infer(
        Call(
            id=call_id,
            model=model,
            inputs=inference.inputs,
            rows=inference.rows,
            axes=inference.axes,
            arrived_at=arrived_at,
            slo_ns=slo_ns,
            priority=check_priority(inference.priority, highest),
            answer_ns=answer_ns,
        )
    )


STATUS: dict[OutcomeKind, int] = {
    OutcomeKind.OK: 200,
    OutcomeKind.LATE: 200,
    OutcomeKind.REJECTED: 429,
    OutcomeKind.EXPIRED: 504,
    OutcomeKind.CANCELLED: 499,
    OutcomeKind.FAILED: 500,
}
"""HTTP status by outcome; a refusal for want of a server is 503 instead."""


class Failure(Struct, frozen=True, kw_only=True):
    """What a client is told of a request that got no result; each protocol says it in its own form. `status`
    is the HTTP status."""

    status: int
    message: str
    reason: str
    predicted_ms: float | None = None
    retry_after_ms: float | None = None
    outcome: OutcomeKind | None = None


def failure(outcome: Outcome) -> Failure:
    """What to tell of an outcome without a result. A failure's details stay in the log: only the fixed phrase
    before ':' leaves the server."""
    status = STATUS[outcome.kind]
    reason = outcome.reason
    if reason.startswith(UNAVAILABLE) and outcome.kind in (OutcomeKind.REJECTED, OutcomeKind.CANCELLED):
        status = 503
    if outcome.kind is OutcomeKind.FAILED:
        reason = reason.partition(":")[0]
    predicted_ms: float | None = None
    if outcome.predicted_at is not None:
        predicted_ms = (outcome.predicted_at - outcome.request.arrived_at) / NS_PER_MS
    return Failure(
        status=status,
        message=f"request {outcome.kind}: {reason}",
        reason=reason,
        predicted_ms=predicted_ms,
        retry_after_ms=advised_ms(outcome) if status in (429, 503) else None,
        outcome=outcome.kind,
    )


def refusal(outcome: Outcome) -> Answer:
    """The HTTP answer to a request that got no result."""
    told = failure(outcome)
    return error_answer(
        told.status,
        told.message,
        reason=told.reason,
        predicted_ms=told.predicted_ms,
        retry_after_ms=told.retry_after_ms,
        outcome=told.outcome,
    )


def advised_ms(outcome: Outcome) -> float:
    """After what time (ms) to try again: the predicted completion misses the deadline by that much, and by
    that much the backlog will have shrunk."""
    deadline_at = outcome.request.deadline_at
    if outcome.predicted_at is None or deadline_at is None or outcome.predicted_at <= deadline_at:
        return RETRY_AFTER_MS
    return (outcome.predicted_at - deadline_at) / NS_PER_MS


def error_answer(
    status: int,
    message: str,
    *,
    reason: str | None = None,
    predicted_ms: float | None = None,
    retry_after_ms: float | None = None,
    outcome: OutcomeKind | None = None,
) -> Answer:
    """An error as JSON: `{error}`, and for refusals by the scheduler or the server's state also `reason,
    predicted_ms, retry_after_ms` and a Retry-After header."""
    message = message.encode("utf-8", "replace").decode()  # what a client sent may hold half a surrogate
    body: dict[str, object] = {"error": message}
    headers: Headers = [JSON_TYPE]
    if status in (429, 503) and retry_after_ms is None:
        retry_after_ms = RETRY_AFTER_MS
    if outcome is not None or retry_after_ms is not None:
        body["reason"] = message if reason is None else reason
        body["predicted_ms"] = predicted_ms
        body["retry_after_ms"] = retry_after_ms
    if retry_after_ms is not None:
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(retry_after_ms / 1000))))
    if outcome is not None:
        headers.append((b"x-cotenant-outcome", outcome.value.encode()))
    return Answer(status, headers, orjson.dumps(body))

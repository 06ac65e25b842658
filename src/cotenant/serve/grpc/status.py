"""How a request that got no result ends in gRPC: status code, details, trailing metadata."""

from __future__ import annotations

from collections.abc import Mapping

from grpc import StatusCode

from cotenant.domain import OutcomeKind
from cotenant.serve.access import STATUS
from cotenant.serve.dataplane import RETRY_AFTER_MS, Failure
from cotenant.serve.errors import BadRequest
from cotenant.serve.gate import Refusal
from cotenant.serve.grpc import inference_pb2 as pb

Metadata = tuple[tuple[str, str], ...]

CODES: Mapping[int, StatusCode] = {
    400: StatusCode.INVALID_ARGUMENT,
    401: StatusCode.UNAUTHENTICATED,
    403: StatusCode.PERMISSION_DENIED,
    404: StatusCode.NOT_FOUND,
    413: StatusCode.RESOURCE_EXHAUSTED,
    415: StatusCode.INVALID_ARGUMENT,
    429: StatusCode.RESOURCE_EXHAUSTED,
    499: StatusCode.CANCELLED,
    500: StatusCode.INTERNAL,
    501: StatusCode.UNIMPLEMENTED,
    503: StatusCode.UNAVAILABLE,
    504: StatusCode.DEADLINE_EXCEEDED,
}
"""HTTP status -> gRPC status: every part of the front end speaks of failures by their HTTP status."""

INTERNAL = Failure(status=500, message="internal error", reason="internal error")
MAX_DETAILS_BYTES = 1024
"""Details travel in a header whose size clients limit (8 KiB), percent-encoded (three times as long)."""


def told_of(error: BadRequest) -> Failure:
    """What to tell of a request that could not be taken."""
    retry_after_ms = RETRY_AFTER_MS if error.status in (429, 503) else None
    return Failure(
        status=error.status, message=error.message, reason=error.message, retry_after_ms=retry_after_ms
    )


def refused(refusal: Refusal) -> Failure:
    """What to tell of a call that the gate refused."""
    quota = STATUS[refusal.denial] == 429
    return Failure(
        status=STATUS[refusal.denial],
        message=f"request rejected: {refusal.message}" if quota else refusal.message,
        reason=refusal.denial.value if quota else refusal.message,
        retry_after_ms=refusal.retry_after_ms,
        outcome=OutcomeKind.REJECTED if quota else None,
    )


def advice(failure: Failure) -> Metadata:
    """What ends a call that was refused before it had an id."""
    return trailing_metadata("", failure)[1:]


def code_of(failure: Failure) -> StatusCode:
    """Its status code; one without a code of its own is an unknown error."""
    return CODES.get(failure.status, StatusCode.UNKNOWN)


def details_of(failure: Failure) -> str:
    """Its details: the message, cut to what a header holds."""
    text = failure.message.encode("utf-8", "replace")
    return text[:MAX_DETAILS_BYTES].decode("utf-8", "ignore")


def trailing_metadata(call_id: str, failure: Failure | None = None, *, late: bool = False) -> Metadata:
    """What every answer to an inference ends with. `grpc-retry-pushback-ms` tells a client that retries by
    itself how long to wait."""
    found = [("x-request-id", call_id)]
    if late:
        found.append(("x-cotenant-outcome", "late"))
    if failure is None:
        return tuple(found)
    if failure.outcome is not None:
        found.append(("x-cotenant-outcome", failure.outcome.value))
    if failure.predicted_ms is not None:
        found.append(("predicted-ms", f"{failure.predicted_ms:.3f}"))
    if failure.retry_after_ms is not None:
        found.append(("retry-after-ms", f"{failure.retry_after_ms:.3f}"))
        found.append(("grpc-retry-pushback-ms", str(max(1, round(failure.retry_after_ms)))))
    return tuple(found)


def describe(
    response: pb.ModelInferResponse, call_id: str, failure: Failure | None = None, *, late: bool = False
) -> None:
    """Say in the parameters of an answer on a stream, which has no trailing metadata of its own, what that
    would say. `triton_final_response`: no other answer to this request will come."""
    for name, value in trailing_metadata(call_id, failure, late=late):
        if not name.startswith("grpc-"):
            response.parameters[name].string_param = value
    response.parameters["triton_final_response"].bool_param = True


def failed_on_stream(request_id: str, call_id: str, failure: Failure) -> bytes:
    """The answer on a stream to a request that failed; it holds the request's id and, in the parameter
    `grpc-status`, the name of the status that the request alone would have ended with."""
    answer = pb.ModelStreamInferResponse(error_message=details_of(failure))
    answer.infer_response.id = request_id
    answer.infer_response.parameters["grpc-status"].string_param = code_of(failure).name
    describe(answer.infer_response, call_id, failure)
    serialised: bytes = answer.SerializeToString()
    return serialised

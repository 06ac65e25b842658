"""How a request can end without an answer."""

from __future__ import annotations


class ServerError(Exception):
    """A request that got no result; `status` is the HTTP status, None when no answer came. `reason` is the
    server's, `request_id` its `x-request-id` (for `cotenant explain`), None where there is none."""

    def __init__(
        self, message: str, *, status: int | None = None, reason: str = "", request_id: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason or message
        self.request_id = request_id


class InvalidRequest(ServerError):  # noqa: N818 - named for what it is, as the others
    """The server will not take it as it is (4xx): unknown model, wrong types or shapes, too large, not
    allowed. Asking again does not help."""


class Refused(ServerError):  # noqa: N818
    """Turned down for now. `retry_after_ms`: after which time it may be otherwise, if the server says."""

    def __init__(
        self,
        message: str,
        *,
        predicted_ms: float | None = None,
        retry_after_ms: float | None = None,
        **more: str | int | None,
    ) -> None:
        super().__init__(message, **more)  # type: ignore[arg-type]
        self.predicted_ms = predicted_ms
        self.retry_after_ms = retry_after_ms


class Rejected(Refused):
    """The deadline cannot be met, or a quota is used up (429). `predicted_ms`: time from its arrival within
    which it could have been answered, if that is the reason."""


class Unavailable(Refused):
    """The server or the model cannot be asked now (503), or no answer came: no connection, one that broke, or
    none within the client's `timeout_s`."""


class Expired(ServerError):  # noqa: N818
    """The deadline passed before the request was run (504)."""


class Cancelled(ServerError):  # noqa: N818
    """The request was cancelled (499)."""


class Failed(ServerError):  # noqa: N818
    """The model failed on it, or the server did (500)."""

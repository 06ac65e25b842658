"""The one exception of the front end: a request that cannot be taken, with the status to answer."""

from __future__ import annotations


class BadRequest(Exception):  # noqa: N818 - named for what the client did
    """A refused request. `message` names the field, what was wrong and what was expected, and holds
    nothing of the server's inside; `status` is the HTTP status (gRPC maps it to its own)."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message

"""Taking a place at the gate for one HTTP inference, by its headers, before its body is read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from cotenant.serve.dataplane import budget_ns
from cotenant.serve.gate import Gate, Refusal, Ticket
from cotenant.serve.keys import Principal

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]


class RefusedError(Exception):
    """The gate refused the request."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


def enter(
    gate: Gate, principal: Principal, model: str, headers: Mapping[bytes, bytes], max_body_bytes: int
) -> Ticket:
    """Take a place. Raises RefusedError, and BadRequest on a malformed budget."""
    asked = budget_ns(None, headers.get(b"x-slo-ms"), headers.get(b"x-request-timeout-seconds"))
    declared = headers.get(b"content-length", b"")
    n_bytes = min(int(declared), max_body_bytes) if declared.isdigit() else 0
    entered = gate.enter(principal, model, asked, n_bytes)
    if isinstance(entered, Refusal):
        raise RefusedError(entered)
    return entered


def counted(receive: Receive, headers: Mapping[bytes, bytes], ticket: Ticket) -> Receive:
    """`receive`; where no header tells the body's length, its bytes are counted as they come. That raises
    RefusedError when there is no room for more."""
    if b"content-length" in headers:
        return receive

    async def counting() -> Message:
        message = await receive()
        refusal = ticket.grow(len(message.get("body", b"")))
        if refusal is not None:
            raise RefusedError(refusal)
        return message

    return counting

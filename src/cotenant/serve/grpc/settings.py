"""Settings of the gRPC front end, besides those it shares with HTTP."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpcConfig:
    """Settings of the gRPC front end."""

    max_in_flight_per_stream: int = 128
    """Requests of one ModelStreamInfer that are being answered; the next is read when one of them is done."""
    max_calls_per_connection: int = 1024
    """Calls at a time on one connection; the client's library lets others wait."""
    ask_silent_after_s: float = 60.0
    """A connection that was silent for so long, in seconds, is asked whether its client is still there."""
    ask_silent_for_s: float = 20.0
    """How long the client has to answer that, in seconds, before its calls are cancelled."""
    health_watch_s: float = 0.25
    """How often, in seconds, a health watch looks whether something has changed."""

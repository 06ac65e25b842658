"""Settings of the gRPC front end, besides those it shares with HTTP."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpcConfig:
    """Settings of the gRPC front end."""

    max_in_flight_per_stream: int = 128
    """Requests of one ModelStreamInfer that are being answered; the next is read when one of them is done."""
    health_watch_s: float = 0.25
    """How often, in seconds, a health watch looks whether something has changed."""

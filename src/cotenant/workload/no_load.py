"""The load meter that is not there: nothing is known of the traffic."""

from __future__ import annotations

from cotenant.domain import LoadEstimate, Request, Variant

NOTHING = LoadEstimate(models={}, refill=0.0, busy=0.0)


class NoLoad:
    """Implements the `LoadMeter` port: no rates, so nothing is waited for, and nobody is expected to join."""

    def arrived(self, request: Request) -> None: ...

    def dispatched(self, variant: Variant, lane: int, at: int) -> None: ...

    def freed(self, lane: int, at: int) -> None: ...

    def lanes_busy(self, n_busy: int, n_lanes: int, at: int) -> None: ...

    def estimate(self, at: int) -> LoadEstimate:
        return NOTHING

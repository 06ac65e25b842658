"""Instants of CUDA events on the host's clock.

An anchor is an event whose instant the host knows. It is renewed every second or so: an event's distance from
it is a float32 of ms, good to a microsecond only over a few seconds, and the two clocks drift.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from cotenant.clock import Clock
from cotenant.domain import NS_PER_MS, NS_PER_S
from cotenant.execute.torch.partitions import new_stream

ANCHOR_NS, OLDEST_ANCHOR_NS = NS_PER_S, 4 * NS_PER_S
"""Age at which the anchor of device times is renewed, and at which one worse than it is taken too (ns)."""
ANCHOR_TRIES = 3


@dataclass(frozen=True, slots=True)
class Anchor:
    """An event, the instant it was reached, and how long the host waited for it: twice the error (ns)."""

    event: Any
    at: int
    width: int


class DeviceClock:
    """Brings instants of CUDA events to the host's clock. For any thread."""

    def __init__(self, clock: Clock, device: torch.device) -> None:
        self._clock = clock
        self._stream = new_stream(device)
        self._anchor = self._new_anchor()
        self._due_at = self._anchor.at + ANCHOR_NS

    def _new_anchor(self) -> Anchor:
        """The tightest of a few: one may have been kept waiting by other streams."""
        found = []
        for _ in range(ANCHOR_TRIES):
            event = torch.cuda.Event(enable_timing=True)
            before = self._clock.now()
            event.record(self._stream)
            event.synchronize()
            after = self._clock.now()
            found.append(Anchor(event, (before + after) // 2, after - before))
        return min(found, key=lambda anchor: anchor.width)

    def instant(self, event: Any) -> int:
        """When the event, which must have passed, was reached (ns, host clock)."""
        now = self._clock.now()
        if now > self._due_at:
            self._due_at = now + ANCHOR_NS
            new = self._new_anchor()
            if new.width <= 2 * self._anchor.width or now - self._anchor.at > OLDEST_ANCHOR_NS:
                self._anchor = new
        anchor = self._anchor
        return anchor.at + int(anchor.event.elapsed_time(event) * NS_PER_MS)


def ns_between(first: Any, second: Any) -> int:
    """From one event to another; both must have passed."""
    return int(first.elapsed_time(second) * NS_PER_MS)

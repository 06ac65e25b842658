"""Refusing early what the engine would refuse anyway, before its body is read and decoded.

How this works. The engine decides which requests can make their deadlines; under overload most of its
decisions are refusals, each of which costs the reading, decoding and handing over of a body. So the front end
watches the engine's verdicts per kind of request (model, and power of two of the budget asked for in the
headers), and lets through only a little more than the engine has lately taken: of `n` offered in the last
second or so, of which `taken` were not refused, a share of `(n - SPARE * taken) / (n + 1)` is refused at
once (adaptive throttling: Beyer et al., Site Reliability Engineering, 2016, ch. 21). It needs no knowledge of
the engine's state, works with several front ends, and follows a change of capacity by itself: what is let
through grows by `SPARE` per window for as long as all of it is taken. Those refused are spread evenly, and
`FLOOR_PER_S` requests per second always pass, so that recovery is seen.
"""

from __future__ import annotations

from cotenant.domain import NS_PER_S

SPARE = 1.5
"""How much more than the engine takes it is offered: enough to choose from, and to notice that it can take
more."""
WINDOW_NS = NS_PER_S // 2
"""Verdicts count for one to two of these spans (ns)."""
FLOOR_PER_S = 20
"""Requests per second of a kind that always pass."""


class Throttle:
    """Verdicts on one kind of request."""

    __slots__ = ("_at", "_n", "_n_before", "_passing", "_share", "_taken", "_taken_before", "retry_after_ms")

    def __init__(self, now: int) -> None:
        self._at = now
        self._n = self._n_before = 0
        self._taken = self._taken_before = 0
        self._passing = 0
        self._share = 0.0
        self.retry_after_ms: float | None = None
        """What the engine advised when it last refused one."""

    def passes(self, now: int) -> bool:
        """Whether the next request may go to the engine; one that may counts as taken until `refused`."""
        if now - self._at >= WINDOW_NS:
            self._turn(now)
        self._n += 1
        n = self._n + self._n_before
        taken = max(0, self._taken + self._taken_before)
        refused_share = (n - SPARE * taken) / (n + 1)
        if refused_share > 0 and self._passing >= FLOOR_PER_S * WINDOW_NS // NS_PER_S:
            self._share += 1 - refused_share
            if self._share < 1:
                return False
            self._share -= 1
        self._passing += 1
        self._taken += 1
        return True

    def refused(self, retry_after_ms: float | None) -> None:
        """The engine refused one that had passed."""
        self._taken -= 1
        self.retry_after_ms = retry_after_ms

    def _turn(self, now: int) -> None:
        recent = now - self._at < 2 * WINDOW_NS
        self._n_before, self._taken_before = (self._n, self._taken) if recent else (0, 0)
        self._n = self._taken = self._passing = 0
        self._at = now

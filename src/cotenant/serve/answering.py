"""How long answers take from the end of a run until they are sent: that much of a budget is not for running.

The end is reported, decided about, encoded and written by one thread that other requests need too. Under load
a run that ends just before its deadline is answered after it, so it is planned to end that much earlier.
"""

from __future__ import annotations

from collections import deque

LEVEL = 0.95
"""Share of answers (0..1) for which the reserve is enough."""
REMEMBERED = 256
"""Answers that the reserve is taken from, the newest."""
RENEWED_EVERY = 16
"""Answers after which the reserve is taken anew; before so many there is none."""


class AnswerTimes:
    """Fed by the route with every answer; not thread-safe."""

    def __init__(self) -> None:
        self.reserve_ns = 0
        """Span (ns) within which `LEVEL` of the latest answers were sent."""
        self._spans: deque[int] = deque(maxlen=REMEMBERED)
        self._n_new = 0

    def sent(self, span_ns: int) -> None:
        """An answer was sent so long (ns) after its run had ended."""
        self._spans.append(span_ns)
        self._n_new += 1
        if self._n_new == RENEWED_EVERY:
            self._n_new = 0
            spans = sorted(self._spans)
            self.reserve_ns = max(0, spans[int(LEVEL * len(spans))])

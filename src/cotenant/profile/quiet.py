"""Whether the machine was quiet enough for a measurement to mean something."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from cotenant.clock import process_cpu_s
from cotenant.profile.records import Quiet

TICKS_PER_S = 100
"""Of /proc/stat: USER_HZ, which is 100 on every Linux in use."""
SPREAD, BUSY = 0.10, 0.05
"""Most spread of fixed work, and most cores used by others or withheld, of a quiet machine."""


class QuietWatch:
    """Measures from its making to `report`. `spin()` does a fixed piece of work alone and returns its span
    (ns); `now` is a clock. Where /proc/stat is missing, others count as 0."""

    def __init__(self, now: Callable[[], int], stat: Path = Path("/proc/stat")) -> None:
        self._now, self._stat = now, stat
        self._spans: list[float] = []
        self._began, self._own_s, self._ticks = now(), process_cpu_s(), _ticks(stat)

    def spun(self, span_ns: float) -> None:
        """A fixed piece of work took so long."""
        self._spans.append(span_ns)

    def report(self) -> Quiet:
        """What was seen so far."""
        seconds = (self._now() - self._began) / 1e9
        busy, stolen = (b - a for a, b in zip(self._ticks, _ticks(self._stat), strict=True))
        others = busy / TICKS_PER_S - (process_cpu_s() - self._own_s)
        spans = np.array(self._spans or [1.0])
        return Quiet(
            spread=float(np.quantile(spans, 0.9) / np.median(spans)) - 1.0,
            others=max(0.0, others / seconds) if seconds > 0 else 0.0,
            stolen=max(0.0, stolen / TICKS_PER_S / seconds) if seconds > 0 else 0.0,
        )


def disturbance(quiet: Quiet) -> str | None:
    """What was wrong, in words; None when the machine was quiet."""
    problems = []
    if quiet.others > BUSY:
        problems.append(f"other processes used {quiet.others:.2f} cores")
    if quiet.stolen > BUSY:
        problems.append(f"the hypervisor withheld {quiet.stolen:.2f} cores")
    if quiet.spread > SPREAD:
        problems.append(f"fixed work varied by {100 * quiet.spread:.0f} % (90 % quantile over median)")
    return ", ".join(problems) or None


def _ticks(stat: Path) -> tuple[int, int]:
    """(busy, stolen) ticks of all cores since the start of the machine."""
    try:
        fields = [int(text) for text in stat.read_text().split("\n", 1)[0].split()[1:]]
    except (OSError, ValueError):
        return 0, 0
    user, nice, system, _, _, irq, soft, steal, *_ = [*fields, *[0] * 8]
    return user + nice + system + irq + soft, steal

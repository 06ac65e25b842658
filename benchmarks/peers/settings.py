"""What all parts of the comparison share: places, loads, limits."""

from __future__ import annotations

import os
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

CONNECTIONS = (8, 64)
"""Of the echo's closed loop."""
FLOATS = [i / 4 for i in range(16)]
"""What is echoed."""
SCALES = (1.2, 1.0, 0.8, 0.5)
"""Offered load of the mix as a multiple of the capacity, in this order: a shared machine that has rested is
faster for some seconds, and would not be overloaded at 1.2 then."""
BEYOND = (1.6,)
"""Further scales for cotenant, before the others."""

START_LIMIT_S = 120.0
"""How long a server may take until it answers."""
STOP_LIMIT_S = 20.0
WARM_ECHO_S = 2.0
WARM_MIXED_S = 4.0
WARM_SCALE = 0.8
CAPACITY_WARM_S = 6.0
BACKLOG = 64
"""Requests that wait while the capacity is measured."""
DRAIN_S = 6.0
"""How long answers are waited for after the last request of a run."""
REST_LIMIT_S = 40.0
"""How long a server may take to work off what is left of a run."""

OTHERS_TARGET = 0.02
"""Most CPU time of other processes during a run, as a share of the machine."""


def cores() -> int:
    """Cores that every server may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cache_folder() -> Path:
    """Where environments and partial results are kept unless told otherwise."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "cotenant" / "peers"

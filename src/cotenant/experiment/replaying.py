"""Replay of an event log: the same events to a fresh scheduler must lead to the same actions."""

from __future__ import annotations

from itertools import tee
from pathlib import Path

from cotenant.assemble import from_header
from cotenant.simulate.driver import replay
from cotenant.telemetry.event_log import read


def replay_log(path: Path) -> tuple[int, int, str | None]:
    """(events, actions, first difference or None). Raises ValueError when the file is no event log."""
    header, entries = read(path)
    scheduler, learner = from_header(header)
    logged, events = tee(entries)
    replayed = replay(scheduler, learner, ((entry.event, entry.at) for entry in events))
    n_events = n_actions = 0
    for entry, actions in zip(logged, replayed, strict=True):
        n_events += 1
        n_actions += len(actions)
        if actions != entry.actions:
            kind = type(entry.event).__name__
            difference = f"event {n_events} ({kind}): replayed {actions}, logged {entry.actions}"
            return n_events, n_actions, difference
    return n_events, n_actions, None

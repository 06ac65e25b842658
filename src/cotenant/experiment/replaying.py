"""Replay of an event log: the same events to a fresh scheduler must lead to the same actions."""

from __future__ import annotations

from pathlib import Path

from cotenant.assemble import from_header
from cotenant.domain import Observe
from cotenant.telemetry.event_log import read


def replay_log(path: Path) -> tuple[int, int, str | None]:
    """(events, actions, first difference or None). Raises ValueError when the file is no event log."""
    header, entries = read(path)
    scheduler, learner = from_header(header)
    n_events = n_actions = 0
    for entry in entries:
        actions = scheduler.handle(entry.event, entry.at)
        n_events += 1
        n_actions += len(actions)
        if actions != entry.actions:
            kind = type(entry.event).__name__
            return (
                n_events,
                n_actions,
                f"event {n_events} ({kind}): replayed {actions}, logged {entry.actions}",
            )
        for action in actions:
            if isinstance(action, Observe):
                learner.learn(action.observation)
    return n_events, n_actions, None

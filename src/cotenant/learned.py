"""What a server has learned outlives it: restored at its start, kept while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cotenant.assemble import Prepared
from cotenant.clock import MonotonicClock, wall_time_s
from cotenant.domain import NS_PER_S
from cotenant.engine import LoopTimers
from cotenant.ports import Observer
from cotenant.predict.solo import DECAY_STEP_NS
from cotenant.predictors import Served, parts_of
from cotenant.schedule.policy import Policy
from cotenant.telemetry.checkpoint import Checkpointer, Learned
from cotenant.telemetry.state_file import StateFile, Stored


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What became of the files. `age_s`: how old what was restored is, None when learning begins anew;
    `refused`: a line for every file that could not be used."""

    path: Path | None = None
    age_s: float | None = None
    refused: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """For the operator: nothing where there was nothing to restore."""
        if self.path is not None:
            end = f"what was learned is restored from {self.path}, {self.age_s:.1f} s old"
        else:
            end = "no learned state can be used: learning begins anew"
        return [*self.refused, end] if self.refused or self.path else []


def restore(learner: Learned, file: StateFile, now: int, wall_s: float) -> Restored:
    """Hand the newest usable state to the learner. `now` and `wall_s`: the same instant, by the clock that
    decides (ns) and by the wall clock (s). Raises nothing: what cannot be used is told in the answer."""
    refused: list[str] = []
    for path in (file.path, file.before):
        try:
            stored = file.read(path)
            learner.restore(stored.state, moved_by(stored, now, wall_s))
        except FileNotFoundError:
            continue
        except (ValueError, OSError) as error:
            reason = str(error)
            refused.append(f"not used: {reason if str(path) in reason else f'{path}: {reason}'}")
            file.newest_is_good = file.newest_is_good and path != file.path
        else:
            return Restored(path=path, age_s=max(0.0, wall_s - stored.wall_s), refused=tuple(refused))
    return Restored(refused=tuple(refused))


def moved_by(stored: Stored, now: int, wall_s: float) -> int:
    """By how much (ns) instants of a stored state are moved so that as much time has gone by since them as
    the wall clock says; a wall clock that was put back counts as no time.

    A monotonic clock begins anew with every boot: without this, what was learned before one would seem to
    lie in the future and would not fade until that had come. In whole steps of `DECAY_STEP_NS`, the grid of
    instants on which forgetting is evaluated: predictions are then exactly those of as long ago."""
    gone_ns = max(0, int((wall_s - stored.wall_s) * NS_PER_S))
    return round((now - gone_ns - stored.learned_at) / DECAY_STEP_NS) * DECAY_STEP_NS


@contextmanager
def checkpointed(
    prepared: Prepared, learner: Learned, path: Path, tell: Callable[[str], None]
) -> Iterator[Checkpointer]:
    """Restore what was learned before, then keep what is learned meanwhile at `path`, up to the last
    observation at the end. The observer belongs to the loop that will decide. `tell` is given lines for the
    operator, from any thread."""
    clock = MonotonicClock()
    file = StateFile(path, prepared.device.digest)
    for line in restore(learner, file, clock.now(), wall_time_s()).lines():
        tell(line)
    checkpointer = Checkpointer(learner, file, LoopTimers(clock), complain=tell)
    try:
        yield checkpointer
    finally:
        checkpointer.close()


@contextmanager
def kept(
    prepared: Prepared, policy: Policy, predictor: Served, path: Path, tell: Callable[[str], None]
) -> Iterator[list[Observer]]:
    """`checkpointed`, as observers. A policy that goes without some part of the predictor begins anew, and
    what is kept at `path` stays as it is: no observers."""
    if not parts_of(policy).whole:
        yield []
        return
    with checkpointed(prepared, predictor, path, tell) as checkpointer:
        yield [checkpointer]

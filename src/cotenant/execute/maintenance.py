"""Loading and unloading models in a thread of its own, beside lanes that serve: what executors share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cotenant.cores import MAINTENANCE_NICENESS
from cotenant.domain import Event, Maintain, MaintenanceDone, ModelMetadata, SoloProfile
from cotenant.execute.lanes import LaneThread

Loaded = tuple[ModelMetadata, Sequence[SoloProfile]]


class Maintenance:
    """Does `Maintain` actions one after the other and posts how each ended.

    `load(name)` and `unload(name)` block and raise; `describe(error)` says what may be said of an error that
    is not a ValueError; `give_back()` returns freed memory to the system."""

    def __init__(
        self,
        cores: frozenset[int],
        load: Callable[[str], Loaded],
        unload: Callable[[str], None],
        describe: Callable[[Exception], str],
        post: Callable[[Event], None],
        give_back: Callable[[], None],
    ) -> None:
        self._load, self._unload, self._describe, self._post = load, unload, describe, post
        self._give_back = give_back
        self._thread: LaneThread[Maintain] = LaneThread(
            "cotenant-maintenance",
            cores,
            lambda _, action: self._do(action),
            niceness=MAINTENANCE_NICENESS,
        )
        self._thread.start()

    def put(self, action: Maintain) -> None:
        """Begin an action; returns at once."""
        self._thread.put(action)

    def stop(self) -> None:
        """End after what was begun; returns at once."""
        self._thread.stop()

    def join(self, timeout_s: float) -> None:
        """Wait for the end."""
        self._thread.join(timeout_s)

    def _do(self, action: Maintain) -> None:
        error: str | None = None
        metadata: ModelMetadata | None = None
        profiles: Sequence[SoloProfile] = ()
        try:
            match action.kind:
                case "load":
                    metadata, profiles = self._load(action.model)
                case "unload":
                    self._unload(action.model)
                case _:
                    raise ValueError(f"this executor cannot {action.kind}; it can load and unload")
        except Exception as problem:
            error = str(problem) if isinstance(problem, ValueError) else self._describe(problem)
        if action.kind == "unload" or error is not None:
            self._give_back()
        self._post(
            MaintenanceDone(
                maintenance_id=action.id,
                kind=action.kind,
                model=action.model,
                error=error,
                spec=metadata.spec if metadata else None,
                profiles=tuple(profiles),
                metadata=metadata,
            )
        )

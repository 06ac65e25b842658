"""A configuration read anew while models of the old one are served.

How this works. The new file is read and everything it names is looked at in a thread, before anything
changes: a file that cannot be used changes nothing. Then each model gets what has changed about it. Another
SLO or class holds at once. A new model, or one whose file or shapes changed, is loaded as scheduled work; the
one it replaces serves until it is there, unless requests made for that one would not fit: then, as for a
model that is gone from the file, new requests are refused as not available, what was admitted is answered,
and only then it is unloaded. What takes a restart is said and left as it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any

from msgspec import structs

from cotenant.assemble import Prepared
from cotenant.catalogue import with_slo
from cotenant.config import ModelConfig, Scenario, load_scenario
from cotenant.domain import ModelMetadata, TensorSpec
from cotenant.engine import UNLOADED, Engine
from cotenant.labels import labelled
from cotenant.notify import READY, notify, reloading
from cotenant.repository import check_names, repository_of
from cotenant.runtimes import Runtime

POLL_S = 0.02
"""How often a retired model is looked at (s)."""
SERVED_BY = ("source", "architecture", "max_batch", "buckets", "slo_percentile", "labels")
"""Keys of a model's table with which it is loaded anew; its learned state goes with the old ones."""
HOLD_AT_ONCE = ("slo_ms", "slo_scale", "job_class")
TAKE_RESTART = ("device", "server", "repository")


@dataclass(slots=True, kw_only=True)
class Changes:
    """What a new configuration changes, by names of models."""

    added: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    """Loaded anew; the old one serves meanwhile."""
    drained: list[str] = field(default_factory=list)
    """Loaded anew after what was admitted is answered."""
    respecified: list[str] = field(default_factory=list)
    restart: list[str] = field(default_factory=list)
    """Tables of the file that differ and are read at the start only."""

    def __str__(self) -> str:
        parts = [
            f"{word} {', '.join(names)}"
            for word, names in (
                ("loading", self.added),
                ("removing", self.removed),
                ("loading anew", [*self.replaced, *self.drained]),
                ("another SLO or class for", self.respecified),
            )
            if names
        ]
        return "; ".join(parts) or "nothing has changed"


class Reloader:
    """Reloads the configuration of an engine; belongs to its event loop. `tell` is given lines for the
    operator."""

    def __init__(self, engine: Engine, prepared: Prepared, tell: Callable[[str], None]) -> None:
        self._engine = engine
        self._prepared = prepared
        self._tell = tell
        self._asked = False
        self._task: asyncio.Task[None] | None = None
        names = prepared.configured()
        self._tables = {model.name: model for model in prepared.scenario.models if model.name in names}
        """Each model's table as it was last put into effect; a repository's models have none."""

    def request(self) -> None:
        """Reload soon; if that is under way, once more after it."""
        self._asked = True
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._while_asked())

    async def _while_asked(self) -> None:
        while self._asked:
            self._asked = False
            notify(reloading())
            await self.reload()
            notify(READY)

    async def reload(self) -> Changes | None:
        """Read the file anew and put it into effect; None, and nothing has changed, when it cannot be used.
        Returns when every model that is to be loaded or unloaded is, or has failed to."""
        path = self._prepared.scenario.path
        try:
            scenario, changes = await asyncio.to_thread(self._read)
        except (ValueError, OSError) as error:
            self._tell(f"{path.name} is not put into effect, nothing was changed: {error}")
            return None
        self._tell(f"{path.name}: {changes}")
        for table in changes.restart:
            self._tell(f"{path.name}: what has changed in [{table}] takes a restart")
        self._prepared.scenario = scenario
        self._prepared.runtime.reconfigure(scenario)
        self._respecify(scenario, changes.respecified)
        await asyncio.gather(*self._works(scenario, changes))
        return changes

    def _read(self) -> tuple[Scenario, Changes]:
        """In a thread. Raises ValueError, OSError."""
        old = self._prepared.scenario
        scenario = self._prepared.user.completed(load_scenario(old.path))
        served = Served(
            tables=dict(self._tables),
            loaded=dict(self._engine.models),
            unloaded={name for name, state in self._engine.states.items() if state.reason == UNLOADED},
            hashes=dict(self._prepared.sources),
        )
        changes = compare(served, scenario, self._prepared.runtime)
        changes.restart = [key for key in TAKE_RESTART if getattr(old, key) != getattr(scenario, key)]
        effective = replace(scenario, device=old.device, server=old.server, repository=old.repository)
        repository = repository_of(effective)
        if repository is not None:
            check_names(effective, repository.names())
        return effective, changes

    # --- what is done about a model ---------------------------------------------------------------------

    def _works(self, scenario: Scenario, changes: Changes) -> list[Coroutine[Any, Any, None]]:
        return [
            *(self._load(scenario.model(name)) for name in (*changes.added, *changes.replaced)),
            *(self._load_after_drain(scenario.model(name)) for name in changes.drained),
            *(self._remove(name) for name in changes.removed),
        ]

    def _respecify(self, scenario: Scenario, names: list[str]) -> None:
        for name in names:
            table = scenario.model(name)
            metadata = self._engine.models.get(name)
            if metadata is not None:
                spec = with_slo(metadata.spec, table, self._prepared.profiles)
                self._engine.respecify(structs.replace(metadata, spec=spec))
            self._tables[name] = table

    async def _load(self, table: ModelConfig) -> None:
        error = await self._maintain("load", table.name)
        if error is not None:
            self._tell(f"{table.name} was not loaded: {error}")
            return
        self._tables[table.name] = table
        self._prepared.sources[table.name] = await asyncio.to_thread(self._hash, table)
        self._tell(f"{table.name} is loaded")

    def _hash(self, table: ModelConfig) -> str:
        try:
            return self._prepared.runtime.hash(table)
        except ValueError:  # changed once more meanwhile
            return ""

    async def _load_after_drain(self, table: ModelConfig) -> None:
        await self._drain(table.name, "it is being replaced")
        await self._maintain("unload", table.name)
        await self._load(table)

    async def _remove(self, name: str) -> None:
        was_loaded = name in self._engine.models
        await self._drain(name, "it was removed from the configuration")
        error = await self._maintain("unload", name) if was_loaded else None
        self._engine.forget(name)
        self._tables.pop(name, None)
        self._prepared.sources.pop(name, None)
        self._tell(f"{name} is removed" if error is None else f"{name} was not unloaded: {error}")

    async def _drain(self, name: str, reason: str) -> None:
        """No new requests; returns when what was admitted has ended, or after the server's `drain_s`."""
        self._engine.retire(name, reason)
        loop = asyncio.get_running_loop()
        until = loop.time() + self._prepared.scenario.server.drain_s
        while self._engine.holds(name) and loop.time() < until:
            await asyncio.sleep(POLL_S)

    async def _maintain(self, kind: str, name: str) -> str | None:
        done: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._engine.maintain(kind, name, lambda error: None if done.done() else done.set_result(error))
        return await done


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What is served now, by names of models: tables in effect, what users see of what is loaded, hashes of
    what that is made of. `unloaded`: those that somebody unloaded over the API."""

    tables: Mapping[str, ModelConfig]
    loaded: Mapping[str, ModelMetadata]
    unloaded: Set[str]
    hashes: Mapping[str, str]


def compare(served: Served, new: Scenario, runtime: Runtime) -> Changes:
    """What is to be done. A model that failed to load is tried again; one that somebody unloaded stays so
    unless its table has changed. Looks at every file; raises ValueError when one cannot be used."""
    names = {table.name for table in new.models}
    changes = Changes(removed=[name for name in served.tables if name not in names])
    for table in new.models:
        before, name = served.tables.get(table.name), table.name
        digest = runtime.hash(table)
        if before is None:
            runtime.look(table)
            changes.added.append(name)
        elif name not in served.loaded:
            if name not in served.unloaded or _differ(before, table, SERVED_BY):
                runtime.look(table)
                changes.added.append(name)
        elif (
            _differ(before, table, SERVED_BY)
            or digest != served.hashes.get(name, digest)
            or _labels(labelled(served.loaded[name], table.labels)) != _labels(served.loaded[name])
        ):
            metadata = runtime.look(table)
            fits = metadata is not None and serves_requests_of(metadata, served.loaded[name])
            (changes.replaced if fits else changes.drained).append(name)
        elif _differ(before, table, HOLD_AT_ONCE):
            changes.respecified.append(name)
    return changes


def serves_requests_of(new: ModelMetadata, old: ModelMetadata) -> bool:
    """Whether a request that was made for the old model, waits and may already be part of a batch, can be run
    by the new one. A batch in segments can only go on with the model it began with."""
    buckets = dict(new.spec.axis_buckets)
    return (
        (new.inputs, new.batched) == (old.inputs, old.batched)
        and _unlabelled(new.outputs) == _unlabelled(old.outputs)
        and new.spec.max_batch >= old.spec.max_batch
        and all(set(sizes) <= set(buckets.get(axis, ())) for axis, sizes in old.spec.axis_buckets)
        and buckets.keys() == dict(old.spec.axis_buckets).keys()
        and new.spec.n_segments == old.spec.n_segments == 1
    )


def _labels(metadata: ModelMetadata) -> list[tuple[str, ...]]:
    return [spec.labels for spec in metadata.outputs]


def _unlabelled(outputs: Sequence[TensorSpec]) -> list[TensorSpec]:
    return [structs.replace(spec, labels=()) for spec in outputs]


def _differ(old: ModelConfig, new: ModelConfig, keys: tuple[str, ...]) -> bool:
    return any(getattr(old, key) != getattr(new, key) for key in keys)

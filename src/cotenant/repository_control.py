"""Models of a repository come and go: on command, or as their folder changes.

How this works. To load a model is to bring it to what its folder says: the versions chosen there are loaded,
those that have changed since are loaded anew, and once all of them serve the others are unloaded. Where one
fails, what served before goes on. Each step is scheduled work of the engine, one after another. Every
`poll_s` the folder is looked at again (in a thread): the engine is told what there is, and with
`mode = "poll"` every model is brought to what its folder says. What failed is tried again when its files
change, or on command.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any

from cotenant.config import ConfigError, RepositoryConfig, Scenario
from cotenant.domain import model_of
from cotenant.engine import Engine
from cotenant.redact import without_paths
from cotenant.repository import Repository, Stamp, StoredModel, repository_of

Done = Callable[[str | None], None]
log = logging.getLogger(__name__)


class RepositoryControl:
    """Loads and unloads models by the names clients know; implements `local_link.ModelControl`.

    Every method is called on the engine's event loop."""

    def __init__(
        self,
        engine: Engine,
        repository: Repository,
        config: RepositoryConfig,
        *,
        configured: Callable[[], Collection[str]],
        stamps: Mapping[str, Stamp],
    ) -> None:
        """`configured` returns the models of the configuration file itself, which the engine knows. `stamps`:
        of the repository's models that were tried at the start, by `MODEL@VERSION`."""
        self._engine = engine
        self._repository = repository
        self._config = config
        self._configured = configured
        self._tried: dict[str, Stamp] = dict(stamps)
        self._one_at_a_time = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        engine.offer(
            {
                name: state.reason
                for name, state in engine.states.items()
                if name not in configured() and name not in engine.models
            }
        )

    def start(self) -> None:
        """Look at the folder, and go on to look at it from time to time."""
        self._begin(self._watch())

    def stop(self) -> None:
        """Begin nothing more."""
        for task in self._tasks:
            task.cancel()

    def load(self, name: str, done: Done) -> None:
        """Bring a model to what its folder says; `done(error)`. A model that there is not is told by an error
        that begins with "unknown model"."""
        self._begin(self._answer(self._load(name), done))

    def unload(self, name: str, done: Done) -> None:
        """Unload every version of a model; `done(error)`."""
        self._begin(self._answer(self._unload(name), done))

    # --- on command -----------------------------------------------------------------------------------

    async def _load(self, name: str) -> str | None:
        if name in self._configured():
            return await self._maintain("load", name)
        problem = self._not_by_command()
        if problem is not None:
            return problem
        try:
            found = await asyncio.to_thread(self._repository.find, name)
        except ConfigError as error:
            return without_paths(str(error))
        return await self._bring(found, try_again=True)

    async def _unload(self, name: str) -> str | None:
        if name in self._configured():
            return await self._maintain("unload", name)
        problem = self._not_by_command()
        loaded = self._loaded(name)
        if problem is not None or loaded:
            return problem or await self._unload_all(loaded)
        if any(model_of(state) == name for state in self._engine.states):
            return "it is not loaded"
        return f"unknown model '{name:.100}'"

    def _not_by_command(self) -> str | None:
        if self._config.mode == "explicit":
            return None
        return (
            "the models of the repository are not loaded and unloaded by command "
            f'(mode = "{self._config.mode}" under [repository]; "explicit" allows it)'
        )

    # --- by the folder --------------------------------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            try:
                await self._look()
            except (OSError, ValueError) as error:
                log.warning("the model repository cannot be read: %s", error)
            if self._config.mode == "none":
                return
            await asyncio.sleep(self._config.poll_s)

    async def _look(self) -> None:
        """Tell the engine what is there; with `poll` make it so."""
        found = await asyncio.to_thread(lambda: dict(self._repository.scan()))
        there: dict[str, str] = {}
        for name, model in found.items():
            if isinstance(model, StoredModel):
                there |= dict.fromkeys((version.name for version in model.versions.values()), "")
            else:
                there[name] = without_paths(str(model))
        configured = self._configured()
        self._engine.offer({name: why for name, why in there.items() if name not in configured})
        if self._config.mode != "poll":
            return
        async with self._one_at_a_time:
            for name, model in found.items():
                if isinstance(model, StoredModel) and name not in configured:
                    error = await self._bring(model, try_again=False)
                    if error is not None:
                        log.error("model %s: %s", name, error)
            gone = [m for m in self._engine.models if "@" in m and model_of(m) not in found]
            await self._unload_all(gone)

    # --- steps ----------------------------------------------------------------------------------------

    async def _bring(self, model: StoredModel, *, try_again: bool) -> str | None:
        """Load, load anew and unload versions until what serves is what is chosen. `try_again`: also what
        failed and has not changed since."""
        chosen = {model.versions[version].name: model.stamps[version] for version in model.chosen}
        if not chosen and try_again:
            return "its folder has none of the versions to serve"
        problems: list[str] = []
        for name, stamp in chosen.items():
            failed_before = try_again and name not in self._engine.models
            if self._tried.get(name) == stamp and not failed_before:
                continue
            self._tried[name] = stamp
            error = await self._maintain("load", name)
            if error is not None:
                problems.append(f"version {name.partition('@')[2]}: {error}")
        if problems:
            return "; ".join(problems)
        return await self._unload_all([name for name in self._loaded(model.name) if name not in chosen])

    def _loaded(self, model: str) -> list[str]:
        return [name for name in self._engine.models if "@" in name and model_of(name) == model]

    async def _unload_all(self, names: Collection[str]) -> str | None:
        problems: list[str] = []
        for name in names:
            self._tried.pop(name, None)
            error = await self._maintain("unload", name)
            if error is not None:
                problems.append(error)
        return "; ".join(problems) or None

    async def _maintain(self, kind: str, name: str) -> str | None:
        ended: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._engine.maintain(kind, name, lambda error: None if ended.done() else ended.set_result(error))
        error = await ended
        log.info("%s %s: %s", kind, name, error or "done")
        return None if error is None else without_paths(error)

    async def _answer(self, work: Any, done: Done) -> None:
        async with self._one_at_a_time:
            done(await work)

    def _begin(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def control_of(
    engine: Engine,
    scenario: Scenario,
    stamps: Mapping[str, Stamp],
    configured: Callable[[], Collection[str]],
) -> RepositoryControl | None:
    """What loads and unloads the models of the scenario's repository, begun; None where it has none. Call it
    on the engine's event loop."""
    repository, config = repository_of(scenario), scenario.repository
    if repository is None or config is None:
        return None
    control = RepositoryControl(engine, repository, config, configured=configured, stamps=stamps)
    control.start()
    return control

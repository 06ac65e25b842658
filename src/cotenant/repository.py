"""A model repository: a folder of models, each with its versions, `FOLDER/MODEL/VERSION/model.onnx`.

A model is a folder whose name can stand in a URL. Its versions are folders named by whole numbers from 1 on;
a `config.toml` beside them says how the model is served (keys of `[[model]]`) and which versions are. Each
(model, version) is a model of its own to the engine, called `MODEL@VERSION`: `@` is in no model's name.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cotenant.config import NAME, ModelConfig, RepositoryConfig, Scenario, ServerConfig, model_from_table
from cotenant.domain import version_of
from cotenant.toml_checks import ConfigError, TomlChecks

VERSION = re.compile(r"[1-9][0-9]{0,17}")
MODEL_FILE = "model.onnx"
CONFIG_FILE = "config.toml"
KEYS = ("slo_ms", "slo_scale", "slo_percentile", "class", "max_batch", "buckets", "labels", "versions")
"""What a `config.toml` may say."""

Stamp = tuple[int, ...]
"""Changes when a version's files or its model's configuration change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionPolicy:
    """Which versions are served: the `latest` so many, or those listed; all when neither is given."""

    latest: int | None = 1
    listed: tuple[int, ...] = ()

    def chosen(self, there: tuple[int, ...]) -> tuple[int, ...]:
        """Of the versions that are there (ascending) those to serve."""
        if self.listed:
            return tuple(version for version in there if version in self.listed)
        return there if self.latest is None else there[-self.latest :]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredModel:
    """A model of the repository as its folder stands."""

    name: str
    versions: Mapping[int, ModelConfig]
    """Every version that is there, ascending, by number; named `MODEL@VERSION`."""
    stamps: Mapping[int, Stamp]
    chosen: tuple[int, ...]
    """The versions to serve, ascending."""


class Repository:
    """Reads the folder anew with every call. Blocks for the time that takes."""

    def __init__(self, folder: Path, server: ServerConfig) -> None:
        self.folder = folder
        self._server = server

    def names(self) -> list[str]:
        """Models that are there. Raises ConfigError when the folder cannot be read."""
        try:
            entries = sorted(self.folder.iterdir())
        except OSError as error:
            raise ConfigError(f"{self.folder}: cannot be read: {error.strerror}") from error
        return [path.name for path in entries if _is_name(path.name) and path.is_dir()]

    def scan(self) -> Iterator[tuple[str, StoredModel | ConfigError]]:
        """Every model by name; the error instead of one that cannot be read. Raises ConfigError when the
        folder cannot be read."""
        for name in self.names():
            try:
                yield name, self.find(name)
            except ConfigError as error:
                yield name, error

    def has(self, name: str) -> bool:
        """Whether there is such a model, readable or not."""
        return _is_name(name) and (self.folder / name).is_dir()

    def find(self, name: str) -> StoredModel:
        """The model. Raises ConfigError when there is none or its configuration is wrong."""
        if not self.has(name):
            raise ConfigError(f"unknown model {name!r:.120}: the repository has no folder of this name")
        try:
            return self._read(name)
        except OSError as error:
            raise ConfigError(f"model {name!r}: its folder cannot be read: {error.strerror}") from error

    def _read(self, name: str) -> StoredModel:
        folder = self.folder / name
        config = _Config(folder / CONFIG_FILE, self._server)
        there = tuple(
            sorted(int(p.name) for p in folder.iterdir() if VERSION.fullmatch(p.name) and p.is_dir())
        )
        return StoredModel(
            name=name,
            versions={version: config.model(name, version) for version in there},
            stamps={version: (*config.stamp, *_stamp(folder / str(version))) for version in there},
            chosen=config.policy().chosen(there),
        )

    def model(self, name: str) -> ModelConfig:
        """The configuration of `MODEL@VERSION`. Raises ConfigError."""
        model, _, _ = name.partition("@")
        version = version_of(name)
        found = self.find(model).versions.get(int(version)) if VERSION.fullmatch(version) else None
        if found is None:
            raise ConfigError(f"unknown model {name!r:.120}: the repository has no such version")
        return found


class _Config(TomlChecks):
    """The `config.toml` of a model, which need not be there."""

    def __init__(self, path: Path, server: ServerConfig) -> None:
        super().__init__(path)
        self._server = server
        self._raw, self.stamp = self._read()
        self._known(self._raw, KEYS, "the file")

    def _read(self) -> tuple[dict[str, Any], Stamp]:
        try:
            stamp = _file_stamp(self._path)
            return tomllib.loads(self._path.read_text(encoding="utf-8")), stamp
        except FileNotFoundError:
            return {}, (0, 0, 0)
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"{self._path}: cannot be read: {error}") from error

    def model(self, name: str, version: int) -> ModelConfig:
        """How a version is served."""
        table = {key: value for key, value in self._raw.items() if key != "versions"}
        source = f"{version}/{MODEL_FILE}"
        found = model_from_table(self._path, {**table, "name": name, "source": source}, self._server)
        return replace(found, name=f"{name}@{version}", source=str(self._path.parent / source))

    def policy(self) -> VersionPolicy:
        """Which versions are served."""
        raw = self._raw.get("versions", {"latest": 1})
        if raw == "all":
            return VersionPolicy(latest=None)
        if isinstance(raw, dict):
            self._known(raw, ("latest",), "versions")
            n = raw.get("latest")
            self._check(type(n) is int and n >= 1, "versions latest", "must be a whole number from 1 on")
            return VersionPolicy(latest=n)
        good = isinstance(raw, list) and raw and all(type(n) is int and n >= 1 for n in raw)
        self._check(good, "versions", 'must be {latest = N}, "all", or a list of numbers')
        return VersionPolicy(listed=tuple(raw))


def repository_of(scenario: Scenario) -> Repository | None:
    """The repository that a configuration names, if any."""
    if scenario.repository is None:
        return None
    return Repository(scenario.folder / scenario.repository.path, scenario.server)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stocked:
    """A configuration with the models that its repository has for the start."""

    scenario: Scenario
    stamps: Mapping[str, Stamp]
    """Of the repository's models among them, by `MODEL@VERSION`."""
    failed: Mapping[str, str]
    """Models of the repository that cannot be read, with the reason."""


def stocked(scenario: Scenario) -> Stocked:
    """Add the models that are loaded at the start: all that are chosen, or with explicit control those that
    `load` names. Raises ConfigError when the folder cannot be read or has a model of the configuration's
    name."""
    repository, config = repository_of(scenario), scenario.repository
    if repository is None or config is None:
        return Stocked(scenario=scenario, stamps={}, failed={})
    there = repository.names()
    check_names(scenario, there)
    models: list[ModelConfig] = []
    stamps: dict[str, Stamp] = {}
    failed: dict[str, str] = {}
    for name in _at_start(config, there):
        try:
            found = repository.find(name)
        except ConfigError as error:
            failed[name] = str(error)
            continue
        if not found.chosen:
            failed[name] = f"model {name!r} has none of the versions to serve"
        models += [found.versions[version] for version in found.chosen]
        stamps |= {found.versions[version].name: found.stamps[version] for version in found.chosen}
    return Stocked(
        scenario=replace(scenario, models=(*scenario.models, *models)), stamps=stamps, failed=failed
    )


def check_names(scenario: Scenario, there: Collection[str]) -> None:
    """Raises ConfigError when a model of the configuration is also one of the repository's, `there`."""
    for model in scenario.models:
        if model.name in there:
            where = f"[[model]] {model.name!r}"
            raise ConfigError(
                f"{scenario.path}: {where} is also a model of the repository; rename one", f"{where} name"
            )


def names_at_start(scenario: Scenario) -> tuple[str, ...]:
    """Names that clients may ask for before the first model is loaded, as far as that can be told: those of
    the configuration and of its repository."""
    repository = repository_of(scenario)
    try:
        there = [] if repository is None else repository.names()
    except ConfigError:  # told by whoever loads them
        there = []
    return tuple(dict.fromkeys([*(model.name for model in scenario.models), *there]))


def _at_start(config: RepositoryConfig, there: list[str]) -> list[str]:
    if config.mode != "explicit":
        return there
    return list(config.load)


def _is_name(text: str) -> bool:
    """Hidden folders are nobody's models: `.git`, or the `..data` of a Kubernetes volume."""
    return NAME.match(text) is not None and not text.startswith(".")


def _stamp(folder: Path) -> Stamp:
    """Of every file of a version: weights may lie beside the model."""
    found: list[int] = []
    for path in sorted(folder.iterdir()):
        found += _file_stamp(path)
    return tuple(found)


def _file_stamp(path: Path) -> Stamp:
    status = path.stat()
    return status.st_mtime_ns, status.st_size, status.st_ino

"""What a configuration names, found: files, settings, profiles. Also used to load models while serving."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from msgspec import structs

from cotenant import zoo
from cotenant.config import ConfigError, ModelConfig, Scenario
from cotenant.domain import NS_PER_MS, ModelMetadata, ModelSpec, SoloProfile, Variant
from cotenant.execute.lane_model import Loadable
from cotenant.execute.model import ModelSettings
from cotenant.execute.onnx_model import inspect
from cotenant.execute.onnx_session import describe
from cotenant.execute.python import PythonSource
from cotenant.execute.python_metadata import metadata_of as python_metadata
from cotenant.labels import labelled
from cotenant.profile.measure import quick_profile
from cotenant.profile.records import DeviceFingerprint, StoredProfiles, source_hash
from cotenant.profile.store import ProfileStore
from cotenant.repository import repository_of
from cotenant.user_models import UserModels


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where things are kept."""

    cache: Path
    """Zoo models."""
    store: Path
    """Profiles, learned state, logs."""

    @property
    def profiles(self) -> Path:
        """The profile database."""
        return self.store / "profiles.sqlite"

    def learned(self, config: Path) -> Path:
        """What a server with this configuration has learned."""
        return self.store / "learned" / f"{config.stem}.state"

    @property
    def slow(self) -> Path:
        """Explanations of slow requests."""
        return self.store / "slow.sqlite"

    @property
    def coruns(self) -> Path:
        """Recordings of co-runs."""
        return self.store / "coruns"


def places(store: Path | None = None) -> Places:
    """Folders by the XDG rules; `store` overrides the state folder (`--store DIR`)."""
    home = Path.home()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "cotenant"
    state = Path(os.environ.get("XDG_STATE_HOME") or home / ".local" / "state") / "cotenant"
    return Places(cache=cache, store=store or state)


def locate(model: ModelConfig, scenario: Scenario, where: Places) -> Path:
    """The model file of a source; zoo models are made if they are not there. Raises ConfigError."""
    scheme, colon, rest = model.source.partition(":")
    if not colon:
        path = scenario.folder / model.source
        if not path.is_file():
            raise ConfigError(f"{scenario.path}: [[model]] {model.name!r} source: there is no file {path}")
        return path
    if scheme == "zoo":
        try:
            return zoo.ensure(rest, where.cache / "zoo")
        except ValueError as error:
            raise ConfigError(f"{scenario.path}: [[model]] {model.name!r} source: {error}") from error
    raise ConfigError(
        f"{scenario.path}: [[model]] {model.name!r} source: {model.source!r} cannot be served by this "
        "version; use zoo:NAME, torch:NAME, module:attribute or the path of an .onnx file"
    )


def file_if_there(model: ModelConfig, scenario: Scenario, where: Places) -> Path | None:
    scheme, colon, rest = model.source.partition(":")
    if not colon:
        path = scenario.folder / model.source
    elif scheme == "zoo":
        path = zoo.path_of(rest, where.cache / "zoo")
    else:
        return None
    return path if path.is_file() else None


def settings_of(model: ModelConfig, solo: int | None = None) -> ModelSettings:
    """How a model is served; with `solo` (ns, batch 1) a relative SLO is resolved."""
    slos = [model.slo_ms * NS_PER_MS] if model.slo_ms is not None else []
    if model.slo_scale is not None and solo is not None:
        slos.append(model.slo_scale * solo)
    zoo_name = model.source.removeprefix("zoo:")
    return ModelSettings(
        name=model.name,
        slo_ns=int(max(slos)) if slos else None,
        slo_percentile=model.slo_percentile,
        job_class=model.job_class,
        max_batch=model.max_batch,
        buckets=dict(model.buckets) or zoo.DEFAULT_BUCKETS.get(zoo_name, {}),
    )


def solo_ns(profiles: StoredProfiles, spec: ModelSpec) -> int:
    """Solo median of a model at batch 1 (ns), at its largest axes: a relative SLO then leaves every declared
    shape at least as many times its own solo median."""
    largest = [variant for variant in spec.variants() if variant.rows == spec.row_buckets[0]][-1]
    return profiles.solo(largest).median_ns


def with_slo(spec: ModelSpec, model: ModelConfig, profiles: StoredProfiles) -> ModelSpec:
    """The spec with the scenario's SLO, class and percentile; a relative SLO is resolved."""
    settings = settings_of(model, solo_ns(profiles, spec))
    return structs.replace(
        spec,
        slo_ns=settings.slo_ns,
        slo_percentile=settings.slo_percentile,
        job_class=settings.job_class,
    )


def settled(metadata: ModelMetadata, model: ModelConfig, profiles: StoredProfiles) -> ModelMetadata:
    """The metadata with the SLO of a model that gives it as a multiple, now that the solo median is known."""
    spec = with_slo(metadata.spec, model, profiles)
    return structs.replace(metadata, spec=spec, solo_ns=solo_ns(profiles, spec))


class ConfiguredModels:
    """Models of a scenario by name, profiled from the store where it has them: what sources of executors
    share."""

    def __init__(self, scenario: Scenario, where: Places, device: DeviceFingerprint) -> None:
        self._scenario = scenario
        self._where = where
        self._device = device
        self._repository = repository_of(scenario)

    def profiles(
        self, metadata: ModelMetadata, source: str, run: Callable[[Variant], int]
    ) -> tuple[ModelMetadata, Sequence[SoloProfile]]:
        """The model with its SLO settled, and its solo profiles. What is not stored is measured beside
        whatever runs: the faster half of a few runs stands for the solo times until the predictor has
        learned better, and is not stored. `source`: the hash of the model; `run` runs a variant once and
        returns the span (ns)."""
        with ProfileStore(self._where.profiles) as store:
            stored = [store.get_solo(source, variant, self._device) for variant in metadata.spec.variants()]
        profiles = [
            record.profile if record is not None else quick_profile(variant, run)
            for record, variant in zip(stored, metadata.spec.variants(), strict=True)
        ]
        table = StoredProfiles([metadata.spec], [])
        table.renew(metadata.spec, profiles)
        model = self.model(metadata.name)
        return settled(labelled(metadata, model.labels), model, table), profiles

    def reconfigure(self, scenario: Scenario) -> None:
        """From now on models are those of this scenario."""
        self._scenario = scenario

    def model(self, name: str) -> ModelConfig:
        """The configuration of a model, of one in a repository as it is there now. Raises ValueError when
        there is none."""
        if "@" in name and self._repository is not None:
            return self._repository.model(name)
        try:
            return self._scenario.model(name)
        except StopIteration:
            raise ValueError(f"model {name!r} is not in the configuration") from None


class OnnxModels(ConfiguredModels):
    """The `Source` of the executor that runs ONNX and Python models."""

    def __init__(
        self, scenario: Scenario, where: Places, device: DeviceFingerprint, user: UserModels
    ) -> None:
        super().__init__(scenario, where, device)
        self._user = user

    def find(self, name: str) -> tuple[ModelMetadata, Path | Loadable]:
        return self.look(self.model(name))

    def look(self, model: ModelConfig) -> tuple[ModelMetadata, Path | Loadable]:
        """What a table of the scenario's file names, and what its users will see of it. Raises ValueError. A
        Python model is run on its example."""
        made_of = self.made_of(model)
        if isinstance(made_of, Path):
            return inspect(made_of, settings_of(model)), made_of
        try:
            return python_metadata(made_of.model, settings_of(model)), made_of
        except Exception as error:
            raise self._unusable(model, error) from error

    def made_of(self, model: ModelConfig) -> Path | PythonSource:
        """What a table of the scenario's file names. Raises ValueError."""
        try:
            python = self._user.find(model.source)
        except ValueError as error:
            raise self._unusable(model, error) from error
        return locate(model, self._scenario, self._where) if python is None else PythonSource(python)

    def _unusable(self, model: ModelConfig, error: Exception) -> ConfigError:
        reason = str(error) if isinstance(error, ValueError) else describe(error)
        return ConfigError(f"{self._scenario.path}: [[model]] {model.name!r} source: {reason}")

    def profiled(
        self, metadata: ModelMetadata, made_of: Path | Loadable, run: Callable[[Variant], int]
    ) -> tuple[ModelMetadata, Sequence[SoloProfile]]:
        return self.profiles(metadata, self.hash(made_of), run)

    @staticmethod
    def hash(made_of: Path | Loadable) -> str:
        """Of all that a model is made of."""
        if isinstance(made_of, Path):
            return source_hash(made_of)
        assert isinstance(made_of, PythonSource)
        return made_of.model.hash

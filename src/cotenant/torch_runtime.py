"""Torch models of a scenario, on the CPU or on CUDA. Besides `execute.torch` nothing else needs torch."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import torch

from cotenant.catalogue import ConfiguredModels, Places, settings_of
from cotenant.clock import MonotonicClock
from cotenant.config import ARCHIVE, ConfigError, ModelConfig, Scenario, holds_weights
from cotenant.cores import available_cores
from cotenant.domain import ModelMetadata, SoloProfile, Variant
from cotenant.execute.lanes import lane_layout
from cotenant.execute.model import ModelSettings
from cotenant.execute.torch import architectures, zoo
from cotenant.execute.torch.executor import TorchExecutor, cuda_lanes
from cotenant.execute.torch.load import from_archive, from_factory
from cotenant.execute.torch.model import Blueprint
from cotenant.execute.torch.weights import architecture_of, from_weights
from cotenant.execute.torch.zoo import SMALL, blueprint, default_buckets
from cotenant.ports import LaneInfo
from cotenant.profile.probe import Inside
from cotenant.profile.records import DeviceFingerprint, cpu_fingerprint, source_hash

CPU_LANES, CUDA_LANES = 4, 8
"""Most lanes unless the scenario says otherwise."""


class TorchModels(ConfiguredModels):
    """The torch executor's `TorchSource`. `torch:NAME` is the large model, `torch:NAME-small` the small;
    so with the names of architectures."""

    on_cuda = False

    def find(self, name: str) -> tuple[Blueprint, ModelSettings]:
        model = self.model(name)
        settings = settings_of(model)
        try:
            made, zoo_name = self._make(model)
        except ValueError as error:
            raise ConfigError(f"{self._scenario.path}: [[model]] {name!r} source: {error}") from error
        buckets = settings.buckets or default_buckets(zoo_name.removesuffix(SMALL))
        return made, replace(settings, buckets=buckets)

    def _make(self, model: ModelConfig) -> tuple[Blueprint, str]:
        """The model and its name in the zoo, empty if it is not of the zoo."""
        dtype = None if self.on_cuda else torch.float32
        if holds_weights(model.source):
            path = self.path(model)
            name = architecture_of(path, model.architecture)
            return from_weights(path, name, dtype), name
        if model.source.endswith(ARCHIVE):
            return from_archive(self.path(model)), ""
        scheme, _, name = model.source.partition(":")
        if scheme != "torch":
            return from_factory(model.source, self._scenario.folder), ""
        return blueprint(name.removesuffix(SMALL), small=name.endswith(SMALL), dtype=dtype), name

    def path(self, model: ModelConfig) -> Path:
        """The file of an archive or of weights. Raises ValueError when it is not there."""
        path = self._scenario.folder / model.source
        if not path.is_file():
            raise ValueError(f"there is no file {path}")
        return path

    def profiled(
        self, metadata: ModelMetadata, run: Callable[[Variant], int]
    ) -> tuple[ModelMetadata, Sequence[SoloProfile]]:
        return self.profiles(metadata, self.hash(self.model(metadata.name)), run)

    def hash(self, model: ModelConfig) -> str:
        """Of the archive; of a zoo model's name and the code, from which its weights follow; of a file of
        weights, its architecture's name and the code; of a factory's name only: what it makes is its own
        affair."""
        if model.source.endswith(ARCHIVE):
            return source_hash(self.path(model))
        if holds_weights(model.source):
            path = self.path(model)
            parts = f"{source_hash(path)} {architecture_of(path, model.architecture)}"
            return hashlib.sha256(parts.encode() + b"\0" + _code(architectures, zoo)).hexdigest()
        code = _code(architectures) if model.source.startswith("torch:") else b""
        return hashlib.sha256(model.source.encode() + b"\0" + code).hexdigest()


def _code(*modules: ModuleType) -> bytes:
    return b"\0".join(Path(str(module.__file__)).read_bytes() for module in modules)


class TorchRuntime:
    """Implements `runtimes.Runtime`."""

    def __init__(self, scenario: Scenario, where: Places) -> None:
        lanes, self.device = _device(scenario)
        self._source = TorchModels(scenario, where, self.device)
        self._source.on_cuda = scenario.device.kind == "cuda"
        device = "cuda:0" if self._source.on_cuda else "cpu"
        limit = scenario.device.memory_limit
        self.executor = TorchExecutor(MonotonicClock(), lanes, self._source, device, memory_limit=limit)

    def load(self, model: ModelConfig) -> tuple[ModelMetadata, str]:
        made, settings = self._source.find(model.name)
        return self.executor.load(made, settings), self._source.hash(model)

    def hash(self, model: ModelConfig) -> str:
        return self._source.hash(model)

    def look(self, model: ModelConfig) -> None:
        """Weights are read only to be served: what it takes and gives shows when it is loaded."""

    def reconfigure(self, scenario: Scenario) -> None:
        self._source.reconfigure(scenario)

    def inside(self, metadata: ModelMetadata) -> Inside | None:
        """Not in this version: device recordings measure torch models (`experiments/gpu/`)."""
        return None


def _device(scenario: Scenario) -> tuple[tuple[LaneInfo, ...], DeviceFingerprint]:
    wanted = scenario.device
    if wanted.kind == "cpu":
        n_cores = len(available_cores())
        lanes = lane_layout(wanted.lanes or min(CPU_LANES, n_cores), n_cores)
        return lanes, cpu_fingerprint(lanes, n_cores, "torch")
    if wanted.kind != "cuda":
        raise ConfigError(
            f"{scenario.path}: [device] kind = {wanted.kind!r} cannot be served, only simulated"
        )
    # every lane has four streams, and by default streams share eight queues into the device, where they wait
    # for each other; read by the driver when it starts
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")
    if not torch.cuda.is_available():
        raise ConfigError(f"{scenario.path}: [device] kind = 'cuda', but torch finds no CUDA device here")
    lanes = cuda_lanes(wanted.lanes or CUDA_LANES)
    properties = torch.cuda.get_device_properties(0)
    fingerprint = DeviceFingerprint(
        kind="cuda",
        name=properties.name,
        n_units=properties.multi_processor_count,
        lane_units=tuple(lane.units for lane in lanes),
        runtime=f"torch {torch.__version__}",
        system=f"CUDA {torch.version.cuda}",
    )
    return lanes, fingerprint

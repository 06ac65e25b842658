"""Torch models of a scenario, on the CPU or on CUDA. Besides `execute.torch` nothing else needs torch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from cotenant.catalogue import ConfiguredModels, Places, settings_of
from cotenant.clock import MonotonicClock
from cotenant.config import ConfigError, ModelConfig, Scenario
from cotenant.domain import ModelMetadata, SoloProfile, Variant
from cotenant.execute.lanes import available_cores, lane_layout
from cotenant.execute.model import ModelSettings
from cotenant.execute.torch import architectures
from cotenant.execute.torch.executor import TorchExecutor, cuda_lanes
from cotenant.execute.torch.model import Blueprint
from cotenant.execute.torch.zoo import blueprint, default_buckets
from cotenant.ports import LaneInfo
from cotenant.profile.records import DeviceFingerprint, cpu_fingerprint

SMALL = "-small"
CPU_LANES, CUDA_LANES = 4, 8
"""Most lanes unless the scenario says otherwise."""


class TorchModels(ConfiguredModels):
    """The torch executor's `TorchSource`. `torch:NAME` is the large model, `torch:NAME-small` the small."""

    on_cuda = False

    def find(self, name: str) -> tuple[Blueprint, ModelSettings]:
        model = self.model(name)
        zoo_name = model.source.removeprefix("torch:")
        small = zoo_name.endswith(SMALL)
        zoo_name = zoo_name.removesuffix(SMALL)
        dtype = None if self.on_cuda else torch.float32
        try:
            made = blueprint(zoo_name, small=small, dtype=dtype)
        except ValueError as error:
            raise ConfigError(f"{self._scenario.path}: [[model]] {name!r} source: {error}") from error
        settings = settings_of(model)
        return made, replace(settings, buckets=settings.buckets or default_buckets(zoo_name))

    def profiled(
        self, metadata: ModelMetadata, run: Callable[[Variant], int]
    ) -> tuple[ModelMetadata, Sequence[SoloProfile]]:
        return self.profiles(metadata, self.hash(self.model(metadata.name)), run)

    @staticmethod
    def hash(model: ModelConfig) -> str:
        """Of the name and the code: weights follow from both."""
        code = Path(architectures.__file__).read_bytes()
        return hashlib.sha256(model.source.encode() + b"\0" + code).hexdigest()


class TorchRuntime:
    """Implements `runtimes.Runtime`."""

    def __init__(self, scenario: Scenario, where: Places) -> None:
        lanes, self.device = _device(scenario)
        self._source = TorchModels(scenario, where, self.device)
        self._source.on_cuda = scenario.device.kind == "cuda"
        device = "cuda:0" if self._source.on_cuda else "cpu"
        self.executor = TorchExecutor(MonotonicClock(), lanes, self._source, device)

    def load(self, model: ModelConfig) -> tuple[ModelMetadata, str]:
        made, settings = self._source.find(model.name)
        return self.executor.load(made, settings), self._source.hash(model)


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

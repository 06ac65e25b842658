"""What runs a scenario's models on its device: ONNX Runtime on the CPU, torch on the CPU or on CUDA.

A device has one runtime. Torch is an extra: it is imported only when a scenario asks for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from cotenant.catalogue import OnnxModels, Places, locate, settings_of
from cotenant.clock import MonotonicClock
from cotenant.config import ARCHIVE, ConfigError, ModelConfig, Scenario, holds_weights
from cotenant.cores import available_cores, core_numbers
from cotenant.domain import ModelMetadata
from cotenant.execute.lanes import lane_layout
from cotenant.execute.onnx import OnnxExecutor
from cotenant.execute.onnx_model import inspect
from cotenant.execute.onnx_nodes import OnnxInside
from cotenant.ports import Executor, LaneInfo
from cotenant.profile.probe import Inside
from cotenant.profile.records import DeviceFingerprint, cpu_fingerprint, source_hash

DEFAULT_CPU_LANES = 4
"""Most lanes that a CPU gets unless the scenario says otherwise."""


class Runtime(Protocol):
    """An executor and how configured models get into it."""

    @property
    def executor(self) -> Executor: ...

    @property
    def device(self) -> DeviceFingerprint: ...

    def load(self, model: ModelConfig) -> tuple[ModelMetadata, str]:
        """Load a model; returns what its users see of it and a hash of all that it is made of. Blocks.
        Raises ValueError with the reason."""
        ...

    def inside(self, metadata: ModelMetadata) -> Inside | None:
        """How to look inside a loaded model; None where this runtime cannot."""
        ...


def open_runtime(scenario: Scenario, where: Places) -> Runtime:
    """The runtime that the scenario's sources and device ask for. Raises ConfigError."""
    torch = [model.name for model in scenario.models if is_torch(model.source)]
    others = [model.name for model in scenario.models if not is_torch(model.source)]
    if torch and others:
        raise ConfigError(
            f"{scenario.path}: torch models ({', '.join(torch)}) and ONNX models ({', '.join(others)}) "
            "cannot share one device in this version; serve them apart"
        )
    if torch:
        try:
            from cotenant.torch_runtime import TorchRuntime
        except ImportError as error:
            raise ConfigError(
                f"{scenario.path}: [[model]] {torch[0]!r} needs torch ({error}); install cotenant[torch], "
                "in a checkout with `make torch`"
            ) from error
        return TorchRuntime(scenario, where)
    return OnnxRuntime(scenario, where)


def is_torch(source: str) -> bool:
    """Whether a source is a torch model: of the torch zoo, an archive, weights, or a factory."""
    scheme, colon, _ = source.partition(":")
    return (
        source.endswith(ARCHIVE)
        or holds_weights(source)
        or (bool(colon) and scheme not in ("zoo", "kernels"))
    )


def cpu_lanes(scenario: Scenario) -> tuple[LaneInfo, ...]:
    """The lanes of the host CPU that the scenario asks for."""
    if scenario.device.kind != "cpu":
        raise ConfigError(
            f"{scenario.path}: [device] kind = {scenario.device.kind!r} is not available for ONNX models in "
            'this version; it runs them with kind = "cpu"'
        )
    n_cores = len(available_cores())
    return lane_layout(scenario.device.lanes or min(DEFAULT_CPU_LANES, n_cores), n_cores)


class OnnxRuntime:
    """ONNX models on the CPU."""

    def __init__(self, scenario: Scenario, where: Places) -> None:
        self._scenario, self._where = scenario, where
        lanes = cpu_lanes(scenario)
        self.device = cpu_fingerprint(lanes, len(available_cores()))
        models = OnnxModels(scenario, where, self.device)
        self.executor = OnnxExecutor(MonotonicClock(), lanes, models, scenario.device.memory_limit)
        self._paths: dict[str, Path] = {}

    def load(self, model: ModelConfig) -> tuple[ModelMetadata, str]:
        path = locate(model, self._scenario, self._where)
        metadata = self.executor.load(inspect(path, settings_of(model)), path)
        self._paths[metadata.name] = path
        return metadata, source_hash(path)

    def inside(self, metadata: ModelMetadata) -> Inside:
        cores = core_numbers(self.executor.lanes[0].units, available_cores())
        return OnnxInside(self._paths[metadata.name], metadata, cores)

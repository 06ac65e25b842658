"""What runs a scenario's models on its device: ONNX Runtime and Python callables on the CPU, torch on the CPU
or on CUDA.

A device has one runtime. Torch is an extra: it is imported only when a scenario asks for it.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from cotenant.catalogue import OnnxModels, Places
from cotenant.clock import MonotonicClock
from cotenant.config import ARCHIVE, ConfigError, ModelConfig, Scenario, holds_weights
from cotenant.cores import available_cores, core_numbers
from cotenant.domain import ModelMetadata
from cotenant.execute.lane_model import Loadable
from cotenant.execute.lanes import lane_layout
from cotenant.execute.onnx import OnnxExecutor
from cotenant.execute.onnx_nodes import OnnxInside
from cotenant.ports import Executor, LaneInfo
from cotenant.profile.probe import Inside
from cotenant.profile.records import DeviceFingerprint, cpu_fingerprint
from cotenant.user_models import UserModels

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

    def hash(self, model: ModelConfig) -> str:
        """The hash of all that a model is made of now. Blocks. Raises ValueError with the reason."""
        ...

    def look(self, model: ModelConfig) -> ModelMetadata | None:
        """What a model would be if it were loaded now, without loading it; None where that shows only when it
        is loaded. Blocks. Raises ValueError with the reason."""
        ...

    def reconfigure(self, scenario: Scenario) -> None:
        """From now on models are loaded as this scenario says; its device is the same."""
        ...


def open_runtime(scenario: Scenario, where: Places, user: UserModels) -> Runtime:
    """The runtime that the scenario's sources and device ask for. Raises ConfigError."""
    if family(scenario, user) == "torch":
        first = scenario.models[0]
        try:
            from cotenant.torch_runtime import TorchRuntime
        except ImportError as error:
            raise ConfigError(
                f"{scenario.path}: [[model]] {first.name!r} needs torch ({error}); install cotenant[torch], "
                "in a checkout with `make torch`"
            ) from error
        return TorchRuntime(scenario, where)
    return OnnxRuntime(scenario, where, user)


def family(scenario: Scenario, user: UserModels) -> str:
    """`torch`, or `onnx` for the runtime of ONNX and Python models. Raises ConfigError for a mixture."""
    torch: list[str] = []
    others: list[str] = []
    for model in scenario.models:
        try:
            on_torch = is_torch(model.source) and user.find(model.source) is None
        except ValueError:  # it goes with the others, and fails when it is loaded
            continue
        (torch if on_torch else others).append(model.name)
    if torch and others:
        raise ConfigError(
            f"{scenario.path}: torch models ({', '.join(torch)}) and others ({', '.join(others)}) "
            "cannot share one device in this version; serve them apart"
        )
    return "torch" if torch else "onnx"


def is_torch(source: str) -> bool:
    """Whether a source is a torch model: of the torch zoo, an archive, weights, or a factory (which its name
    does not tell from a Python model)."""
    scheme, colon, _ = source.partition(":")
    return (
        source.endswith(ARCHIVE)
        or holds_weights(source)
        or (bool(colon) and scheme not in ("zoo", "kernels"))
    )


def is_file(source: str) -> bool:
    """Whether a source is an ONNX file, of the zoo or the user's."""
    return source.startswith("zoo:") or source.endswith(".onnx")


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
    """ONNX models and Python models on the CPU."""

    def __init__(self, scenario: Scenario, where: Places, user: UserModels) -> None:
        lanes = cpu_lanes(scenario)
        self.device = cpu_fingerprint(lanes, len(available_cores()))
        self._source = OnnxModels(scenario, where, self.device, user)
        limit = scenario.device.memory_limit
        self.executor = OnnxExecutor(MonotonicClock(), lanes, self._source, limit)
        self._paths: dict[str, Path] = {}
        # files are read ahead while sessions are made of others, which takes about as long
        reader = ThreadPoolExecutor(1, thread_name_prefix="cotenant-read")
        files = [model for model in scenario.models if is_file(model.source)]
        self._reading = {model.name: reader.submit(self._read, model) for model in files}
        reader.shutdown(wait=False)

    def load(self, model: ModelConfig) -> tuple[ModelMetadata, str]:
        reading = self._reading.pop(model.name, None)
        metadata, made_of, digest = self._read(model) if reading is None else reading.result()
        metadata = self.executor.load(metadata, made_of)
        if isinstance(made_of, Path):
            self._paths[metadata.name] = made_of
        return metadata, digest

    def _read(self, model: ModelConfig) -> tuple[ModelMetadata, Path | Loadable, str]:
        """What a model is made of, what that says of itself, and its hash."""
        metadata, made_of = self._source.look(model)
        return metadata, made_of, self._source.hash(made_of)

    def hash(self, model: ModelConfig) -> str:
        return self._source.hash(self._source.made_of(model))

    def look(self, model: ModelConfig) -> ModelMetadata:
        return self._source.look(model)[0]

    def reconfigure(self, scenario: Scenario) -> None:
        self._source.reconfigure(scenario)

    def inside(self, metadata: ModelMetadata) -> Inside | None:
        """None for Python models, which say nothing of themselves."""
        if metadata.name not in self._paths:
            return None
        cores = core_numbers(self.executor.lanes[0].units, available_cores())
        return OnnxInside(self._paths[metadata.name], metadata, cores)

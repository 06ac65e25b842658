"""The torch executor: models in segments, lanes as streams, one pump; on the CPU and on CUDA.

`load` prepares a model for every lane; `start` hands a dispatch to the pump. See `pump` for how lanes are
kept fed and `stream` for what a lane is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from msgspec import structs

from cotenant.clock import Clock
from cotenant.cores import available_cores, core_numbers
from cotenant.domain import (
    Completion,
    Dispatch,
    Event,
    Maintain,
    ModelMetadata,
    SoloProfile,
    Variant,
)
from cotenant.execute.lanes import lane_layout
from cotenant.execute.maintenance import Loaded, Maintenance
from cotenant.execute.memory import HostMemory, MemoryBudget
from cotenant.execute.model import ModelSettings
from cotenant.execute.torch.captures import check_memory
from cotenant.execute.torch.cuda import CudaStream
from cotenant.execute.torch.device_clock import DeviceClock
from cotenant.execute.torch.model import Blueprint, TorchModel, example_state, prepare
from cotenant.execute.torch.partitions import Ladder, open_ladder
from cotenant.execute.torch.pump import Pump
from cotenant.execute.torch.stream import CpuStream, Job, Stream, describe
from cotenant.ports import LaneInfo, Sink, Tensors

CLOSE_WAIT_S = 2.0


class TorchSource(Protocol):
    """Finds models that are to be loaded while serving, and says how fast they are. May block."""

    def find(self, name: str) -> tuple[Blueprint, ModelSettings]:
        """The model. Raises ValueError when there is none."""
        ...

    def profiled(
        self, metadata: ModelMetadata, run: Callable[[Variant], int]
    ) -> tuple[ModelMetadata, Sequence[SoloProfile]]:
        """The model with its SLO settled, and its solo profiles; `run` runs a variant once, beside whatever
        else runs, and returns the span (ns)."""
        ...


def cuda_lanes(n_lanes: int) -> tuple[LaneInfo, ...]:
    """Lanes of a GPU: they share its compute, and each may hold a dispatch behind the running one."""
    return tuple(LaneInfo(index=i, units=(0,), depth=1) for i in range(n_lanes))


def _confinable(lanes: Sequence[LaneInfo], ladder: Ladder | None) -> tuple[LaneInfo, ...]:
    return tuple(structs.replace(lane, shares=ladder.shares) for lane in lanes) if ladder else tuple(lanes)


def _reason(settings: ModelSettings, error: Exception) -> str:
    """Why a model cannot be loaded. What is no ValueError comes from running it on examples."""
    if isinstance(error, ValueError):
        text = str(error)
        return text if text.startswith("model ") else f"model {settings.name!r}: {text}"
    sizes = [f"max_batch = {settings.max_batch}"]
    sizes += [f"{axis} = {list(found)}" for axis, found in settings.buckets.items()]
    return (
        f"model {settings.name!r} fails on examples of the sizes it should serve ({', '.join(sizes)}): "
        f"{describe(error)}"
    )


def _weight_bytes(module: torch.nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


class TorchExecutor:
    """Implements the `Executor` port. `load` and `unload` may be called from any thread.

    `device`: `cpu`, or `cuda` with its number; lanes default to one per core, or to four on CUDA. With
    `partitions` dispatches can be confined to the shares that `lanes` then name, if the device has any; else
    `why_whole` says why not. `memory_limit`: bytes of the device that all models may take."""

    def __init__(
        self,
        clock: Clock,
        lanes: Sequence[LaneInfo] | None = None,
        source: TorchSource | None = None,
        device: str = "cpu",
        *,
        partitions: bool = False,
        memory_limit: int | None = None,
    ) -> None:
        self._cores = available_cores()
        self._device = torch.device(device)
        on_cpu = self._device.type == "cpu"
        usual = lane_layout(min(4, len(self._cores)), len(self._cores)) if on_cpu else cuda_lanes(4)
        self.ladder: Ladder | None = None
        self.why_whole = "a CPU has no partitions" if on_cpu else "partitions were not asked for"
        if partitions and not on_cpu:
            self.ladder, self.why_whole = open_ladder(self._device)
        self.lanes = _confinable(lanes or usual, self.ladder)
        self.models: dict[str, TorchModel] = {}
        self._clock = clock
        self._source = source
        self._known: dict[str, tuple[Blueprint, ModelSettings]] = {}
        self._current: dict[int, CudaStream] = {}
        self._sink: Sink | None = None
        self._host = HostMemory(frozenset(self._cores))
        self._memory = MemoryBudget(memory_limit, self._host.in_use if on_cpu else self._reserved_bytes)
        self._loading = threading.Lock()
        self._streams: list[CpuStream | CudaStream] = []
        self._device_clock = None if on_cpu else DeviceClock(clock, self._device)
        self._warming = self._warming_streams()
        self._pump = Pump(len(self.lanes), self._new_stream, clock)
        self._maintenance = Maintenance(
            frozenset(self._cores),
            self._load_and_profile,
            self.unload,
            describe,
            self._post,
            self._host.give_back,
        )

    def _new_stream(self, lane: int) -> Stream:
        """Also called for a lane that was lost, in a thread of its own: its models are captured anew."""
        stream: CpuStream | CudaStream
        if self._device_clock is None:
            cores = core_numbers(self.lanes[lane].units, self._cores)
            stream = CpuStream(f"cotenant-lane-{lane}", cores, self._clock, lambda: self._pump.wake())
            self._streams.append(stream)
            return stream
        stream = CudaStream(
            lane, self._device, self._device_clock, lambda: self._pump.wake(), ladder=self.ladder
        )
        # the lost lane's stream stays among them: its graphs may still be running, in its memory
        self._streams.append(stream)
        with self._loading:
            for model in self.models.values():
                self._warm(model)
                stream.capture(model)
            self._current[lane] = stream
        return stream

    def _warming_streams(self) -> list[Any]:
        """One per share below 1.0, where models run once before they are captured: on a part of the device
        libraries may choose other kernels than on the whole."""
        below = self.ladder.shares[:-1] if self.ladder else ()
        return [
            torch.cuda.ExternalStream(self.ladder.stream(share, 0), device=self._device)
            for share in below
            if self.ladder
        ]

    # --- models ---------------------------------------------------------------------------------------

    def load(self, blueprint: Blueprint, settings: ModelSettings) -> ModelMetadata:
        """Make a model servable, every variant run once. Blocks: not for the deciding thread. Raises
        ValueError naming the model and the reason; a model of the same name stays then."""
        with self._loading:
            try:
                with self._memory.loading(settings.name, _weight_bytes(blueprint.module)):
                    model = prepare(blueprint, settings, self._device)
                    self._warm(model)
                    if self._current:
                        check_memory(model, len(self._current), len(self.lanes[0].shares))
                    self._capture(model)
            except Exception as error:
                raise ValueError(_reason(settings, error)) from error
            self._known[settings.name] = (blueprint, settings)
            replaced = self.models.get(settings.name)
            self.models[settings.name] = model
        if replaced is not None:
            self._pump.forget(replaced)
        return model.metadata

    def _reserved_bytes(self) -> int:
        """Memory of the device that torch holds."""
        return int(torch.cuda.memory_reserved(self._device))

    def _capture(self, model: TorchModel) -> None:
        """On every lane or, when that fails, on none."""
        try:
            for stream in self._current.values():
                stream.capture(model)
        except Exception:
            for stream in self._current.values():
                stream.forget(model)
            raise

    def unload(self, name: str) -> None:
        """Forget the model; runs under way end undisturbed. Raises ValueError when it is not loaded."""
        model = self.models.pop(name, None)
        if model is None:
            raise ValueError(f"model {name!r} is not loaded")
        self._memory.unloaded(name)
        self._pump.forget(model)

    def _warm(self, model: TorchModel) -> None:
        with torch.inference_mode():
            for variant in model.metadata.spec.variants():
                self._check(model, variant, self._run(model, variant))
                for stream in self._warming:
                    with torch.cuda.stream(stream):
                        self._run(model, variant)
                    stream.synchronize()

    def _run(self, model: TorchModel, variant: Variant) -> tuple[torch.Tensor, ...]:
        state = example_state(model.metadata, variant, self._device)
        for segment in model.segments:
            state = segment(*state)
        return state

    @staticmethod
    def _check(model: TorchModel, variant: Variant, outputs: Sequence[torch.Tensor]) -> None:
        declared = model.metadata.outputs
        if len(outputs) != len(declared):
            raise ValueError(f"it returns {len(outputs)} tensors, but {len(declared)} outputs are declared")
        for spec, output in zip(declared, outputs, strict=True):
            if model.metadata.batched and output.shape[:1] != (variant.rows,):
                raise ValueError(
                    f"output '{spec.name}' has shape {list(output.shape)} for {variant.rows} rows, but its "
                    "first dimension should be the rows; serve it with max_batch = 1"
                )

    # --- Executor -------------------------------------------------------------------------------------

    def attach(self, sink: Sink) -> None:
        self._sink = sink
        self._pump.attach(sink)

    def start(self, dispatch: Dispatch, inputs: Sequence[Tensors]) -> None:
        model = self.models.get(dispatch.variant.model)
        if model is None:
            now = self._clock.now()
            error = f"{dispatch.variant.model} is not loaded"
            self._post(
                Completion(
                    dispatch_id=dispatch.id, lane=dispatch.lane, started_at=now, ended_at=now, error=error
                )
            )
            return
        self._pump.start(Job(dispatch, inputs, model))

    def preempt(self, dispatch_id: int) -> None:
        self._pump.preempt(dispatch_id)

    def abort(self, dispatch_id: int, reason: str) -> None:
        self._pump.abort(dispatch_id, reason)

    def take_results(self, dispatch_id: int) -> Sequence[Tensors] | None:
        return self._pump.take_results(dispatch_id)

    @property
    def launch_ns(self) -> Sequence[int]:
        """What launching each of the last dispatches took of the host (ns), staging not included."""
        return tuple(self._pump.launch_ns)

    def maintain(self, action: Maintain) -> None:
        """Load or unload in a thread of its own. Profiling is done through `profile.measure`, not here."""
        self._maintenance.put(action)

    def close(self) -> None:
        self._pump.close()
        self._maintenance.stop()
        for stream in self._streams:
            stream.join(CLOSE_WAIT_S)
        self._maintenance.join(CLOSE_WAIT_S)
        self._host.stop()

    # --- maintenance ----------------------------------------------------------------------------------

    def _post(self, event: Event) -> None:
        assert self._sink is not None, "attach() first"
        self._sink(event)

    def _load_and_profile(self, name: str) -> Loaded:
        if self._source is None and name not in self._known:
            raise ValueError(f"unknown model {name!r}")
        blueprint, settings = self._source.find(name) if self._source else self._known[name]
        metadata = self.load(blueprint, settings)
        if self._source is None:
            return metadata, ()
        model = self.models[name]

        def run(variant: Variant) -> int:
            began = self._clock.now()
            with torch.inference_mode():
                self._run(model, variant)
            return self._clock.now() - began

        return self._source.profiled(metadata, run)

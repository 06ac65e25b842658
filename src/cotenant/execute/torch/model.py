"""A torch module as a servable model: its tensors, its segments, and what each segment costs.

How segments are made. A module that says its stages (`Staged`, `nn.Sequential`) is run once, stage by stage,
counting operations, FLOPs and bytes. From nominal rates of the device follows how long it takes, hence into
how many segments it is worth cutting (one per `SEGMENT_NS`, at most 8); the cuts then make the longest
segment as short as contiguous stages allow. Only counts go in, so the same model is cut the same way every
time. A module without stages gets them from its graph of operations (`graph_stages`), if it is long enough to
be cut; where that fails it is one segment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from msgspec import structs
from torch import Tensor, nn

from cotenant.domain import ModelMetadata, TensorSpec, Variant
from cotenant.execute.model import ModelSettings, batch_axis, example_inputs, make_spec, with_batch
from cotenant.execute.torch.architectures import Staged
from cotenant.execute.torch.cost import RATES, Cost, count, total
from cotenant.execute.torch.exported import Exported, place
from cotenant.execute.torch.trace import through_graph

MAX_SEGMENTS = 8
SEGMENT_NS = {"cuda": 500_000, "cpu": 2_000_000}
"""Span that a segment should have (ns): short enough to wait for, long against a launch."""

TYPES: dict[torch.dtype, str] = {
    torch.bool: "BOOL",
    torch.uint8: "UINT8",
    torch.int8: "INT8",
    torch.int16: "INT16",
    torch.int32: "INT32",
    torch.int64: "INT64",
    torch.float16: "FP16",
    torch.float32: "FP32",
    torch.float64: "FP64",
}
"""V2 name of every element type that torch exchanges with numpy."""
DTYPES = {name: dtype for dtype, name in TYPES.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Blueprint:
    """A module on the CPU with the tensors it takes and gives, not yet prepared for a device."""

    module: nn.Module
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    platform: str = "pytorch_module"


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchModel:
    """A model on its device. The composition of `segments` is the module. `costs`: per segment, at the
    largest batch. `uncut`: why a model that is worth cutting is one segment, else empty."""

    metadata: ModelMetadata
    segments: tuple[nn.Module, ...]
    costs: tuple[Cost, ...]
    device: torch.device
    uncut: str = ""

    @property
    def n_segments(self) -> int:
        return len(self.segments)


def prepare(blueprint: Blueprint, settings: ModelSettings, device: torch.device) -> TorchModel:
    """Move the module to the device, find its batch axis, cut it into segments.

    Raises ValueError when its tensors cannot be served or an axis besides the batch has no buckets."""
    inputs, outputs = list(blueprint.inputs), list(blueprint.outputs)
    batched = batch_axis(inputs, outputs, set(settings.buckets)) is not None
    if batched:
        inputs, outputs = [with_batch(spec) for spec in inputs], [with_batch(spec) for spec in outputs]
    spec = make_spec(settings, batched, inputs, outputs)
    loose = {axis for t in inputs for axis in t.axes[batched:] if axis is not None} - set(settings.buckets)
    if loose:
        raise ValueError(
            f"model {settings.name!r}: the dynamic axes {sorted(loose)} need sizes; give buckets for them"
        )
    metadata = ModelMetadata(
        name=settings.name,
        platform=blueprint.platform,
        versions=("1",),
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        batched=batched,
        spec=spec,
    )
    module = blueprint.module.eval().requires_grad_(False).to(device)
    states = [example_state(metadata, variant, device) for variant in spec.variants()]
    stages, costs, uncut = _divide(module, states, device)
    spans = [cost.span_ns(RATES[device.type]) for cost in costs]
    bounds = cut(spans, min(len(stages), _n_wanted(costs, device)))
    segments = tuple(Staged(stages[a:b]) for a, b in pairwise(bounds))
    return TorchModel(
        metadata=structs.replace(metadata, spec=structs.replace(spec, n_segments=len(segments))),
        segments=segments,
        costs=tuple(total(costs[a:b]) for a, b in pairwise(bounds)),
        device=device,
        uncut=uncut,
    )


def _divide(
    module: nn.Module, states: Sequence[tuple[Tensor, ...]], device: torch.device
) -> tuple[list[nn.Module], list[Cost], str]:
    """The module's stages, what they cost, and why there is but one of them where more would be worth it.
    `states`: example inputs per variant, the largest last."""
    if isinstance(module, Exported):
        place(module, device)
    stages = stages_of(module)
    costs = count(stages, states[-1])
    if len(stages) > 1 or _n_wanted(costs, device) == 1:
        return stages, costs, ""
    try:
        stages = through_graph(module, states, RATES[device.type])
        return stages, count(stages, states[-1]), ""
    except Exception as error:  # whatever torch cannot trace is still served, in one piece
        reason = str(error).strip().partition("\n")[0]
        return stages, costs, f"{type(error).__name__}: {reason}"


def _n_wanted(costs: Sequence[Cost], device: torch.device) -> int:
    """Into how many segments it is worth cutting."""
    span = sum(cost.span_ns(RATES[device.type]) for cost in costs)
    return max(1, min(MAX_SEGMENTS, round(span / SEGMENT_NS[device.type])))


def stages_of(module: nn.Module) -> list[nn.Module]:
    """The stages a module is a chain of: its own when it says them, else itself, as one stage."""
    if isinstance(module, Staged):
        return list(module.stages)
    if isinstance(module, nn.Sequential) and len(module) > 1:
        return [Single(child) for child in module]
    return [module if isinstance(module, Whole | Exported) else Whole(module)]


class Single(nn.Module):
    """A module of one tensor to one tensor, as a stage."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.body(x),)


class Whole(nn.Module):
    """Any module as a single stage; a lone tensor or a mapping it returns becomes a tuple."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        found: Any = self.body(*inputs)
        if isinstance(found, Tensor):
            return (found,)
        return tuple(found.values()) if isinstance(found, Mapping) else tuple(found)


def example_state(metadata: ModelMetadata, variant: Variant, device: torch.device) -> tuple[Tensor, ...]:
    """Valid inputs of exactly the variant's shape, on the device."""
    arrays = example_inputs(metadata, variant, np.random.default_rng(0))
    return tuple(torch.from_numpy(arrays[spec.name]).to(device) for spec in metadata.inputs)


def cut(spans: Sequence[float], n: int) -> list[int]:
    """Bounds (n + 1 of them) that split a chain into n contiguous parts with the shortest longest part.

    Dynamic programming over (parts, end); spans are positive."""
    total = [0.0]
    for span in spans:
        total.append(total[-1] + span)
    size = len(spans)
    best = [[float("inf")] * (size + 1) for _ in range(n + 1)]
    begin = [[0] * (size + 1) for _ in range(n + 1)]
    best[0][0] = 0.0
    for part in range(1, n + 1):
        for end in range(part, size + 1):
            for start in range(part - 1, end):
                longest = max(best[part - 1][start], total[end] - total[start])
                if longest < best[part][end]:
                    best[part][end], begin[part][end] = longest, start
    bounds = [size]
    for part in range(n, 0, -1):
        bounds.append(begin[part][bounds[-1]])
    return bounds[::-1]

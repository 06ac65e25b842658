"""`torch:NAME`: models with seeded random weights, at realistic sizes for a GPU and small ones for a CPU.

Nothing is downloaded. Convolutional models are fp16 and transformers bf16 on a GPU; the small ones are fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from cotenant.domain import TensorSpec
from cotenant.execute.torch import architectures as arch
from cotenant.execute.torch.model import Blueprint

Make = Callable[[torch.dtype], nn.Module]
SMALL = "-small"
"""Ending of the name of a small version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One model of the zoo: how to make it large and small, what it takes and gives."""

    large: Make
    small: Make
    dtype: torch.dtype
    inputs: Callable[[bool], tuple[TensorSpec, ...]]
    outputs: tuple[TensorSpec, ...]
    buckets: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def _image(small_side: int = 64) -> Callable[[bool], tuple[TensorSpec, ...]]:
    def inputs(small: bool) -> tuple[TensorSpec, ...]:
        side = small_side if small else 224
        return (tensor("image", "FP32", "batch", 3, side, side),)

    return inputs


def tensor(
    name: str, datatype: str, *shape: str | int, low: int | None = None, high: int | None = None
) -> TensorSpec:
    """A tensor's spec; a name in `shape` is a dynamic axis."""
    return TensorSpec(
        name=name,
        datatype=datatype,
        shape=tuple(-1 if isinstance(size, str) else size for size in shape),
        axes=tuple(size if isinstance(size, str) else None for size in shape),
        low=low,
        high=high,
    )


def _tokens(small: bool) -> tuple[TensorSpec, ...]:
    return (tensor("tokens", "INT64", "batch", "seq", low=1, high=1000 if small else 30_000),)


def _step(small: bool) -> tuple[TensorSpec, ...]:
    words = 1000 if small else 50_000
    return (
        tensor("token", "INT64", "batch", 1, low=0, high=words),
        tensor("session", "INT64", "batch", 1, low=0, high=1 << 20),
    )


def _latent(small: bool) -> tuple[TensorSpec, ...]:
    side = 16 if small else 64
    return (
        tensor("latent", "FP32", "batch", 4, side, side),
        tensor("time", "INT64", "batch", 1, low=0, high=1000),
    )


def _clicks(small: bool) -> tuple[TensorSpec, ...]:
    return (
        tensor("dense", "FP32", "batch", 13),
        tensor("sparse", "INT64", "batch", 26, low=0, high=1 << 30),
    )


LOGITS = (tensor("logits", "FP32", "batch", 1000),)
SEQ = {"seq": (32, 64, 128)}

ZOO: dict[str, Entry] = {
    "resnet50": Entry(
        large=arch.resnet50,
        small=lambda dtype: arch.resnet50(dtype, width=16, depths=(1, 2, 2, 1)),
        dtype=torch.float16,
        inputs=_image(),
        outputs=LOGITS,
    ),
    "efficientnet": Entry(
        large=arch.efficientnet,
        small=lambda dtype: arch.efficientnet(dtype, width=0.5),
        dtype=torch.float16,
        inputs=_image(),
        outputs=LOGITS,
    ),
    "vit_b16": Entry(
        large=arch.vit,
        small=lambda dtype: arch.vit(dtype, size=64, width=128, depth=4, heads=4),
        dtype=torch.bfloat16,
        inputs=_image(),
        outputs=LOGITS,
    ),
    "bert_base": Entry(
        large=arch.encoder,
        small=lambda dtype: arch.encoder(dtype, width=128, depth=4, heads=4, n_words=1000),
        dtype=torch.bfloat16,
        inputs=_tokens,
        outputs=(tensor("scores", "FP32", "batch", 2),),
        buckets=SEQ,
    ),
    "embedder": Entry(
        large=lambda dtype: arch.encoder(dtype, width=384, depth=6, n_out=384, unit=True),
        small=lambda dtype: arch.encoder(
            dtype, width=64, depth=2, heads=4, n_words=1000, n_out=64, unit=True
        ),
        dtype=torch.bfloat16,
        inputs=_tokens,
        outputs=(tensor("embedding", "FP32", "batch", 384),),
        buckets=SEQ,
    ),
    "dlrm": Entry(
        large=arch.dlrm,
        small=lambda dtype: arch.dlrm(dtype, n_rows=2000, width=16, hidden=128),
        dtype=torch.float16,
        inputs=_clicks,
        outputs=(tensor("click", "FP32", "batch", 1),),
    ),
    "gpt2": Entry(
        large=lambda dtype: arch.decoder(),
        small=lambda dtype: arch.decoder(128, 4, 4, n_words=1000, n_sessions=8, context=32),
        dtype=torch.bfloat16,
        inputs=_step,
        outputs=(tensor("logits", "FP32", "batch", 50_257),),
    ),
    "unet": Entry(
        large=arch.unet,
        small=lambda dtype: arch.unet(dtype, width=16),
        dtype=torch.float16,
        inputs=_latent,
        outputs=(tensor("noise", "FP32", "batch", 4, 64, 64),),
    ),
}
"""Name -> entry; the outputs' sizes are those of the large model."""


def blueprint(name: str, *, small: bool, seed: int = 0, dtype: torch.dtype | None = None) -> Blueprint:
    """Make a model of the zoo on the CPU; the same seed gives the same weights. `dtype` replaces the
    model's own. Raises ValueError with the known names."""
    entry = ZOO.get(name)
    if entry is None:
        raise ValueError(f"there is no torch model {name!r}; there are: {', '.join(sorted(ZOO))}")
    dtype = dtype or (torch.float32 if small else entry.dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = (entry.small if small else entry.large)(dtype).to(dtype)
    if not small:  # as the images are, or every run would turn the weights round
        module = module.to(memory_format=torch.channels_last)
    inputs = entry.inputs(small)
    return Blueprint(
        module=module.eval(),
        inputs=inputs,
        outputs=_outputs(entry, module, inputs) if small else entry.outputs,
        platform="cotenant_torch_zoo",
    )


def default_buckets(name: str) -> Mapping[str, tuple[int, ...]]:
    """Bucket sizes of the model's dynamic axes besides the batch."""
    return ZOO[name].buckets if name in ZOO else {}


def _outputs(entry: Entry, module: nn.Module, inputs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    """The outputs of a small model, whose sizes are found by running it."""
    sizes = {"batch": 1, "seq": 8}
    state = [
        torch.ones([sizes[str(axis)] if axis else n for n, axis in zip(t.shape, t.axes, strict=True)])
        for t in inputs
    ]
    state = [x.long() if t.datatype == "INT64" else x for x, t in zip(state, inputs, strict=True)]
    with torch.inference_mode():
        found = module(*state)
    return tuple(
        tensor(spec.name, spec.datatype, "batch", *result.shape[1:])
        for spec, result in zip(entry.outputs, found, strict=True)
    )

"""Models of the zoo as kernels, counted: `zoo:NAME` on a twin.

The seven of the built-in zoo, with the sizes that they have on a CPU, and larger ones that make sense on a
data-centre GPU and exist on twins only. They run as a compiler would run them: bias, activation and
normalisation by running means are part of the product before them, attention is one kernel.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from cotenant.simulate.twin.kernels import Kernels
from cotenant.simulate.twin.operators import BYTES, Tape
from cotenant.simulate.twin.specs import DeviceSpec
from cotenant.zoo import DEFAULT_BUCKETS
from cotenant.zoo import architectures as arch

Sizes = Mapping[str, int]
"""Of the dynamic axes."""
PIXEL_BYTES = 4
"""Images come as 32-bit numbers."""
WORD_BYTES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class AnalyticModel:
    """A model as what it runs. `axes`: sizes of its dynamic axes unless a scenario declares others."""

    run: Callable[[Tape, int, Sizes], None]
    axes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def at(self, rows: int, sizes: Sizes, spec: DeviceSpec) -> Kernels:
        """Its kernels for so many rows, with these axes, on a device."""
        tape = Tape(spec)
        self.run(tape, rows, sizes)
        return tape.kernels()


def analytic(name: str) -> AnalyticModel:
    """The model called `name`. Raises ValueError that names the nearest known ones."""
    found = MODELS.get(name)
    if found is None:
        close = difflib.get_close_matches(name, MODELS, 3, 0.3)
        hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
        raise ValueError(f"the zoo of twins has no model {name!r}; {hint}known: {', '.join(MODELS)}")
    return found


# --- images ---------------------------------------------------------------------------------------


def _image_in(tape: Tape, rows: int, side: int) -> None:
    tape.copy_in(rows * 3 * side * side * PIXEL_BYTES)


def _classes_out(tape: Tape, rows: int, side: int, width: int, n_classes: int) -> None:
    tape.elementwise(rows * width, rows * width * (side * side + 1))
    tape.product(rows, n_classes, width)
    tape.copy_out(rows * n_classes * PIXEL_BYTES)


def _resnet18(tape: Tape, rows: int, sizes: Sizes) -> None:
    s = arch.ResnetSizes()
    _image_in(tape, rows, s.side)
    side = tape.convolution(rows, s.side, 3, s.widths[0], 7, 2)
    side = _pool(tape, rows, side, s.widths[0])
    n_in = s.widths[0]
    for stage, width in enumerate(s.widths):
        for i in range(s.n_blocks):
            stride = 2 if stage and not i else 1
            if n_in != width or stride != 1:
                tape.convolution(rows, side, n_in, width, 1, stride)
            side = tape.convolution(rows, side, n_in, width, 3, stride)
            tape.convolution(rows, side, width, width, 3)
            _residual(tape, rows * width * side * side)
            n_in = width
    _classes_out(tape, rows, side, n_in, s.n_classes)


def _resnet50(tape: Tape, rows: int, sizes: Sizes) -> None:
    """He et al. 2015, bottleneck blocks, 224 x 224."""
    _image_in(tape, rows, 224)
    side = _pool(tape, rows, tape.convolution(rows, 224, 3, 64, 7, 2), 64)
    n_in = 64
    for stage, (width, n_blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        for i in range(n_blocks):
            stride = 2 if stage and not i else 1
            if not i:
                tape.convolution(rows, side, n_in, 4 * width, 1, stride)
            tape.convolution(rows, side, n_in, width, 1)
            side = tape.convolution(rows, side, width, width, 3, stride)
            tape.convolution(rows, side, width, 4 * width, 1)
            _residual(tape, rows * 4 * width * side * side)
            n_in = 4 * width
    _classes_out(tape, rows, side, n_in, 1000)


def _pool(tape: Tape, rows: int, side: int, n_channels: int) -> int:
    out = side // 2
    made = rows * n_channels * out * out
    tape.elementwise(made, rows * n_channels * side * side + made, 9.0)
    return out


def _residual(tape: Tape, n_elements: float) -> None:
    tape.elementwise(n_elements, 3 * n_elements)


def _mobilenet(tape: Tape, rows: int, sizes: Sizes) -> None:
    s = arch.MobilenetSizes()
    _image_in(tape, rows, s.side)
    side = tape.convolution(rows, s.side, 3, s.widths[0], 3, 2)
    for before, after in itertools.pairwise(s.widths):
        side = tape.depthwise(rows, side, before, 3, 2 if after > before else 1)
        tape.convolution(rows, side, before, after, 1)
    _classes_out(tape, rows, side, s.widths[-1], s.n_classes)


# --- transformers -----------------------------------------------------------------------------------


def _block(tape: Tape, rows: int, length: int, width: int, n_heads: int) -> None:
    """Attention and a feed-forward part four times as wide, each behind a normalisation."""
    n = rows * length
    tape.elementwise(n * width, 2 * n * width, 8.0)
    tape.product(n, 3 * width, width)
    tape.product(length, width / n_heads, 2 * length, rows * n_heads, shared=False)
    tape.product(n, width, width)
    tape.elementwise(n * width, 4 * n * width, 9.0)
    tape.product(n, 4 * width, width)
    tape.elementwise(n * 4 * width, flops=12.0)
    tape.product(n, width, 4 * width)
    _residual(tape, n * width)


def _vit(side: int, patch: int, width: int, n_blocks: int, n_heads: int) -> AnalyticModel:
    def run(tape: Tape, rows: int, sizes: Sizes) -> None:
        length = (side // patch) ** 2
        _image_in(tape, rows, side)
        tape.product(rows * length, width, 3 * patch * patch)
        tape.elementwise(rows * length * width)
        for _ in range(n_blocks):
            _block(tape, rows, length, width, n_heads)
        tape.elementwise(rows * length * width, flops=8.0)
        _classes_out(tape, rows, round(length**0.5), width, 1000)

    return AnalyticModel(run=run)


def _bert(width: int, n_blocks: int, n_heads: int, axes: Mapping[str, tuple[int, ...]]) -> AnalyticModel:
    def run(tape: Tape, rows: int, sizes: Sizes) -> None:
        length = sizes["seq"]
        tape.copy_in(2 * rows * length * WORD_BYTES)
        tape.elementwise(rows * length * width)
        for _ in range(n_blocks):
            _block(tape, rows, length, width, n_heads)
        tape.elementwise(rows * length * width, flops=8.0)
        tape.product(rows, width, width)
        tape.copy_out(rows * length * width * BYTES)

    return AnalyticModel(run=run, axes=axes)


def _gpt(
    length: int | None, width: int, n_blocks: int, n_heads: int, n_words: int, **axes: tuple[int, ...]
) -> AnalyticModel:
    """A prompt of `length` tokens (None: of the axis `seq`), logits of its last position."""

    def run(tape: Tape, rows: int, sizes: Sizes) -> None:
        n = sizes["seq"] if length is None else length
        tape.copy_in(rows * n * WORD_BYTES)
        tape.elementwise(rows * n * width)
        for _ in range(n_blocks):
            _block(tape, rows, n, width, n_heads)
        tape.elementwise(rows * width, flops=8.0)
        tape.product(rows, n_words, width)
        tape.copy_out(rows * n_words * BYTES)

    return AnalyticModel(run=run, axes=axes)


# --- others -----------------------------------------------------------------------------------------


def _dlrm(tape: Tape, rows: int, sizes: Sizes) -> None:
    s = arch.DlrmSizes()
    n = s.n_sparse + 1
    tape.copy_in(rows * (s.n_dense * PIXEL_BYTES + s.n_sparse * WORD_BYTES))
    tape.product(rows, s.hidden, s.n_dense)
    tape.product(rows, s.width, s.hidden)
    tape.elementwise(rows * s.n_sparse * s.width)
    tape.elementwise(rows * n * s.width)
    tape.product(n, n, s.width, rows, shared=False)
    tape.elementwise(rows * (n * n + s.width))
    tape.product(rows, 3 * s.hidden, n * n + s.width)
    for _ in range(2):
        tape.product(rows, 3 * s.hidden, 3 * s.hidden)
    tape.product(rows, 1, 3 * s.hidden)
    tape.copy_out(rows * PIXEL_BYTES)


def _wide_mlp(tape: Tape, rows: int, sizes: Sizes) -> None:
    s = arch.WideMlpSizes()
    tape.copy_in(rows * s.n_features * PIXEL_BYTES)
    tape.product(rows, s.width, s.n_features)
    for _ in range(s.n_layers):
        tape.product(rows, s.width, s.width)
    tape.product(rows, 1, s.width)
    tape.copy_out(rows * PIXEL_BYTES)


def _echo(tape: Tape, rows: int, sizes: Sizes) -> None:
    n_bytes = rows * arch.EchoSizes().width * PIXEL_BYTES
    tape.copy_in(n_bytes)
    tape.elementwise(rows * arch.EchoSizes().width)
    tape.copy_out(n_bytes)


_VIT, _BERT, _GPT = arch.VitSizes(), arch.BertSizes(), arch.GptSizes()
MODELS: Mapping[str, AnalyticModel] = {
    "resnet18": AnalyticModel(run=_resnet18),
    "mobilenet": AnalyticModel(run=_mobilenet),
    "vit_tiny": _vit(_VIT.side, _VIT.patch, _VIT.width, _VIT.n_blocks, _VIT.n_heads),
    "bert_mini": _bert(_BERT.width, _BERT.n_blocks, _BERT.n_heads, DEFAULT_BUCKETS["bert_mini"]),
    "dlrm": AnalyticModel(run=_dlrm),
    "gpt_mini": _gpt(_GPT.length, _GPT.width, _GPT.n_blocks, _GPT.n_heads, _GPT.n_words),
    "wide_mlp": AnalyticModel(run=_wide_mlp),
    "echo": AnalyticModel(run=_echo),
    "resnet50": AnalyticModel(run=_resnet50),
    "vit_base": _vit(224, 16, 768, 12, 12),
    "bert_base": _bert(768, 12, 12, {"seq": (128, 256, 512)}),
    "gpt_small": _gpt(None, 768, 12, 12, 50_257, seq=(128, 512)),
}

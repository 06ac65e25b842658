"""The torch zoo's architectures, as chains of stages: the places where a run can be cut into segments.

A stage takes and returns a tuple of tensors; what a later stage needs travels in the tuple. Sizes are
arguments, so that the same code is a model of realistic size on a GPU and a small one in a dry run.
Images come in as FP32 and leave as FP32; inside everything has the model's dtype.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as fn


class Staged(nn.Module):
    """A chain of stages; `forward` is their composition."""

    def __init__(self, stages: Sequence[nn.Module]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)

    def forward(self, *state: Tensor) -> tuple[Tensor, ...]:
        for stage in self.stages:
            state = stage(*state)
        return state


class Step(nn.Module):
    """A stage with one tensor in and one out, made of an ordinary module."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.body(x),)


class FromImage(nn.Module):
    """FP32 pixels to the model's dtype, channels last in memory."""

    def __init__(self, dtype: torch.dtype, body: nn.Module) -> None:
        super().__init__()
        self.dtype, self.body = dtype, body

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.body(x.to(self.dtype, memory_format=torch.channels_last)),)


class Head(nn.Module):
    """Mean over all places, then a linear layer; FP32 out."""

    def __init__(self, width: int, n_out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, n_out)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        pooled = x.mean(dim=(2, 3)) if x.dim() == 4 else x.mean(dim=1)
        return (self.linear(pooled).float(),)


# --- convolutional networks -----------------------------------------------------------------------------


def conv(n_in: int, n_out: int, size: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution and batch norm."""
    return nn.Sequential(
        nn.Conv2d(n_in, n_out, size, stride, size // 2, groups=groups, bias=False), nn.BatchNorm2d(n_out)
    )


class Bottleneck(nn.Module):
    """The residual block of ResNet-50 (arXiv 1512.03385, figure 5, right)."""

    def __init__(self, n_in: int, width: int, stride: int) -> None:
        super().__init__()
        n_out = 4 * width
        self.path = nn.Sequential(
            conv(n_in, width, 1), nn.ReLU(), conv(width, width, 3, stride), nn.ReLU(), conv(width, n_out, 1)
        )
        same = stride == 1 and n_in == n_out
        self.shortcut = nn.Identity() if same else conv(n_in, n_out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return fn.relu(self.path(x) + self.shortcut(x))


def resnet50(dtype: torch.dtype, width: int = 64, depths: Sequence[int] = (3, 4, 6, 3)) -> Staged:
    """ResNet-50 when `width` is 64."""
    stem = nn.Sequential(conv(3, width, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    stages: list[nn.Module] = [FromImage(dtype, stem)]
    n_in = width
    for level, depth in enumerate(depths):
        inner = width << level
        for i in range(depth):
            stages.append(Step(Bottleneck(n_in, inner, 2 if i == 0 and level else 1)))
            n_in = 4 * inner
    return Staged([*stages, Head(n_in, 1000)])


class MBConv(nn.Module):
    """Inverted residual with squeeze-and-excitation (arXiv 1905.11946)."""

    def __init__(self, n_in: int, n_out: int, expand: int, size: int, stride: int) -> None:
        super().__init__()
        inner, squeezed = n_in * expand, max(4, n_in // 4)
        self.expand = nn.Sequential(conv(n_in, inner, 1), nn.SiLU()) if expand > 1 else nn.Identity()
        self.depthwise = nn.Sequential(conv(inner, inner, size, stride, groups=inner), nn.SiLU())
        self.excite = nn.Sequential(
            nn.Conv2d(inner, squeezed, 1), nn.SiLU(), nn.Conv2d(squeezed, inner, 1), nn.Sigmoid()
        )
        self.project = conv(inner, n_out, 1)
        self.residual = stride == 1 and n_in == n_out

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(self.expand(x))
        y = self.project(y * self.excite(y.mean((2, 3), keepdim=True)))
        return x + y if self.residual else y


def efficientnet(dtype: torch.dtype, width: float = 1.0) -> Staged:
    """EfficientNet-B0 when `width` is 1."""

    def w(n: int) -> int:
        return max(8, int(n * width) // 8 * 8)

    plan = (
        (1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3),
        (6, 112, 3, 1, 5), (6, 192, 4, 2, 5), (6, 320, 1, 1, 3),
    )  # fmt: skip
    stages: list[nn.Module] = [FromImage(dtype, nn.Sequential(conv(3, w(32), 3, 2), nn.SiLU()))]
    n_in = w(32)
    for expand, n_out, repeats, stride, size in plan:
        for i in range(repeats):
            stages.append(Step(MBConv(n_in, w(n_out), expand, size, stride if i == 0 else 1)))
            n_in = w(n_out)
    stages.append(Step(nn.Sequential(conv(n_in, w(1280), 1), nn.SiLU())))
    made = Staged([*stages, Head(w(1280), 1000)])
    for module in made.modules():
        if isinstance(module, nn.Conv2d):
            # with torch's own weights the signal dies on the way, and every image gets the same answer; with
            # much larger ones it grows beyond fp16
            nn.init.normal_(module.weight, std=1.53 / module.weight[0].numel() ** 0.5)
    return made


class TimedResidual(nn.Module):
    """Residual block of a diffusion U-Net; the time embedding is added between its convolutions."""

    def __init__(self, n_in: int, n_out: int, n_time: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.GroupNorm(8, n_in), nn.SiLU(), nn.Conv2d(n_in, n_out, 3, 1, 1))
        self.time = nn.Linear(n_time, n_out)
        self.second = nn.Sequential(nn.GroupNorm(8, n_out), nn.SiLU(), nn.Conv2d(n_out, n_out, 3, 1, 1))
        self.shortcut = nn.Conv2d(n_in, n_out, 1) if n_in != n_out else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        y = self.first(x) + self.time(time)[:, :, None, None]
        return self.second(y) + self.shortcut(x)


class UnetIn(nn.Module):
    """Latent and time step to features and a time embedding."""

    def __init__(self, dtype: torch.dtype, n_in: int, width: int) -> None:
        super().__init__()
        self.dtype, self.width = dtype, width
        self.stem = nn.Conv2d(n_in, width, 3, 1, 1)
        self.time = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, 4 * width))
        self.register_buffer("waves", torch.exp(-torch.arange(width // 2) * 9.2 / (width // 2)))

    def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        angles = t.float()[:, :1] * self.waves.float()
        time = self.time(torch.cat([angles.sin(), angles.cos()], 1).to(self.dtype))
        return self.stem(x.to(self.dtype, memory_format=torch.channels_last)), fn.silu(time)


class Down(nn.Module):
    """Two residual blocks; the result is kept for the way up, then halved in size unless it is the last."""

    def __init__(self, n_in: int, n_out: int, n_time: int, *, last: bool) -> None:
        super().__init__()
        self.one, self.two = TimedResidual(n_in, n_out, n_time), TimedResidual(n_out, n_out, n_time)
        self.halve = nn.Identity() if last else nn.Conv2d(n_out, n_out, 3, 2, 1)

    def forward(self, x: Tensor, time: Tensor, *kept: Tensor) -> tuple[Tensor, ...]:
        x = self.two(self.one(x, time), time)
        return (self.halve(x), time, *kept, x)


class Up(nn.Module):
    """Doubled in size unless it is the first, joined with what was kept last, then two residual blocks."""

    def __init__(self, n_in: int, n_kept: int, n_out: int, n_time: int, *, first: bool) -> None:
        super().__init__()
        self.scale = 1 if first else 2
        self.one = TimedResidual(n_in + n_kept, n_out, n_time)
        self.two = TimedResidual(n_out, n_out, n_time)

    def forward(self, x: Tensor, time: Tensor, *kept: Tensor) -> tuple[Tensor, ...]:
        if self.scale > 1:
            x = fn.interpolate(x, scale_factor=2.0, mode="nearest")
        x = self.two(self.one(torch.cat([x, kept[-1]], 1), time), time)
        return (x, time, *kept[:-1])


class UnetOut(nn.Module):
    """Features to the predicted noise, FP32."""

    def __init__(self, width: int, n_out: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, n_out, 3, 1, 1))

    def forward(self, x: Tensor, time: Tensor) -> tuple[Tensor]:
        return (self.body(x).float(),)


def unet(dtype: torch.dtype, width: int = 128, factors: Sequence[int] = (1, 2, 4)) -> Staged:
    """A small denoising U-Net on 4-channel latents (arXiv 2006.11239, without attention)."""
    n_time, widths = 4 * width, [width * factor for factor in factors]
    stages: list[nn.Module] = [UnetIn(dtype, 4, width)]
    n_in = width
    for i, n_out in enumerate(widths):
        stages.append(Down(n_in, n_out, n_time, last=i == len(widths) - 1))
        n_in = n_out
    for i, n_out in enumerate(reversed(widths)):
        stages.append(Up(n_in, n_out, n_out, n_time, first=i == 0))
        n_in = n_out
    return Staged([*stages, UnetOut(n_in, 4)])


# --- transformers ---------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Multi-head self-attention (arXiv 1706.03762); `mask` is added to the scores."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        rows, length, width = x.shape
        q, k, v = self.qkv(x).view(rows, length, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
        y = fn.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(y.transpose(1, 2).reshape(rows, length, width))


class Layer(nn.Module):
    """Pre-norm transformer layer; what else is in the state passes through."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.attention = Attention(width, n_heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        x = x + self.attention(self.norms[0](x), rest[0] if rest else None)
        return (x + self.mlp(self.norms[1](x)), *rest)


class Patches(nn.Module):
    """An image as a row of embedded patches."""

    def __init__(self, dtype: torch.dtype, size: int, patch: int, width: int) -> None:
        super().__init__()
        self.dtype = dtype
        self.embed = nn.Conv2d(3, width, patch, patch)
        self.place = nn.Parameter(0.02 * torch.randn(1, (size // patch) ** 2, width))

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.embed(x.to(self.dtype)).flatten(2).transpose(1, 2) + self.place,)


def vit(
    dtype: torch.dtype, size: int = 224, patch: int = 16, width: int = 768, depth: int = 12, heads: int = 12
) -> Staged:
    """ViT-B/16 by default (arXiv 2010.11929), with mean pooling."""
    layers = [Layer(width, heads) for _ in range(depth)]
    return Staged([Patches(dtype, size, patch, width), *layers, Head(width, 1000)])


class Words(nn.Module):
    """Tokens to embeddings, and the mask that hides padding (token 0) from attention."""

    def __init__(self, dtype: torch.dtype, n_words: int, longest: int, width: int) -> None:
        super().__init__()
        self.dtype = dtype
        self.word, self.place = nn.Embedding(n_words, width), nn.Embedding(longest, width)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        hidden = (tokens == 0)[:, None, None, :]
        mask = torch.zeros_like(hidden, dtype=self.dtype).masked_fill(hidden, -1e4)
        return self.word(tokens) + self.place(places), mask


class MeanOfWords(nn.Module):
    """Mean over the words that are not padding, then a linear layer; FP32 out, of length 1 if `unit`."""

    def __init__(self, width: int, n_out: int, *, unit: bool) -> None:
        super().__init__()
        self.linear, self.unit = nn.Linear(width, n_out), unit

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor]:
        shown = (mask[:, 0, 0, :, None] == 0).to(x.dtype)
        mean = (x * shown).sum(1) / shown.sum(1).clamp(min=1)
        answer = self.linear(mean).float()
        return (fn.normalize(answer, dim=1) if self.unit else answer,)


def encoder(
    dtype: torch.dtype, width: int = 768, depth: int = 12, heads: int = 12, n_words: int = 30_522,
    n_out: int = 2, longest: int = 512, *, unit: bool = False,
) -> Staged:  # fmt: skip
    """BERT-base by default (arXiv 1810.04805), pre-norm; an embedding encoder with `unit`."""
    layers = [Layer(width, heads) for _ in range(depth)]
    return Staged([Words(dtype, n_words, longest, width), *layers, MeanOfWords(width, n_out, unit=unit)])


class CachedLayer(nn.Module):
    """One decoder layer for one new token, attending to the keys and values of a session's context."""

    def __init__(self, width: int, n_heads: int, n_sessions: int, context: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        shape = (n_sessions, 2, n_heads, context, width // n_heads)
        self.register_buffer("cache", 0.5 * torch.randn(shape))

    def forward(self, x: Tensor, session: Tensor) -> tuple[Tensor, Tensor]:
        rows, width = x.shape
        q, k, v = self.qkv(self.norms[0](x)).view(rows, 3, self.n_heads, 1, -1).unbind(1)
        before = self.cache[session]
        keys, values = torch.cat([before[:, 0], k], 2), torch.cat([before[:, 1], v], 2)
        y = fn.scaled_dot_product_attention(q, keys, values).reshape(rows, width)
        x = x + self.out(y)
        return x + self.mlp(self.norms[1](x)), session


class Token(nn.Module):
    """A token and its session to an embedding."""

    def __init__(self, n_words: int, n_sessions: int, width: int) -> None:
        super().__init__()
        self.word, self.n_sessions = nn.Embedding(n_words, width), n_sessions

    def forward(self, token: Tensor, session: Tensor) -> tuple[Tensor, Tensor]:
        return self.word(token[:, 0]), session[:, 0] % self.n_sessions


class Logits(nn.Module):
    """Scores of every word, FP32."""

    def __init__(self, width: int, n_words: int) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(width), nn.Linear(width, n_words, bias=False)

    def forward(self, x: Tensor, session: Tensor) -> tuple[Tensor]:
        return (self.linear(self.norm(x)).float(),)


def decoder(
    width: int = 768, depth: int = 12, heads: int = 12, n_words: int = 50_257,
    n_sessions: int = 32, context: int = 256,
) -> Staged:  # fmt: skip
    """One step of a GPT-2-like decoder: the context's keys and values lie on the device, per session."""
    layers = [CachedLayer(width, heads, n_sessions, context) for _ in range(depth)]
    return Staged([Token(n_words, n_sessions, width), *layers, Logits(width, n_words)])


# --- recommendation -------------------------------------------------------------------------------------


class Tables(nn.Module):
    """Dense features through a small MLP, and one looked-up vector per sparse feature."""

    def __init__(self, dtype: torch.dtype, n_rows: int, n_sparse: int, n_dense: int, width: int) -> None:
        super().__init__()
        self.dtype, self.n_rows = dtype, n_rows
        self.table = nn.Embedding(n_rows * n_sparse, width)
        self.bottom = nn.Sequential(nn.Linear(n_dense, 512), nn.ReLU(), nn.Linear(512, width), nn.ReLU())
        self.register_buffer("begin", torch.arange(n_sparse) * n_rows)

    def forward(self, dense: Tensor, sparse: Tensor) -> tuple[Tensor]:
        found = self.table(sparse % self.n_rows + self.begin)
        return (torch.cat([self.bottom(dense.to(self.dtype))[:, None], found], 1),)


class Interact(nn.Module):
    """Products of all pairs of vectors, then an MLP; a click probability, FP32."""

    def __init__(self, n_vectors: int, width: int, hidden: int) -> None:
        super().__init__()
        self.top = nn.Sequential(
            nn.Linear(n_vectors * n_vectors + width, hidden), nn.ReLU(),
            nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1),
        )  # fmt: skip

    def forward(self, vectors: Tensor) -> tuple[Tensor]:
        products = torch.bmm(vectors, vectors.transpose(1, 2)).flatten(1)
        return (torch.sigmoid(self.top(torch.cat([vectors[:, 0], products], 1)).float()),)


def dlrm(
    dtype: torch.dtype, n_rows: int = 200_000, n_sparse: int = 26, n_dense: int = 13, width: int = 64,
    hidden: int = 1024,
) -> Staged:  # fmt: skip
    """A recommender like DLRM (arXiv 1906.00091)."""
    tables = Tables(dtype, n_rows, n_sparse, n_dense, width)
    return Staged([tables, Interact(n_sparse + 1, width, hidden)])

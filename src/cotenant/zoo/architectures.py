"""The eight architectures, each with its sizes.

The default sizes are those of the zoo: one thread of a small machine needs about 3 to 60 ms per inference
at batch 1. Every function takes a seed for the weights; the same sizes and seed give the same bytes.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto

from cotenant.zoo.graph import INT64, Graph


@dataclass(frozen=True, slots=True, kw_only=True)
class EchoSizes:
    """Sizes of `echo`."""

    width: int = 16


def echo(sizes: EchoSizes, seed: int) -> ModelProto:
    """`width` floats in, the same out: what is left is the server's own cost."""
    g = Graph("echo", seed)
    g.output(g.input("input", ["batch", sizes.width]), "output", ["batch", sizes.width])
    return g.model()


@dataclass(frozen=True, slots=True, kw_only=True)
class ResnetSizes:
    """Sizes of `resnet18`."""

    side: int = 128
    widths: tuple[int, ...] = (64, 128, 256, 512)
    """Channels of each stage; each but the first halves the image."""
    n_blocks: int = 2
    """Per stage."""
    n_classes: int = 1000


def resnet18(sizes: ResnetSizes, seed: int) -> ModelProto:
    """Residual CNN on [batch, 3, side, side] (He et al. 2015, basic blocks)."""
    g = Graph("resnet18", seed)
    x = g.conv(g.input("image", ["batch", 3, sizes.side, sizes.side]), 3, sizes.widths[0], 7, stride=2)
    x = g.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    n_in = sizes.widths[0]
    for stage, width in enumerate(sizes.widths):
        for i in range(sizes.n_blocks):
            stride = 2 if stage and not i else 1
            same = n_in == width and stride == 1
            skip = x if same else g.conv(x, n_in, width, 1, stride=stride, relu=False)
            y = g.conv(g.conv(x, n_in, width, 3, stride=stride), width, width, 3, relu=False)
            x = g.op("Relu", g.op("Mul", g.op("Add", y, skip), g.scalar(0.7)))
            n_in = width
    g.output(_head(g, x, n_in, sizes.n_classes), "logits", ["batch", sizes.n_classes])
    return g.model()


@dataclass(frozen=True, slots=True, kw_only=True)
class MobilenetSizes:
    """Sizes of `mobilenet`."""

    side: int = 96
    widths: tuple[int, ...] = (64, 128, 256, 256, 512, 512, 1024, 1024, 1024, 1024, 1024, 1024)
    """Channels between the separable convolutions; where they grow, the image halves."""
    n_classes: int = 1000


def mobilenet(sizes: MobilenetSizes, seed: int) -> ModelProto:
    """Depthwise-separable CNN (Howard et al. 2017)."""
    g = Graph("mobilenet", seed)
    x = g.conv(g.input("image", ["batch", 3, sizes.side, sizes.side]), 3, sizes.widths[0], 3, stride=2)
    for before, after in itertools.pairwise(sizes.widths):
        stride = 2 if after > before else 1
        x = g.conv(x, before, before, 3, stride=stride, groups=before)
        x = g.conv(x, before, after, 1)
    g.output(_head(g, x, sizes.widths[-1], sizes.n_classes), "logits", ["batch", sizes.n_classes])
    return g.model()


def _head(g: Graph, x: str, width: int, classes: int) -> str:
    pooled = g.op("Flatten", g.op("GlobalAveragePool", x), axis=1)
    return g.linear(pooled, width, classes)


@dataclass(frozen=True, slots=True, kw_only=True)
class VitSizes:
    """Sizes of `vit_tiny`."""

    side: int = 96
    patch: int = 8
    width: int = 192
    n_blocks: int = 6
    n_heads: int = 3
    n_classes: int = 1000


def vit_tiny(sizes: VitSizes, seed: int) -> ModelProto:
    """Vision transformer (Dosovitskiy et al. 2020), mean-pooled."""
    g = Graph("vit_tiny", seed)
    patch, width = sizes.patch, sizes.width
    n_patches = (sizes.side // patch) ** 2
    image = g.input("image", ["batch", 3, sizes.side, sizes.side])
    weight = g.random((width, 3, patch, patch), float((3 * patch * patch) ** -0.5))
    x = g.op("Conv", image, weight, kernel_shape=[patch, patch], strides=[patch, patch])
    x = g.op("Transpose", g.op("Reshape", x, g.ints(0, width, n_patches)), perm=[0, 2, 1])
    x = g.op("Add", x, g.random((1, n_patches, width), 0.1))
    for _ in range(sizes.n_blocks):
        x = g.block(x, width, sizes.n_heads, 4 * width)
    x = g.op("ReduceMean", g.layer_norm(x, width), axes=[1], keepdims=0)
    g.output(g.linear(x, width, sizes.n_classes), "logits", ["batch", sizes.n_classes])
    return g.model()


@dataclass(frozen=True, slots=True, kw_only=True)
class BertSizes:
    """Sizes of `bert_mini`."""

    n_words: int = 8192
    longest: int = 128
    """Most positions that the `seq` axis may have."""
    width: int = 256
    n_blocks: int = 4
    n_heads: int = 4


def bert_mini(sizes: BertSizes, seed: int) -> ModelProto:
    """BERT-like encoder with a dynamic sequence axis; masked positions do not touch the others."""
    g = Graph("bert_mini", seed)
    width = sizes.width
    ids = g.input("input_ids", ["batch", "seq"], INT64, below=sizes.n_words)
    mask = g.input("attention_mask", ["batch", "seq"], INT64, below=2)
    length = g.op("Gather", g.op("Shape", ids), g.ints(1))
    places = g.op("Slice", g.random((sizes.longest, width), 0.1), g.ints(0), length, g.ints(0))
    x = g.op("Add", g.op("Gather", g.random((sizes.n_words, width), 1.0), ids), places)
    seen = g.op("Unsqueeze", g.op("Cast", mask, to=1), g.ints(1, 2))
    bias = g.op("Mul", g.op("Sub", seen, g.scalar(1.0)), g.scalar(1e9))
    for _ in range(sizes.n_blocks):
        x = g.block(x, width, sizes.n_heads, 4 * width, bias)
    x = g.layer_norm(x, width)
    first = g.op("Gather", x, g.constant(np.asarray(0, np.int64)), axis=1)
    g.output(x, "hidden", ["batch", "seq", width])
    g.output(g.op("Tanh", g.linear(first, width, width)), "pooled", ["batch", width])
    return g.model()


@dataclass(frozen=True, slots=True, kw_only=True)
class DlrmSizes:
    """Sizes of `dlrm`."""

    n_rows: int = 500_000
    """Of the embedding table, which all categorical features share."""
    width: int = 64
    """Of one embedding."""
    n_dense: int = 13
    n_sparse: int = 26
    hidden: int = 1024
    """Width of the layer below the interaction; those above it are three times as wide."""


def dlrm(sizes: DlrmSizes, seed: int) -> ModelProto:
    """Recommender (Naumov et al. 2019): one large embedding table, pairwise interaction, two MLPs."""
    g = Graph("dlrm", seed)
    width, n = sizes.width, sizes.n_sparse + 1
    dense = g.input("dense", ["batch", sizes.n_dense])
    sparse = g.input("sparse", ["batch", sizes.n_sparse], INT64, below=sizes.n_rows)
    x = g.op("Relu", g.linear(dense, sizes.n_dense, sizes.hidden))
    x = g.op("Relu", g.linear(x, sizes.hidden, width))
    found = g.op("Gather", g.random((sizes.n_rows, width), 0.5), sparse)
    all_features = g.op("Concat", found, g.op("Unsqueeze", x, g.ints(1)), axis=1)
    pairs = g.op("MatMul", all_features, g.op("Transpose", all_features, perm=[0, 2, 1]))
    pairs = g.op("Mul", pairs, g.scalar(1.0 / width))
    y = g.op("Concat", g.op("Reshape", pairs, g.ints(0, n * n)), x, axis=1)
    y = g.op("Relu", g.linear(y, n * n + width, 3 * sizes.hidden))
    for _ in range(2):
        y = g.op("Relu", g.linear(y, 3 * sizes.hidden, 3 * sizes.hidden))
    y = g.op("Sigmoid", g.linear(y, 3 * sizes.hidden, 1))
    g.output(y, "score", ["batch", 1])
    return g.model()


@dataclass(frozen=True, slots=True, kw_only=True)
class GptSizes:
    """Sizes of `gpt_mini`."""

    n_words: int = 8192
    length: int = 24
    """Tokens of the prompt."""
    width: int = 768
    n_blocks: int = 10
    n_heads: int = 12


def gpt_mini(sizes: GptSizes, seed: int) -> ModelProto:
    """Decoder-style transformer over a fixed prompt; logits of the last position. Its weights are large
    beside its work, so at batch 1 it is bound by memory bandwidth."""
    g = Graph("gpt_mini", seed)
    width, length = sizes.width, sizes.length
    ids = g.input("input_ids", ["batch", length], INT64, below=sizes.n_words)
    x = g.op("Gather", g.random((sizes.n_words, width), 1.0), ids)
    x = g.op("Add", x, g.random((1, length, width), 0.1))
    causal = np.triu(np.full((1, 1, length, length), -1e9, np.float32), 1)
    bias = g.constant(causal)
    for _ in range(sizes.n_blocks):
        x = g.block(x, width, sizes.n_heads, 4 * width, bias)
    last = g.op("Gather", g.layer_norm(x, width), g.constant(np.asarray(length - 1, np.int64)), axis=1)
    g.output(g.linear(last, width, sizes.n_words), "logits", ["batch", sizes.n_words])
    return g.model()


@dataclass(frozen=True, slots=True, kw_only=True)
class WideMlpSizes:
    """Sizes of `wide_mlp`."""

    n_features: int = 256
    width: int = 3072
    n_layers: int = 4
    """Square layers, of 4 x width x width bytes each."""


def wide_mlp(sizes: WideMlpSizes, seed: int) -> ModelProto:
    """A tower of wide layers, as rankers have them. Its weights (150 MB) are many times the largest cache and
    are read once per batch, for two operations per number and row: bound by memory bandwidth."""
    g = Graph("wide_mlp", seed)
    width = sizes.width
    x = g.op("Relu", g.linear(g.input("features", ["batch", sizes.n_features]), sizes.n_features, width))
    for _ in range(sizes.n_layers):
        x = g.op("Relu", g.linear(x, width, width, gain=2**0.5))
    g.output(g.linear(x, width, 1), "score", ["batch", 1])
    return g.model()

"""The seven architectures. Sizes are arguments, so that tests can build tiny ones.

Default sizes are chosen so that one core of a small machine needs about 3 to 60 ms per inference.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from onnx import ModelProto

from cotenant.zoo.graph import INT64, Graph

SEED = 20261123


def echo(width: int = 16) -> ModelProto:
    """`width` floats in, the same out: what is left is the server's own cost."""
    g = Graph("echo", SEED)
    g.output(g.input("input", ["batch", width]), "output", ["batch", width])
    return g.model()


def resnet18(
    side: int = 128, widths: Sequence[int] = (64, 128, 256, 512), depth: int = 2, classes: int = 1000
) -> ModelProto:
    """Residual CNN on [batch, 3, side, side] (He et al. 2015, basic blocks)."""
    g = Graph("resnet18", SEED + 1)
    x = g.conv(g.input("image", ["batch", 3, side, side]), 3, widths[0], 7, stride=2)
    x = g.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    n_in = widths[0]
    for stage, width in enumerate(widths):
        for i in range(depth):
            stride = 2 if stage and not i else 1
            same = n_in == width and stride == 1
            skip = x if same else g.conv(x, n_in, width, 1, stride=stride, relu=False)
            y = g.conv(g.conv(x, n_in, width, 3, stride=stride), width, width, 3, relu=False)
            x = g.op("Relu", g.op("Mul", g.op("Add", y, skip), g.scalar(0.7)))
            n_in = width
    g.output(_head(g, x, n_in, classes), "logits", ["batch", classes])
    return g.model()


def mobilenet(
    side: int = 96,
    widths: Sequence[int] = (64, 128, 256, 256, 512, 512, 1024, 1024, 1024, 1024, 1024, 1024),
    classes: int = 1000,
) -> ModelProto:
    """Depthwise-separable CNN (Howard et al. 2017)."""
    g = Graph("mobilenet", SEED + 2)
    x = g.conv(g.input("image", ["batch", 3, side, side]), 3, widths[0], 3, stride=2)
    for before, after in itertools.pairwise(widths):
        stride = 2 if after > before else 1
        x = g.conv(x, before, before, 3, stride=stride, groups=before)
        x = g.conv(x, before, after, 1)
    g.output(_head(g, x, widths[-1], classes), "logits", ["batch", classes])
    return g.model()


def _head(g: Graph, x: str, width: int, classes: int) -> str:
    pooled = g.op("Flatten", g.op("GlobalAveragePool", x), axis=1)
    return g.linear(pooled, width, classes)


def vit_tiny(
    side: int = 96, patch: int = 8, width: int = 192, depth: int = 6, heads: int = 3, classes: int = 1000
) -> ModelProto:
    """Vision transformer (Dosovitskiy et al. 2020), mean-pooled."""
    g = Graph("vit_tiny", SEED + 3)
    n_patches = (side // patch) ** 2
    image = g.input("image", ["batch", 3, side, side])
    weight = g.random((width, 3, patch, patch), float((3 * patch * patch) ** -0.5))
    x = g.op("Conv", image, weight, kernel_shape=[patch, patch], strides=[patch, patch])
    x = g.op("Transpose", g.op("Reshape", x, g.ints(0, width, n_patches)), perm=[0, 2, 1])
    x = g.op("Add", x, g.random((1, n_patches, width), 0.1))
    for _ in range(depth):
        x = g.block(x, width, heads, 4 * width)
    x = g.op("ReduceMean", g.layer_norm(x, width), axes=[1], keepdims=0)
    g.output(g.linear(x, width, classes), "logits", ["batch", classes])
    return g.model()


def bert_mini(
    vocabulary: int = 8192, longest: int = 128, width: int = 256, depth: int = 4, heads: int = 4
) -> ModelProto:
    """BERT-like encoder with a dynamic sequence axis; masked positions do not touch the others."""
    g = Graph("bert_mini", SEED + 4)
    ids = g.input("input_ids", ["batch", "seq"], INT64, below=vocabulary)
    mask = g.input("attention_mask", ["batch", "seq"], INT64, below=2)
    length = g.op("Gather", g.op("Shape", ids), g.ints(1))
    places = g.op("Slice", g.random((longest, width), 0.1), g.ints(0), length, g.ints(0))
    x = g.op("Add", g.op("Gather", g.random((vocabulary, width), 1.0), ids), places)
    seen = g.op("Unsqueeze", g.op("Cast", mask, to=1), g.ints(1, 2))
    bias = g.op("Mul", g.op("Sub", seen, g.scalar(1.0)), g.scalar(1e9))
    for _ in range(depth):
        x = g.block(x, width, heads, 4 * width, bias)
    x = g.layer_norm(x, width)
    first = g.op("Gather", x, g.constant(np.asarray(0, np.int64)), axis=1)
    g.output(x, "hidden", ["batch", "seq", width])
    g.output(g.op("Tanh", g.linear(first, width, width)), "pooled", ["batch", width])
    return g.model()


def dlrm(
    rows: int = 500_000, width: int = 64, n_dense: int = 13, n_sparse: int = 26, hidden: int = 1024
) -> ModelProto:
    """Recommender (Naumov et al. 2019): one large embedding table, pairwise interaction, two MLPs."""
    g = Graph("dlrm", SEED + 5)
    dense = g.input("dense", ["batch", n_dense])
    sparse = g.input("sparse", ["batch", n_sparse], INT64, below=rows)
    x = g.op("Relu", g.linear(dense, n_dense, hidden))
    x = g.op("Relu", g.linear(x, hidden, width))
    found = g.op("Gather", g.random((rows, width), 0.5), sparse)
    all_features = g.op("Concat", found, g.op("Unsqueeze", x, g.ints(1)), axis=1)
    pairs = g.op("MatMul", all_features, g.op("Transpose", all_features, perm=[0, 2, 1]))
    pairs = g.op("Mul", pairs, g.scalar(1.0 / width))
    n = n_sparse + 1
    y = g.op("Concat", g.op("Reshape", pairs, g.ints(0, n * n)), x, axis=1)
    y = g.op("Relu", g.linear(y, n * n + width, 3 * hidden))
    for _ in range(2):
        y = g.op("Relu", g.linear(y, 3 * hidden, 3 * hidden))
    y = g.op("Sigmoid", g.linear(y, 3 * hidden, 1))
    g.output(y, "score", ["batch", 1])
    return g.model()


def gpt_mini(
    vocabulary: int = 8192, length: int = 24, width: int = 768, depth: int = 10, heads: int = 12
) -> ModelProto:
    """Decoder-style transformer over a fixed prompt; logits of the last position. Its weights are large
    beside its work, so at batch 1 it is bound by memory bandwidth."""
    g = Graph("gpt_mini", SEED + 6)
    ids = g.input("input_ids", ["batch", length], INT64, below=vocabulary)
    x = g.op("Gather", g.random((vocabulary, width), 1.0), ids)
    x = g.op("Add", x, g.random((1, length, width), 0.1))
    causal = np.triu(np.full((1, 1, length, length), -1e9, np.float32), 1)
    bias = g.constant(causal)
    for _ in range(depth):
        x = g.block(x, width, heads, 4 * width, bias)
    last = g.op("Gather", g.layer_norm(x, width), g.constant(np.asarray(length - 1, np.int64)), axis=1)
    g.output(g.linear(last, width, vocabulary), "logits", ["batch", vocabulary])
    return g.model()

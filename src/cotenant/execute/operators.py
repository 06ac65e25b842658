"""What an ONNX operator costs, by its type and the shapes it works on."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cotenant.profile.records import Cost

CONVOLUTIONS = ("Conv", "FusedConv", "ConvInteger", "QLinearConv", "NhwcFusedConv")
PRODUCTS = ("MatMul", "FusedMatMul", "Gemm", "FusedGemm", "MatMulInteger", "QLinearMatMul", "QGemm")
LOOKUPS = ("Gather", "GatherElements", "GatherND", "EmbedLayerNormalization")
"""They touch as many rows of their first input as they give out, not the whole table."""
VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Shape", "Size", "Constant", "Dropout")
"""They hand on what they got."""

Shape = Sequence[int]


def operations(op: str, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> float:
    """Floating-point operations, a multiply-add as two. Anything that is neither a convolution nor a product
    counts one per element of its output, copies and look-ups none. 0 where a needed shape is missing."""
    if op in VIEWS or op in LOOKUPS or not outputs:
        return 0.0
    result = math.prod(outputs[0])
    if op in CONVOLUTIONS or op == "ConvTranspose":
        if len(inputs) < 2:
            return 0.0
        kernel = math.prod(inputs[1][1:])
        return 2.0 * kernel * (result if op != "ConvTranspose" else math.prod(inputs[0]))
    if op in PRODUCTS:
        return 2.0 * result * _inner(inputs, outputs[0])
    return float(result)


def _inner(inputs: Sequence[Shape], output: Shape) -> int:
    """Length of the sums of a product. Which of the first input's last two axes it is follows from the other
    one, the rows of the output: attributes (transposition) are not needed, and a square needs no choice."""
    if not inputs or not inputs[0]:
        return 0
    first = inputs[0]
    if len(first) == 1 or len(output) < 2 or first[-2] == output[-2]:
        return first[-1]
    return first[-2] if first[-1] == output[-2] else first[-1]


def cost(
    op: str,
    inputs: Sequence[Shape],
    outputs: Sequence[Shape],
    weight_bytes: float,
    input_bytes: float,
    output_bytes: float,
) -> Cost:
    """`weight_bytes`: of the inputs that are constants, `input_bytes` of those that are not."""
    if op in VIEWS:
        return Cost(n_operators=1)
    if op in LOOKUPS:
        weight_bytes = min(weight_bytes, output_bytes)
    flops = operations(op, inputs, outputs)
    moved = weight_bytes + input_bytes + output_bytes
    return Cost(
        flops=flops,
        conv_flops=flops if op in CONVOLUTIONS or op == "ConvTranspose" else 0.0,
        matmul_flops=flops if op in PRODUCTS else 0.0,
        weight_bytes=weight_bytes,
        moved_bytes=moved,
        held_bytes=moved,
        n_operators=1,
    )

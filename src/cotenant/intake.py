"""What the engine checks of a call that came over a socket. The front end has validated it; the engine does
not depend on that for what batches are put together by. Values are not looked at again: they lie in memory
that the front end could still write."""

from __future__ import annotations

from collections.abc import Mapping

from cotenant.domain import NS_PER_S, ModelMetadata, TensorSpec
from cotenant.engine_client import Call
from cotenant.shm import Array
from cotenant.wire import DTYPES

OLDEST_NS = 24 * 3600 * NS_PER_S
CLOCK_NS = NS_PER_S // 100
"""Two processes read one clock; so much (ns) is allowed all the same."""
LONGEST_BUDGET_NS = 400 * 24 * 3600 * NS_PER_S
LONGEST_ANSWER_NS = 3600 * NS_PER_S
HIGHEST_PRIORITY = 2**31

KINDS = {
    "BOOL": "bool",
    "FP16": "float16",
    "BF16": "bfloat16",
    "FP32": "float32",
    "FP64": "float64",
    "BYTES": "object",
    **{f"{sign}INT{bits}": f"{sign.lower()}int{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)},
}
_DTYPES = {datatype: DTYPES[name] for datatype, name in KINDS.items()}


def complaint(call: Call, model: ModelMetadata, inputs: Mapping[str, Array], now: int) -> str | None:
    """What is wrong with a call, or None."""
    if not now - OLDEST_NS <= call.arrived_at <= now + CLOCK_NS:
        return "its arrival lies in the future, or too long ago"
    if call.slo_ns is not None and not 0 < call.slo_ns <= LONGEST_BUDGET_NS:
        return "its budget"
    if not 0 <= call.priority <= HIGHEST_PRIORITY or not 0 <= call.answer_ns <= LONGEST_ANSWER_NS:
        return "its priority, or the time to answer it"
    if not 1 <= call.rows <= (model.spec.max_batch if model.batched else 1):
        return "its rows"
    if not _buckets(call, model):
        return "its axes"
    if len(inputs) != len(model.inputs):
        return "the number of its inputs"
    for spec in model.inputs:
        array = inputs.get(spec.name)
        if array is None or array.dtype != _DTYPES.get(spec.datatype) or not _fits(array, spec):
            return f"its input {spec.name}"
        if model.batched and array.shape[0] != call.rows:
            return f"the rows of its input {spec.name}"
    return None


def _buckets(call: Call, model: ModelMetadata) -> bool:
    known = dict(model.spec.axis_buckets)
    return len(call.axes) == len(known) and all(size in known.get(axis, ()) for axis, size in call.axes)


def _fits(array: Array, spec: TensorSpec) -> bool:
    if len(array.shape) != len(spec.shape):
        return False
    for size, expected in zip(array.shape, spec.shape, strict=True):
        if size != expected if expected >= 0 else size < 1:
            return False
    return True

"""What parts of a torch model cost, by counting: FLOPs, bytes, operations; and a nominal span from these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Nominal rates of a device, for dividing work up only: FLOP/s, bytes/s, ns per operation."""

    flops: float
    bytes: float
    operation_ns: float


RATES = {
    "cuda": Rates(flops=3e14, bytes=2.5e12, operation_ns=3_000),
    "cpu": Rates(flops=4e10, bytes=1e10, operation_ns=10_000),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a part of a model does at one batch size: floating-point operations, bytes it must touch
    (weights, inputs, outputs; each once), operations launched."""

    flops: float
    bytes: float
    operations: int

    def span_ns(self, rates: Rates) -> float:
        """Nominal span (ns): the slower of arithmetic and memory, and the launches."""
        busy = max(self.flops / rates.flops, self.bytes / rates.bytes) * 1e9
        return busy + self.operations * rates.operation_ns


class _Operations(TorchDispatchMode):
    """Counts operations; `torch.cond` and the like are one."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.n += 1
        return func(*args, **(kwargs or {}))


@torch.inference_mode()
def count(stages: Sequence[nn.Module], state: tuple[Tensor, ...]) -> list[Cost]:
    """The cost of every stage in a chain that begins with `state`."""
    costs = []
    for stage in stages:
        weights = sum(size_of(p) for p in _dense(stage))
        before = sum(size_of(t) for t in state)
        with FlopCounterMode(display=False) as flops, _Operations() as operations:
            state = stage(*state)
        after = sum(size_of(t) for t in state)
        costs.append(
            Cost(flops=flops.get_total_flops(), bytes=weights + before + after, operations=operations.n)
        )
    return costs


def size_of(tensor: Tensor) -> int:
    """Bytes of all its elements."""
    return int(tensor.numel() * tensor.element_size())


def total(costs: Sequence[Cost]) -> Cost:
    """Of parts that run one after the other."""
    return Cost(
        flops=sum(cost.flops for cost in costs),
        bytes=sum(cost.bytes for cost in costs),
        operations=sum(cost.operations for cost in costs),
    )


def is_table(node: fx.Node) -> bool:
    """Whether a weight of a graph is only looked up in."""
    return bool(node.users) and all(
        user.target is torch.ops.aten.embedding.default and user.args[0] is node for user in node.users
    )


def _dense(stage: nn.Module) -> list[Tensor]:
    """Weights that every run reads whole: all but embedding tables, of which it reads a few rows."""
    tables = {id(m.weight) for m in stage.modules() if isinstance(m, nn.Embedding)}
    for graph in (m for m in stage.modules() if isinstance(m, fx.GraphModule)):
        weights = dict(graph.named_parameters(remove_duplicate=False))
        looked_up = (node.target for node in graph.graph.nodes if node.op == "get_attr" and is_table(node))
        tables |= {id(weights.get(str(target))) for target in looked_up}
    return [p for p in stage.parameters() if id(p) not in tables]

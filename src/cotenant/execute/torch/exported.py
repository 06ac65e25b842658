"""The graph of operations that `torch.export` gives, made flat: tensors in, a tuple of tensors out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

aten = torch.ops.aten
set_grad = torch.ops.higher_order.wrap_with_set_grad_enabled


class Exported(nn.Module):
    """A flattened graph as a module. It runs as it was exported: `eval()` and `train()` change nothing."""

    def __init__(self, body: fx.GraphModule) -> None:
        super().__init__()
        self.body = body

    def train(self, mode: bool = True) -> Exported:
        return self

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self.body(*inputs)


def flatten(module: fx.GraphModule) -> Exported:
    """The graph of `ExportedProgram.module()` with tensors in, a tuple out, and its constants as buffers.

    Its guards on input sizes stay, as its first operation. Assertions on dtype and device go: they name the
    device of the export, and the sizes and types that are served are run once when the model is loaded."""
    graph = fx.Graph()
    graph.output(tuple(_copy(module, graph, {}, "")))
    flat = fx.GraphModule(module, graph)
    return Exported(flat)


def _copy(module: fx.GraphModule, graph: fx.Graph, values: dict[fx.Node, Any], prefix: str) -> Any:
    """Append the module's operations to `graph`; returns what it returns. `values`: its inputs, if known."""
    for node in module.graph.nodes:
        if node.op == "output":
            return fx.map_arg(node.args[0], values.__getitem__)
        if node in values or node.target is aten._assert_tensor_metadata.default:
            continue
        if node.op == "get_attr":
            if _is_needless(node):
                continue
            values[node] = graph.get_attr(prefix + node.target)
            values[node].meta = dict(node.meta)
        elif node.target is set_grad:
            # nothing served has gradients, and inside of a wrapper there would be nowhere to cut
            inner: Any = module.get_submodule(node.args[1].target)
            given = fx.map_arg(node.args[2:], values.__getitem__)
            places = [n for n in inner.graph.nodes if n.op == "placeholder"]
            inner_values = dict(zip(places, given, strict=True))
            values[node] = _copy(inner, graph, inner_values, f"{prefix}{node.args[1].target}.")
        elif isinstance(found := _item(node, values), fx.Node):
            values[node] = found
        else:
            values[node] = graph.node_copy(node, values.__getitem__)
            if node.op == "call_module":
                values[node].target = prefix + node.target
    raise AssertionError("a graph has an output")


def _is_needless(node: fx.Node) -> bool:
    """Whether it is unused, or the body of a wrapper that `_copy` takes apart."""
    return all(user.target is set_grad and user.args[1] is node for user in node.users)


def _item(node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    """The element that `node` takes from the results of a wrapper that was taken apart."""
    whole = values.get(node.args[0]) if node.args and isinstance(node.args[0], fx.Node) else None
    return whole[node.args[1]] if isinstance(whole, tuple | list) else None


def place(module: Exported, device: torch.device) -> None:
    """Let operations that name a device name this one: an archive may come from another."""

    def placed(value: Any) -> Any:
        return device if isinstance(value, torch.device) else value

    for node in module.body.graph.nodes:
        node.args = fx.node.map_aggregate(node.args, placed)
        node.kwargs = fx.node.map_aggregate(node.kwargs, placed)
    module.body.recompile()

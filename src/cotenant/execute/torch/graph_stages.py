"""A graph of operations as a chain of stages, so that any exported module can be cut into segments.

How this works. `cut_graph` runs a flat graph (see `exported`) once, to see what each operation costs and
makes. Between any two operations some tensors are alive: made before and used after. They are the state that
crosses a boundary there; a boundary is possible where they are few and each can be copied. What follows from
weights or sizes alone never crosses: views of weights are taken anew in each stage, and a size that varies
(the batch, a declared axis) is read off any tensor of the stage that has it, or else there is no boundary. Of
the possible boundaries those with the fewest bytes are taken, at distances that leave `model.cut` a choice.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from cotenant.execute.torch.cost import Cost, Rates, is_table, size_of
from cotenant.execute.torch.exported import Exported

aten = torch.ops.aten
MAX_CROSSING = 16
"""Most tensors that may cross a boundary."""
FINE, COARSE = 64, 16
"""Boundaries are at least the span of the whole / FINE apart; / COARSE where one has more bytes than its
neighbour, so that a layer is not cut inside unless it is long."""


# --- what a run shows -----------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class _Facts:
    """What a run of the graph shows. `free`: nodes that follow from weights and sizes alone, and are made
    anew wherever they are needed; of these `sizes` are numbers."""

    steps: list[fx.Node] = field(default_factory=list)
    """The operations, without the free ones, in order."""
    spans: list[float] = field(default_factory=list)
    """Nominal span (ns) of each step."""
    free: set[fx.Node] = field(default_factory=set)
    sizes: set[fx.Node] = field(default_factory=set)
    n_bytes: dict[fx.Node, int] = field(default_factory=dict)
    """Of the tensors that may cross a boundary; the others must not."""


class _Run(fx.Interpreter):
    """Runs a graph and fills in the facts."""

    def __init__(self, module: fx.GraphModule, rates: Rates, flops: FlopCounterMode) -> None:
        super().__init__(module)
        self.facts = _Facts()
        self._rates, self._flops = rates, flops
        self._weights = {_storage(t) for t in (*module.parameters(), *module.buffers())}

    def run_node(self, n: fx.Node) -> Any:
        before = self._flops.get_total_flops()
        value = super().run_node(n)
        if n.op == "output":
            return value
        facts = self.facts
        self._refuse_changed_weights(n)
        if self._is_free(n, value):
            facts.free.add(n)
            if isinstance(value, bool | int | float):
                facts.sizes.add(n)
            return value
        if n.op != "placeholder":
            facts.steps.append(n)
            facts.spans.append(self._cost(n, value, self._flops.get_total_flops() - before))
        if isinstance(value, Tensor) and not _overlaps(value) and _storage(value) not in self._weights:
            facts.n_bytes[n] = size_of(value)
        return value

    def _is_free(self, node: fx.Node, value: Any) -> bool:
        if node.op == "get_attr":
            return True
        if node.op != "call_function":
            return False
        if isinstance(value, bool | int | float):
            of_tensor = node.target in (aten.sym_size.int, aten.sym_numel.default, aten.sym_stride.int)
            return of_tensor or all(n in self.facts.sizes for n in node.all_input_nodes)
        parts = value if isinstance(value, tuple | list) else (value,)
        views = all(isinstance(part, Tensor) and _storage(part) in self._weights for part in parts)
        return views and all(n in self.facts.free for n in node.all_input_nodes)

    def _refuse_changed_weights(self, node: fx.Node) -> None:
        schema = getattr(node.target, "_schema", None)
        if schema is None or not schema.is_mutable or node.target is aten.detach_.default:
            return
        for argument, given in zip(schema.arguments, node.args, strict=False):
            written = argument.alias_info is not None and argument.alias_info.is_write
            tensor = self.env.get(given) if written and isinstance(given, fx.Node) else None
            if isinstance(tensor, Tensor) and _storage(tensor) in self._weights:
                raise ValueError(f"it changes its own weights as it runs ({node.target})")

    def _cost(self, node: fx.Node, value: Any, flops: float) -> float:
        given = [(n, self.env[n]) for n in node.all_input_nodes if isinstance(self.env.get(n), Tensor)]
        changes = getattr(getattr(node.target, "_schema", None), "is_mutable", False)
        if isinstance(value, Tensor) and not changes and _storage(value) in {_storage(t) for _, t in given}:
            return 0.0  # a view
        made = value if isinstance(value, tuple | list) else (value,)
        n_bytes = sum(size_of(t) for t in made if isinstance(t, Tensor))
        n_bytes += sum(size_of(t) for n, t in given if n.op != "get_attr" or not is_table(n))
        return Cost(flops=flops, bytes=n_bytes, operations=1).span_ns(self._rates)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage().data_ptr())


def _overlaps(tensor: Tensor) -> bool:
    """Whether elements lie over each other, as after `expand`: nothing can be copied into such a tensor."""
    return any(n > 1 and step == 0 for n, step in zip(tensor.shape, tensor.stride(), strict=True))


# --- where to cut ---------------------------------------------------------------------------------------


@torch.inference_mode()
def cut_graph(module: Exported, state: tuple[Tensor, ...], rates: Rates) -> list[nn.Module]:
    """The graph as a chain of at most `FINE` stages, run once from `state`, on the device of its weights.

    Their composition does the same operations on the same values. Raises ValueError when there is nowhere to
    cut, with the reason."""
    with FlopCounterMode(display=False) as flops:
        run = _Run(module.body, rates, flops)
        run.run(*state)
    chain = _Chain(module.body, run.facts)
    until = list(accumulate(run.facts.spans, initial=0.0))
    possible = {p: n for p in range(1, len(run.facts.steps)) if (n := chain.bytes_at(p)) is not None}
    bounds = choose(until, possible)
    if not bounds:
        raise ValueError("its graph has no place where few tensors are alive")
    return [chain.stage(a, b) for a, b in pairwise([0, *bounds, len(run.facts.steps)])]


def choose(until: Sequence[float], n_bytes: dict[int, int]) -> list[int]:
    """Boundaries out of the possible ones (their bytes in `n_bytes`): fewest bytes first, each far enough
    from those taken before it. `until[p]`: span of all before boundary p."""
    ends = (0, len(until) - 1)
    taken: list[int] = []
    for p in sorted(n_bytes, key=lambda p: (n_bytes[p], p)):
        k = bisect(taken, p)
        near = (*ends, *taken[max(0, k - 1) : k + 1])
        rooms = [FINE if n_bytes[p] <= n_bytes.get(q, n_bytes[p]) else COARSE for q in near]
        if all(abs(until[p] - until[q]) * room >= until[-1] for q, room in zip(near, rooms, strict=True)):
            taken.insert(k, p)
    return taken


class _Chain:
    """The steps of a graph with what crosses each boundary: boundary p lies before step p."""

    def __init__(self, module: fx.GraphModule, facts: _Facts) -> None:
        self._module, self._facts = module, facts
        nodes = list(module.graph.nodes)
        self._inputs = [node for node in nodes if node.op == "placeholder"]
        self._outputs: tuple[Any, ...] = nodes[-1].args[0]
        if not all(isinstance(node, fx.Node) for node in self._outputs):
            raise ValueError("it returns something that is no tensor")
        if not facts.sizes.isdisjoint(self._outputs):
            raise ValueError("it returns a number, not a tensor")
        self._made = dict.fromkeys(self._inputs, -1) | {n: i for i, n in enumerate(facts.steps)}
        self._used: dict[fx.Node, list[int]] = {}
        """Per node, the steps that need it, ascending; the outputs count as a step behind the last."""
        for i, step in enumerate(facts.steps):
            self._use(step.all_input_nodes, i)
        self._use(self._outputs, len(facts.steps))

    def _use(self, needed: Iterable[fx.Node], step: int) -> None:
        for node in needed:
            uses = self._used.setdefault(node, [])
            if uses and uses[-1] == step:
                continue
            uses.append(step)
            if node in self._facts.free and node not in self._facts.sizes:
                self._use(node.all_input_nodes, step)

    def crossing(self, p: int) -> list[fx.Node]:
        """The values, not free, that are made before boundary p and needed after it."""
        made = self._made.items()
        return [n for n, at in made if at < p and n in self._used and p <= self._used[n][-1]]

    def bytes_at(self, p: int) -> int | None:
        """Bytes that cross boundary p, or None where no boundary can be."""
        state = self.crossing(p)
        sizes = [self._facts.n_bytes.get(node) for node in state]
        if not 0 < len(state) <= MAX_CROSSING or None in sizes:
            return None
        if not all(self._size_is_known(node, p, state) for node in self._facts.sizes):
            return None
        return sum(size for size in sizes if size is not None)

    def _size_is_known(self, size: fx.Node, p: int, state: list[fx.Node]) -> bool:
        """Whether a stage that begins at boundary p has the size when it first needs it."""
        uses = self._used.get(size, [])
        first = bisect(uses, p - 1)
        if first == len(uses):
            return True
        known = _Known(self._facts, state)
        steps = iter(self._facts.steps[p : uses[first]])
        while not known.gives(size):
            step = next(steps, None)
            if step is None:
                return False
            known.add(step)
        return True

    def stage(self, a: int, b: int) -> nn.Module:
        """The steps [a, b) as a module from what crosses boundary a to what crosses boundary b."""
        before = self._inputs if a == 0 else self.crossing(a)
        after = self._outputs if b == len(self._facts.steps) else self.crossing(b)
        return _Stage(before, self._facts).build(self._module, self._facts.steps[a:b], after)


class _Known:
    """Tensors, and which of their dimensions has which symbolic size."""

    def __init__(self, facts: _Facts, tensors: Iterable[fx.Node]) -> None:
        self._facts = facts
        self._dimensions: dict[Any, tuple[fx.Node, int]] = {}
        self._tensors: set[fx.Node] = set()
        for node in tensors:
            self.add(node)

    def add(self, node: fx.Node) -> None:
        self._tensors.add(node)
        value = node.meta.get("val")
        for dimension, size in enumerate(value.shape if isinstance(value, Tensor) else ()):
            if isinstance(size, torch.SymInt):
                self._dimensions.setdefault(size.node.expr, (node, dimension))

    def where(self, size: fx.Node) -> tuple[fx.Node, int] | None:
        """A tensor and its dimension of this size."""
        value = size.meta.get("val")
        return self._dimensions.get(value.node.expr) if isinstance(value, torch.SymInt) else None

    def gives(self, node: fx.Node) -> bool:
        """Whether a size (or view of weights) can be had from these tensors: read off one of them, or made as
        the graph makes it."""
        if node in self._tensors or self.where(node) is not None:
            return True
        return node in self._facts.free and all(self.gives(given) for given in node.all_input_nodes)


class _Stage:
    """Builds one stage: copies steps, and makes what is free where it is first needed."""

    def __init__(self, before: Sequence[fx.Node], facts: _Facts) -> None:
        self._graph = fx.Graph()
        self._facts = facts
        self._known = _Known(facts, before)
        self._values = {node: self._graph.placeholder(f"state_{i}") for i, node in enumerate(before)}

    def build(self, module: fx.GraphModule, steps: Sequence[fx.Node], after: Sequence[fx.Node]) -> nn.Module:
        for step in steps:
            self._values[step] = self._graph.node_copy(step, self._value)
            self._known.add(step)
        self._graph.output(tuple(self._value(node) for node in after))
        for node in self._graph.nodes:
            node.meta = {}  # the export's symbols and stand-ins for tensors need not be kept
        return fx.GraphModule(module, self._graph)

    def _value(self, node: fx.Node) -> fx.Node:
        if node not in self._values:
            assert node in self._facts.free, f"{node} is neither in the state nor made before it is used"
            source = self._known.where(node) if node in self._facts.sizes else None
            if source is None:
                self._values[node] = self._graph.node_copy(node, self._value)
            else:
                tensor, dimension = source
                place = (self._values[tensor], dimension)
                self._values[node] = self._graph.call_function(aten.sym_size.int, place)
        return self._values[node]

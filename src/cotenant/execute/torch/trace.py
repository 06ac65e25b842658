"""Modules that do not say their stages, cut through the graph of their operations."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cotenant.execute.torch.cost import Rates
from cotenant.execute.torch.exported import Exported, flatten, place
from cotenant.execute.torch.graph_stages import cut_graph


def through_graph(module: nn.Module, states: Sequence[tuple[Tensor, ...]], rates: Rates) -> list[nn.Module]:
    """Stages whose composition is the module. `states`: inputs of every variant, the largest last.

    Raises whatever torch raises for what it cannot export, ValueError where there is nowhere to cut, and
    AssertionError when the stages answer otherwise than the module for one of the states."""
    exported = module if isinstance(module, Exported) else export(module, states)
    stages = cut_graph(exported, _copies(states[-1]), rates)
    compare(stages, module, states)
    return stages


def export(module: nn.Module, states: Sequence[tuple[Tensor, ...]]) -> Exported:
    """Trace a module that takes tensors, by position; sizes that differ between the states are dynamic.

    While it traces, torch patches some Python functions for the whole process, for seconds at most; models
    that are served meanwhile are tensors and graphs of their own and take no notice."""
    dynamic: Any = torch.export.Dim.DYNAMIC
    axes = tuple(
        {axis: dynamic for axis in range(tensors[0].dim()) if len({t.shape[axis] for t in tensors}) > 1}
        for tensors in zip(*states, strict=True)
    )
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice on writing modules, of no use to who serves one
        program = torch.export.export(module, _copies(states[-1]), dynamic_shapes=(axes,), strict=False)
    device = states[-1][0].device
    exported = flatten(program.module()).to(device)  # constants made while tracing are on the CPU
    place(exported, device)
    return exported


@torch.inference_mode()
def compare(stages: Sequence[nn.Module], module: nn.Module, states: Sequence[tuple[Tensor, ...]]) -> None:
    """Run both from every state. Rounding may differ, as where torch has a fast path for a whole module that
    its traced form has not; more than the root of the element type's precision raises AssertionError."""
    for state in states:
        expected = module(*_copies(state))
        found = _copies(state)
        for stage in stages:
            found = stage(*found)
        for a, b in zip(found, expected, strict=True):
            room = torch.finfo(b.dtype).eps ** 0.5 if b.is_floating_point() else 0.0
            torch.testing.assert_close(a, b, rtol=room, atol=room, equal_nan=True)


def _copies(state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """For a module that writes to its inputs."""
    return tuple(tensor.clone() for tensor in state)

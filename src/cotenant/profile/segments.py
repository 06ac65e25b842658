"""A run cut into segments: contiguous operators of roughly the same demand.

How this works. Starting from one segment per operator, the two neighbours whose merging loses least are
merged, again and again (Ward's criterion on a line): the loss is the growth of the squared distance between
an operator's demand and its segment's, weighted by solo time. Operators too short to matter vanish first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from msgspec import structs

from cotenant.profile.records import Cost, DeviceRates, SegmentRecord

MOST_SEGMENTS = 16
TOLERANCE = 0.05
"""Merging goes on below `MOST_SEGMENTS` while what it loses in all stays under this share of the whole
variation of the demand: a run of even demand is one segment."""
NEGLIGIBLE = 1e-3
"""Total variation (demand squared) below which a run is even."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """An operator of a run, in order of execution: its span alone (ns) and what it does."""

    name: str
    solo_ns: float
    cost: Cost


def add(costs: Sequence[Cost]) -> Cost:
    """The cost of operators run one after the other; the activations of one are gone before the next."""
    weights = sum(cost.weight_bytes for cost in costs)
    activations = max((cost.held_bytes - cost.weight_bytes for cost in costs), default=0.0)
    return Cost(
        flops=sum(cost.flops for cost in costs),
        conv_flops=sum(cost.conv_flops for cost in costs),
        matmul_flops=sum(cost.matmul_flops for cost in costs),
        weight_bytes=weights,
        moved_bytes=sum(cost.moved_bytes for cost in costs),
        held_bytes=weights + activations,
        n_operators=sum(cost.n_operators for cost in costs),
    )


def memory_bytes(part: Cost, run: Cost, cache_bytes: float) -> float:
    """Bytes that a part of a run takes from memory rather than from the last-level cache. Weights come round
    once per run, so what the whole run holds decides whether they are still there; activations were written
    just before, so they only have to fit by themselves."""
    activations = max(0.0, part.held_bytes - part.weight_bytes)
    return part.weight_bytes * _misses(run.held_bytes / cache_bytes) + (
        max(0.0, part.moved_bytes - part.weight_bytes) * _misses(activations / cache_bytes)
    )


def _misses(size: float) -> float:
    """Share of accesses that miss a cache, by the size of what is swept again and again in units of the
    cache: all as soon as it is larger. Others use the cache too and it is not ideal, so the share rises from
    0 at a quarter to 1 at the whole."""
    return min(1.0, max(0.0, (size - 0.25) / 0.75))


def group(
    nodes: Sequence[Node], solo_ns: float, rates: DeviceRates, most: int = MOST_SEGMENTS
) -> tuple[SegmentRecord, ...]:
    """At most `most` segments, in order; their spans add up to `solo_ns`, whatever the spans of the nodes
    (a profiling session runs slower). Empty without nodes that take time."""
    total = sum(node.solo_ns for node in nodes)
    if total <= 0.0:
        return ()
    parts = [
        SegmentRecord(
            solo_ns=solo_ns * sum(n.solo_ns for n in part) / total, cost=add([n.cost for n in part])
        )
        for part in _parts(nodes, rates, most)
    ]
    drift = solo_ns - sum(part.solo_ns for part in parts)
    return (structs.replace(parts[0], solo_ns=parts[0].solo_ns + drift), *parts[1:])


def _parts(nodes: Sequence[Node], rates: DeviceRates, most: int) -> list[list[Node]]:
    weights = np.array([max(node.solo_ns, 1e-9) for node in nodes], np.float64)
    weights /= weights.sum()
    run = add([node.cost for node in nodes])
    demand = np.array([_demand(node, run, rates) for node in nodes])
    variation = float((weights[:, None] * (demand - weights @ demand) ** 2).sum())
    allowed, lost = TOLERANCE * variation if variation > NEGLIGIBLE else np.inf, 0.0
    parts = [[node] for node in nodes]
    while len(parts) > 1:
        harmonic = weights[:-1] * weights[1:] / (weights[:-1] + weights[1:])
        losses = harmonic * ((demand[:-1] - demand[1:]) ** 2).sum(axis=1)
        at = int(losses.argmin())
        if len(parts) <= most and lost + losses[at] > allowed:
            break
        lost += float(losses[at])
        parts[at] += parts.pop(at + 1)
        both = weights[at] + weights[at + 1]
        demand[at] = (weights[at] * demand[at] + weights[at + 1] * demand[at + 1]) / both
        weights[at] = both
        weights, demand = np.delete(weights, at + 1), np.delete(demand, at + 1, axis=0)
    return parts


def _demand(node: Node, run: Cost, rates: DeviceRates) -> tuple[float, float]:
    seconds = max(node.solo_ns, 1.0) / 1e9
    return (
        min(1.0, node.cost.flops / seconds / rates.lane_flop_per_s),
        min(1.0, memory_bytes(node.cost, run, rates.cache_bytes) / seconds / rates.bytes_per_s),
    )

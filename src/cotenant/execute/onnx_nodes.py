"""ONNX Runtime's own times per operator, with what each operator does.

How this works. The runtime writes a JSON event per operator and run, with types and shapes of its inputs.
Weights that it has packed into a layout of its own are missing there, so a second session that packs nothing
runs once: its graph is optimised alike, and its shapes count. Spans are medians over the runs of the first.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from cotenant.cores import pinned
from cotenant.domain import ModelMetadata, Variant
from cotenant.execute.batch import Array
from cotenant.execute.model import example_inputs
from cotenant.execute.onnx_graph import Graph
from cotenant.execute.onnx_session import session_options
from cotenant.execute.operators import cost
from cotenant.profile.records import Cost
from cotenant.profile.segments import Node

N_RUNS = 5
"""Runs whose spans count; one more before them warms up."""
KERNEL = "_kernel_time"

Event = Mapping[str, Any]


class OnnxInside:
    """Implements `profile.probe.Inside` for a model file run on `cores` as a lane would."""

    def __init__(self, path: Path, metadata: ModelMetadata, cores: frozenset[int]) -> None:
        self._path, self._metadata, self._cores = path, metadata, cores
        self._graph: Graph | None = None

    def cost(self, variant: Variant) -> Cost:
        """From the graph alone."""
        if self._graph is None:
            self._graph = Graph(self._path, self._metadata)
        return self._graph.cost(variant)

    def nodes(self, variants: Sequence[Variant]) -> dict[Variant, list[Node]]:
        """Operators of a run of each variant. Blocks for the loading of two sessions and a few runs."""
        timed = self._profile(variants, 1 + N_RUNS, packed=True)
        whole = self._profile(variants, 1, packed=False)
        return {
            variant: nodes_of(timed[i * (1 + N_RUNS) + 1 : (i + 1) * (1 + N_RUNS)], whole[i])
            for i, variant in enumerate(variants)
        }

    def _profile(self, variants: Sequence[Variant], n_runs: int, *, packed: bool) -> list[list[Event]]:
        """The operators' events of each run, runs in the order of the variants."""
        random = np.random.default_rng(0)
        with tempfile.TemporaryDirectory(prefix="cotenant-") as folder, pinned(self._cores):
            options = session_options(len(self._cores))
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder) / "run")
            if not packed:
                options.add_session_config_entry("session.disable_prepacking", "1")
            session = ort.InferenceSession(str(self._path), options, providers=["CPUExecutionProvider"])
            for variant in variants:
                inputs: Mapping[str, Array] = example_inputs(self._metadata, variant, random)
                for _ in range(n_runs):
                    session.run(None, inputs)
            events = json.loads(Path(session.end_profiling()).read_text())
        return runs_of(events)


def runs_of(events: Sequence[Event]) -> list[list[Event]]:
    """The events of the operators of each run, in order of time. Operators inside others' bodies (loops)
    count with those, not apart."""
    whole = sorted((e for e in events if e.get("name") == "model_run"), key=lambda e: int(e["ts"]))
    nodes = sorted(
        (e for e in events if e.get("cat") == "Node" and str(e.get("name")).endswith(KERNEL)),
        key=lambda e: (int(e["ts"]), -int(e["dur"])),
    )
    runs: list[list[Event]] = []
    for run in whole:
        end, last = run["ts"] + run["dur"], -1
        found = []
        for node in nodes:
            if run["ts"] <= node["ts"] <= end and node["ts"] >= last:
                found.append(node)
                last = node["ts"] + node["dur"]
        runs.append(found)
    return runs


def nodes_of(runs: Sequence[Sequence[Event]], whole: Sequence[Event]) -> list[Node]:
    """Operators in order, spans as medians over `runs`. Costs are taken from the event of the same name in
    `whole`, where every weight shows, else from the run's own."""
    complete = {event["name"]: event for event in whole}
    spans: dict[str, list[float]] = {}
    for run in runs:
        for event in run:
            spans.setdefault(event["name"], []).append(1000.0 * event["dur"])
    order = runs[0] if runs else ()
    return [
        Node(
            name=str(event["name"]).removesuffix(KERNEL),
            solo_ns=float(np.median(spans[event["name"]])),
            cost=_cost(complete.get(event["name"], event)["args"]),
        )
        for event in order
    ]


def _cost(arguments: Mapping[str, Any]) -> Cost:
    return cost(
        str(arguments.get("op_name", "")),
        _shapes(arguments.get("input_type_shape", ())),
        _shapes(arguments.get("output_type_shape", ())),
        float(arguments.get("parameter_size", 0)),
        float(arguments.get("activation_size", 0)),
        float(arguments.get("output_size", 0)),
    )


def _shapes(tensors: Sequence[Mapping[str, Sequence[int]]]) -> list[Sequence[int]]:
    return [shape for tensor in tensors for shape in tensor.values()]

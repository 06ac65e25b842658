"""Models of a live server as targets of load: what they want to be sent, made ready beforehand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import orjson

from cotenant.config import ModelConfig, Scenario
from cotenant.domain import NS_PER_MS, JobClass
from cotenant.experiment.arrival_files import Offered
from cotenant.experiment.http_load import Pool, get_json
from cotenant.workload.arrivals import generator

MIN_BUDGET_MS = 1.0
BODIES_PER_MODEL = 16
DTYPES = {
    "BOOL": np.bool_, "INT8": np.int8, "INT16": np.int16, "INT32": np.int32, "INT64": np.int64,
    "UINT8": np.uint8, "UINT16": np.uint16, "UINT32": np.uint32, "UINT64": np.uint64,
    "FP16": np.float16, "FP32": np.float32, "FP64": np.float64,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One model of the server under load: ready-made requests, by number of rows, but for the budget."""

    name: str
    job_class: JobClass
    slo_ns: int | None
    solo_ms: float | None
    rows: int
    requests: Mapping[int, Sequence[tuple[bytes, bytes]]]

    def request(self, n: int, budget_ms: float | None, rows: int | None = None) -> bytes:
        """The n-th request with this much budget left; `rows` replaces those of the scenario."""
        ready = self.requests[self.rows if rows is None else rows]
        head, rest = ready[n % len(ready)]
        if budget_ms is None:
            return head + rest
        return head + b"x-slo-ms: %.3f\r\n" % max(MIN_BUDGET_MS, budget_ms) + rest


async def find_targets(url: str, scenario: Scenario, offered: Offered | None = None) -> list[Target]:
    """Ask the server for every model of the scenario and prepare requests for it, with the rows that are
    offered."""
    pool = Pool(url)
    targets = []
    for i, model in enumerate(scenario.models):
        try:
            metadata = await get_json(url, f"/v2/models/{model.name}")
        except ValueError as error:
            if "404" in str(error):
                raise ValueError(f"the server at {url} has no model {model.name!r}") from None
            raise
        rows = {model.rows} if offered is None else set(offered.rows[offered.which == i].tolist())
        targets.append(_target(metadata, model, scenario, pool.authority, sorted(rows)))
    return targets


def _target(
    metadata: Mapping[str, Any],
    model: ModelConfig,
    scenario: Scenario,
    authority: bytes,
    rows: Sequence[int],
) -> Target:
    told = metadata.get("parameters", {})
    slo_ms = told.get("slo_ms") if model.slo_scale is not None else model.slo_ms
    solo_ms = told.get("solo_ms")
    if slo_ms is None and model.slo_scale is not None and solo_ms is not None:
        slo_ms = max(model.slo_scale * solo_ms, model.slo_ms or 0.0)
    rng = generator(scenario.load.seed, f"inputs/{model.name}")
    n_each = max(1, BODIES_PER_MODEL // max(1, len(rows)))
    requests = {
        n_rows: [_request(metadata, replace(model, rows=n_rows), authority, rng) for _ in range(n_each)]
        for n_rows in rows
    }
    return Target(
        name=model.name,
        job_class=model.job_class,
        slo_ns=None if slo_ms is None or model.job_class is JobClass.BEST_EFFORT else int(slo_ms * NS_PER_MS),
        solo_ms=solo_ms,
        rows=model.rows,
        requests=requests,
    )


def _request(
    metadata: Mapping[str, Any], model: ModelConfig, authority: bytes, rng: np.random.Generator
) -> tuple[bytes, bytes]:
    """A POST in two parts; the header with the budget goes between them."""
    drawn = {axis: int(rng.choice(sizes)) for axis, sizes in model.buckets.items()}
    heads, blobs = [], []
    for spec in metadata["inputs"]:
        told = metadata.get("parameters", {}).get("inputs", {}).get(spec["name"], {})
        array = _array(spec, told, model, drawn, rng)
        blob = array.tobytes()
        blobs.append(blob)
        heads.append({
            "name": spec["name"], "shape": list(array.shape), "datatype": spec["datatype"],
            "parameters": {"binary_data_size": len(blob)},
        })  # fmt: skip
    head = orjson.dumps({"inputs": heads, "parameters": {"binary_data_output": True}})
    body = head + b"".join(blobs)
    first = b"POST /v2/models/%s/infer HTTP/1.1\r\nHost: %s\r\n" % (model.name.encode(), authority)
    lengths = b"Inference-Header-Content-Length: %d\r\nContent-Length: %d\r\n\r\n" % (len(head), len(body))
    return first, lengths + body


def _array(
    spec: Mapping[str, Any],
    told: Mapping[str, Any],
    model: ModelConfig,
    drawn: Mapping[str, int],
    rng: np.random.Generator,
) -> np.ndarray[Any, Any]:
    """Random valid values; `told` names the axes and bounds integers where the server knows them."""
    axes = told.get("axes") or [None] * len(spec["shape"])
    shape = []
    for i, (size, axis) in enumerate(zip(spec["shape"], axes, strict=True)):
        if size >= 0:
            shape.append(size)
        else:
            shape.append(model.rows if i == 0 or axis == "batch" else drawn.get(axis or "", 16))
    datatype = spec["datatype"]
    if datatype not in DTYPES:
        raise ValueError(f"model {model.name!r}: cannot make random inputs of datatype {datatype}")
    dtype = DTYPES[datatype]
    if np.issubdtype(dtype, np.floating):
        return rng.standard_normal(shape).astype(dtype)
    low, high = told.get("range") or (0, 2)
    return rng.integers(low, high, shape).astype(dtype)

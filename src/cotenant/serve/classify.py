"""The classification extension: an output as its highest values, each `VALUE:INDEX` or `VALUE:INDEX:LABEL`.

Written as Triton does, with six decimals for reals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from cotenant.domain import TensorSpec
from cotenant.serve.tensors import Array

UNRANKED = frozenset({"BOOL", "BYTES"})
"""Datatypes of which none is higher than another."""


def classify(array: Array, n_classes: int, spec: TensorSpec, batched: bool) -> Array:
    """The `n_classes` highest of each row (of the whole output where it has no rows) as BYTES, rows x
    classes, the highest first; of equals that with the lower index, and what is no number last."""
    rows = array.reshape(array.shape[0], math.prod(array.shape[1:])) if batched else array.reshape(1, -1)
    n_kept = min(n_classes, rows.shape[1])
    found = np.empty((rows.shape[0], n_kept), object)
    for at, row in enumerate(rows):
        for place, index in enumerate(_highest(row, n_kept)):
            found[at, place] = _text(row[index], int(index), spec.labels)
    return found if batched else found.reshape(-1)


def _highest(row: Array, n_kept: int) -> Array:
    ranked: Any = row.astype(np.float32) if row.dtype.itemsize == 2 and row.dtype.kind not in "iu" else row
    if ranked.dtype.kind == "f":
        ranked = np.where(np.isnan(ranked), -np.inf, ranked)
    # ascending and stable, on the mirror image: of equals the last there is the first here
    ascending = np.argsort(ranked[::-1], kind="stable")
    highest: Array = len(row) - 1 - ascending[::-1][:n_kept]
    return highest


def _text(value: Any, index: int, labels: Sequence[str]) -> bytes:
    number = str(value) if value.dtype.kind in "iu" else f"{float(value):.6f}"
    label = f":{labels[index]}" if index < len(labels) else ""
    return f"{number}:{index}{label}".encode()

"""What the three models of the mix are sent: tensors, shares of the traffic, example requests. Numpy only.

A request is one row of a model's inputs as raw bytes, input after input; its answer is the row of the output
as raw bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

SEED = 20
MAX_BATCH = 8
"""Most requests in one batch, in every server."""
SHARES = {"cnn": 0.2, "encoder": 0.2, "recommender": 0.6}
"""Of the requests that are offered."""
SLO_SCALE = 5.0
"""Deadline as a multiple of the solo median."""
N_WORDS, N_SPARSE, N_DENSE, TABLE_ROWS = 8000, 26, 13, 20_000


@dataclass(frozen=True)
class Input:
    """One tensor of a request, without the dimension of rows; integers are below `high`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    high: int = 0

    @property
    def n_bytes(self) -> int:
        return np.dtype(self.dtype).itemsize * prod(self.shape)

    def random(self, random: np.random.Generator) -> np.ndarray[Any, Any]:
        """One row of valid values."""
        if self.high:
            return random.integers(0, self.high, self.shape).astype(self.dtype)
        return random.standard_normal(self.shape).astype(self.dtype)


INPUTS: dict[str, tuple[Input, ...]] = {
    "cnn": (Input("image", "uint8", (3, 96, 96), 256),),
    "encoder": (Input("tokens", "int64", (128,), N_WORDS),),
    "recommender": (
        Input("dense", "float32", (N_DENSE,)),
        Input("sparse", "int64", (N_SPARSE,), TABLE_ROWS),
    ),
}


def random_requests(model: str, n: int) -> list[bytes]:
    """The same requests every time."""
    random = np.random.default_rng([SEED, list(INPUTS).index(model)])
    return [b"".join(spec.random(random).tobytes() for spec in INPUTS[model]) for _ in range(n)]

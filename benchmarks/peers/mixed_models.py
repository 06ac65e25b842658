"""The three models that every server of the comparison runs: the same torch code, weights from a seed.

Servers that batch hand several requests to `Model.answer` at once. Needs torch and numpy only, for it is
imported in the environments of all servers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from mixed_inputs import INPUTS, MAX_BATCH, N_DENSE, N_SPARSE, N_WORDS, SEED, TABLE_ROWS
from torch import Tensor, nn
from torch.nn import functional as fn

# --- modules --------------------------------------------------------------------------------------------


class Block(nn.Module):
    """Basic residual block of ResNet (arXiv 1512.03385)."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU(),
            nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False), nn.BatchNorm2d(n_out),
        )  # fmt: skip
        same = stride == 1 and n_in == n_out
        self.shortcut = nn.Identity() if same else nn.Conv2d(n_in, n_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return fn.relu(self.path(x) + self.shortcut(x))


class Cnn(nn.Module):
    """ResNet-18 at three quarters of its width: n x 3 x 96 x 96 pixels (0..255) to n x 100 scores."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        )
        blocks: list[nn.Module] = []
        n_in = width
        for level in range(4):
            for i in range(2):
                n_out = width << level
                blocks.append(Block(n_in, n_out, 2 if level and not i else 1))
                n_in = n_out
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(n_in, 100)
        self.to(memory_format=torch.channels_last)

    def forward(self, image: Tensor) -> Tensor:
        x = ((image.float() - 127.5) / 64.0).contiguous(memory_format=torch.channels_last)
        return self.head(self.blocks(self.stem(x)).mean(dim=(2, 3)))


class Layer(nn.Module):
    """Post-norm transformer layer, as in BERT (arXiv 1810.04805)."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])

    def forward(self, x: Tensor) -> Tensor:
        rows, length, width = x.shape
        q, k, v = self.qkv(x).view(rows, length, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
        mixed = fn.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(rows, length, width)
        x = self.norms[0](x + self.out(mixed))
        return self.norms[1](x + self.mlp(x))


class Encoder(nn.Module):
    """A BERT-like encoder of the size of BERT-mini: n x 128 words to n x 256 values of length 1."""

    def __init__(self, width: int = 256, depth: int = 4, n_heads: int = 4) -> None:
        super().__init__()
        self.word, self.place = nn.Embedding(N_WORDS, width), nn.Embedding(512, width)
        self.norm = nn.LayerNorm(width)
        self.layers = nn.Sequential(*(Layer(width, n_heads) for _ in range(depth)))

    def forward(self, tokens: Tensor) -> Tensor:
        places = self.place.weight[: tokens.shape[1]]
        x = self.layers(self.norm(self.word(tokens) + places))
        return fn.normalize(x.mean(dim=1), dim=1)


class Recommender(nn.Module):
    """A small DLRM (arXiv 1906.00091): n x 13 dense and n x 26 sparse features to n x 1 probabilities."""

    def __init__(self, width: int = 64, hidden: int = 2048) -> None:
        super().__init__()
        self.table = nn.Embedding(N_SPARSE * TABLE_ROWS, width)
        self.register_buffer("begin", torch.arange(N_SPARSE) * TABLE_ROWS)
        self.bottom = nn.Sequential(
            nn.Linear(N_DENSE, hidden), nn.ReLU(), nn.Linear(hidden, width), nn.ReLU()
        )
        n_vectors = N_SPARSE + 1
        self.top = nn.Sequential(
            nn.Linear(n_vectors * n_vectors + width, hidden), nn.ReLU(),
            nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1),
        )  # fmt: skip

    def forward(self, dense: Tensor, sparse: Tensor) -> Tensor:
        bottom = self.bottom(dense)
        vectors = torch.cat([bottom[:, None], self.table(sparse + self.begin)], 1)
        products = torch.bmm(vectors, vectors.transpose(1, 2)).flatten(1)
        return torch.sigmoid(self.top(torch.cat([bottom, products], 1)))


MODULES: dict[str, type[nn.Module]] = {"cnn": Cnn, "encoder": Encoder, "recommender": Recommender}


def make(name: str) -> nn.Module:
    """The module with its weights, ready to serve."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return MODULES[name]().eval().requires_grad_(False)


# --- requests -------------------------------------------------------------------------------------------


class Model:
    """A model that answers batches of requests, on `n_threads` threads of torch in this process."""

    def __init__(self, name: str, n_threads: int = 1) -> None:
        torch.set_num_threads(n_threads)
        self._inputs = INPUTS[name]
        self._module = make(name)
        for rows in range(1, MAX_BATCH + 1):
            self.answer([bytes(sum(spec.n_bytes for spec in self._inputs))] * rows)

    def answer(self, requests: Sequence[bytes]) -> list[bytes]:
        """One answer per request, in order."""
        with torch.inference_mode():
            found = self._module(*self._tensors(requests)).numpy()
        return [row.tobytes() for row in found]

    def _tensors(self, requests: Sequence[bytes]) -> list[Tensor]:
        tensors, at = [], 0
        for spec in self._inputs:
            raw = b"".join([request[at : at + spec.n_bytes] for request in requests])
            array = np.frombuffer(bytearray(raw), spec.dtype).reshape(len(requests), *spec.shape)
            tensors.append(torch.from_numpy(array))
            at += spec.n_bytes
        return tensors


# --- factories for cotenant -----------------------------------------------------------------------------


def _factory(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    random = np.random.default_rng(SEED)
    return make(name), {s.name: torch.from_numpy(s.random(random)[None]) for s in INPUTS[name]}


def cnn() -> tuple[nn.Module, dict[str, Tensor]]:
    return _factory("cnn")


def encoder() -> tuple[nn.Module, dict[str, Tensor]]:
    return _factory("encoder")


def recommender() -> tuple[nn.Module, dict[str, Tensor]]:
    return _factory("recommender")

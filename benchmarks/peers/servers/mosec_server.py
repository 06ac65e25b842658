"""Mosec: one route per model, MessagePack in and out, dynamic batching for the models of the mix.

Started by `python mosec_server.py --address 127.0.0.1 --port PORT`; the rest is in the environment.
"""

import os
import sys
from pathlib import Path
from typing import Any

from mosec import Server, Worker
from mosec.mixin import MsgpackMixin

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

CORES = int(os.environ["PEERS_CORES"])
WAIT_MS = 1


class Echo(Worker):
    """JSON, which is Mosec's own form."""

    def forward(self, data: Any) -> Any:
        return data


class Mixed(MsgpackMixin, Worker):
    """The model that the worker's environment names."""

    def __init__(self) -> None:
        super().__init__()
        from mixed_models import Model

        self.model = Model(os.environ["PEERS_MODEL"])

    def forward(self, data: list[bytes]) -> list[bytes]:
        return self.model.answer(data)


class Cnn(Mixed):
    """A worker is known by the name of its class."""


class Encoder(Mixed):
    """See `Cnn`."""


class Recommender(Mixed):
    """See `Cnn`."""


def main() -> None:
    server = Server()
    if os.environ["PEERS_APP"] == "echo":
        server.append_worker(Echo)
    else:
        for worker in (Cnn, Encoder, Recommender):
            name = worker.__name__.lower()
            server.append_worker(
                worker,
                num=CORES,
                max_batch_size=int(os.environ["PEERS_BATCH"]),
                max_wait_time=WAIT_MS,
                env=[{"PEERS_MODEL": name, "OMP_NUM_THREADS": "1"}] * CORES,
                route=f"/{name}",
            )
    server.run()


if __name__ == "__main__":
    main()

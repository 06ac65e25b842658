"""Mosec with its own JSON form: one worker, as it comes or, with MOSEC_BATCH set, with dynamic batching."""

import os
from typing import Any

from mosec import Server, Worker

BATCH = int(os.environ.get("MOSEC_BATCH", "1"))
WAIT_MS = 1


class Echo(Worker):
    def forward(self, data: Any) -> Any:
        return data


if __name__ == "__main__":
    server = Server()
    server.append_worker(Echo, num=1, max_batch_size=BATCH, max_wait_time=WAIT_MS if BATCH > 1 else 0)
    server.run()

"""BentoML: one service with an API per model, one worker per core, adaptive batching.

Started by `bentoml serve bentoml_server:Echo` or `bentoml_server:Mixed`; the rest is in the environment.
"""

import base64
import json
import os
import sys
from pathlib import Path

import bentoml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

CORES = int(os.environ["PEERS_CORES"])
BATCH = int(os.environ["PEERS_BATCH"])
LATENCY_MS = {name: max(1, int(slo)) for name, slo in json.loads(os.environ["PEERS_SLO_MS"]).items()}
"""What the batching of an API aims at: the model's deadline."""


@bentoml.service(workers=CORES, logging={"access": {"enabled": False}})
class Echo:
    @bentoml.api
    async def echo(self, input: list[float]) -> list[float]:
        return input


@bentoml.service(workers=CORES, logging={"access": {"enabled": False}})
class Mixed:
    """Tensors travel as base64, in a list of one: a batchable API takes lists."""

    def __init__(self) -> None:
        from mixed_models import INPUTS, Model

        self.models = {name: Model(name) for name in INPUTS}

    def _answer(self, name: str, inputs: list[str]) -> list[str]:
        answers = self.models[name].answer([base64.b64decode(text) for text in inputs])
        return [base64.b64encode(answer).decode() for answer in answers]

    @bentoml.api(batchable=True, max_batch_size=BATCH, max_latency_ms=LATENCY_MS["cnn"])
    def cnn(self, inputs: list[str]) -> list[str]:
        return self._answer("cnn", inputs)

    @bentoml.api(batchable=True, max_batch_size=BATCH, max_latency_ms=LATENCY_MS["encoder"])
    def encoder(self, inputs: list[str]) -> list[str]:
        return self._answer("encoder", inputs)

    @bentoml.api(batchable=True, max_batch_size=BATCH, max_latency_ms=LATENCY_MS["recommender"])
    def recommender(self, inputs: list[str]) -> list[str]:
        return self._answer("recommender", inputs)

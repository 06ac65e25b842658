"""ONNX and Python models on one device, each with its own deadline: `python mixed.py [PORT]`, until SIGTERM.

`labels` has a table of its own for each lane; `rerank` runs in two segments, so that urgent work of the
others can run in between.
"""

import sys

import numpy as np

import cotenant

WORDS = ("cat", "dog", "owl", "fox")


@cotenant.model(slo_ms=20, max_batch=16, example={"logits": np.zeros((1, len(WORDS)), np.float32)})
class labels:  # noqa: N801 - the class's name is the model's
    def setup(self):
        self.words = np.array(WORDS, object)

    def predict(self, logits):
        best = logits.argmax(1)
        return {"word": self.words[best], "score": logits.max(1)}


@cotenant.model(slo_ms=200, max_batch=4, inputs={"scores": ("float32", [64])})
def rerank(scores):
    order = np.argsort(-scores, axis=1)
    yield  # may be preempted here
    return {"order": order, "best": np.take_along_axis(scores, order[:, :1], 1)}


if __name__ == "__main__":
    cotenant.serve(
        labels,
        rerank,
        cotenant.source("zoo:mobilenet", slo_scale=5, job_class="protected"),
        cotenant.source("zoo:echo"),  # no SLO: best effort
        http_port=int(sys.argv[1]) if len(sys.argv) > 1 else 8000,
    )

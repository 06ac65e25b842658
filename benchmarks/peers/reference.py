"""Solo times of the models, and what they answer to the example requests: run in an environment with torch.

    python reference.py FILE.json [SECONDS]

Writes `{solo_ms: {model: median}, requests: {model: [base64]}, answers: {model: [base64]}}`. Solo is one
request at a time, on one thread, in this process: no server is faster.
"""

from __future__ import annotations

import base64
import json
import statistics
import sys
import time
from pathlib import Path

from mixed_inputs import INPUTS, random_requests
from mixed_models import Model

N_REQUESTS = 16
WARM_RUNS = 10


def solo_ms(model: Model, requests: list[bytes], seconds: float) -> float:
    """Median of one request alone (ms)."""
    spans = []
    for request in (requests * WARM_RUNS)[:WARM_RUNS]:
        model.answer([request])
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        began = time.perf_counter()
        model.answer([requests[len(spans) % len(requests)]])
        spans.append(1e3 * (time.perf_counter() - began))
    return statistics.median(spans)


def main() -> None:
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 3.0
    models = {name: Model(name) for name in INPUTS}
    requests = {name: random_requests(name, N_REQUESTS) for name in INPUTS}
    answers = {name: [models[name].answer([r])[0] for r in requests[name]] for name in INPUTS}
    found = {
        "solo_ms": {name: solo_ms(models[name], requests[name], seconds) for name in INPUTS},
        "requests": {name: [base64.b64encode(r).decode() for r in requests[name]] for name in INPUTS},
        "answers": {name: [base64.b64encode(a).decode() for a in answers[name]] for name in INPUTS},
    }
    Path(sys.argv[1]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()

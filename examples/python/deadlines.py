"""A client with deadlines: `python deadlines.py [URL]` asks the models of `mixed.py`, one after the other and
all at once, and says how each request ended."""

import asyncio
import sys

import numpy as np

import cotenant

SCORES = np.random.default_rng(0).standard_normal((1, 64)).astype(np.float32)


def ask_one_by_one(client: cotenant.Client) -> None:
    for deadline_ms in (0.01, 1000):
        try:
            result = client.infer("rerank", {"scores": SCORES}, deadline_ms=deadline_ms)
        except cotenant.Rejected as refused:
            when = "" if refused.predicted_ms is None else f", {refused.predicted_ms:.1f} ms would be needed"
            print(f"{deadline_ms:g} ms: refused at once{when}")
        except cotenant.Expired:
            print(f"{deadline_ms:g} ms: expired")
        else:
            print(f"{deadline_ms:g} ms: best {result['best'][0, 0]:.2f}{', late' if result.late else ''}")


async def ask_at_once(url: str, n: int) -> None:
    async with cotenant.AsyncClient(url) as client:
        asked = [client.infer("rerank", {"scores": SCORES}, deadline_ms=1000, retry=True) for _ in range(n)]
        found = await asyncio.gather(*asked, return_exceptions=True)
    n_in_time = sum(isinstance(result, cotenant.Result) and not result.late for result in found)
    print(f"{n_in_time} of {n} in time")


if __name__ == "__main__":
    address = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
    with cotenant.Client(address) as one:
        ask_one_by_one(one)
    asyncio.run(ask_at_once(address, 20))

"""A model, a server and a client in one program: run it, and it prints [[2. 4. 6.]]."""

import numpy as np

import cotenant


@cotenant.model(slo_ms=50, example=np.zeros((1, 3), np.float32))
def double(x):
    return {"y": 2 * x}


if __name__ == "__main__":
    with cotenant.serve(double, http_port=0, block=False) as server, server.client() as client:
        print(client.infer("double", {"x": np.array([[1, 2, 3]], np.float32)}, deadline_ms=50)["y"])

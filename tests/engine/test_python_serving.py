"""`cotenant.serve`: Python models, alone and beside ONNX models, asked over HTTP."""

from __future__ import annotations

import gc
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import cotenant
from cotenant.api import Server

ROW = np.zeros((1, 3), np.float32)


@cotenant.model(slo_ms=2000, max_batch=4, example=ROW)
def double(x: np.ndarray) -> dict[str, np.ndarray]:
    return {"y": 2 * x}


@cotenant.model(slo_ms=2000, max_batch=4, inputs={"ids": ("int64", ["seq"])}, buckets={"seq": [4, 8]})
def reverse(ids: np.ndarray) -> np.ndarray:
    return ids * -1


@cotenant.model(name="lookup", example={"word": np.array(["a"])})
class Lookup:
    def setup(self) -> None:
        self.known = {"one": 1, "two": 2}

    def __call__(self, word: np.ndarray) -> dict[str, np.ndarray]:
        return {"n": np.array([self.known.get(w, 0) for w in word.reshape(-1)]).reshape(word.shape)}


@cotenant.model(slo_ms=2000, example=ROW)
def picky(x: np.ndarray) -> np.ndarray:
    if (x < 0).any():
        raise ValueError("a secret of the model's")
    return x


@cotenant.model(slo_ms=2000, example=ROW)
def staged(x: np.ndarray) -> Iterator[None]:
    x = x + 1
    yield
    x = x * 2
    yield
    return {"y": x}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def server(store: Path) -> Iterator[Server]:
    echo = cotenant.source("zoo:echo", slo_ms=2000, max_batch=4)
    with cotenant.serve(
        double, reverse, Lookup, picky, staged, echo, http_port=0, store=store, block=False
    ) as running:
        yield running


def test_answers_are_those_of_direct_calls(server: Server) -> None:
    rng = np.random.default_rng(0)
    with server.client() as client:
        for rows in (1, 3, 4):
            x = rng.standard_normal((rows, 3)).astype(np.float32)
            np.testing.assert_array_equal(client.infer("double", {"x": x})["y"], double(x)["y"])
            np.testing.assert_array_equal(client.infer("staged", {"x": x})["y"], staged(x)["y"])
            ids = rng.integers(0, 9, (rows, 3))
            np.testing.assert_array_equal(client.infer("reverse", {"ids": ids})["output"], reverse(ids))
        words = np.array(["two", "five"])
        np.testing.assert_array_equal(client.infer("lookup", {"word": words})["n"], Lookup(words)["n"])


def test_onnx_and_python_models_are_served_together(server: Server) -> None:
    with server.client() as client:
        assert set(client.get("/v2/models")["models"]) == {
            "double", "reverse", "lookup", "picky", "staged", "echo",
        }  # fmt: skip
        x = np.ones((2, 16), np.float32)
        np.testing.assert_array_equal(client.infer("echo", {"input": x})["output"], x)


def test_its_metadata_says_what_was_declared(server: Server) -> None:
    with server.client() as client:
        found = client.get("/v2/models/reverse")
        assert found["platform"] == "python"
        assert found["inputs"] == [{"name": "ids", "datatype": "INT64", "shape": [-1, -1]}]
        assert found["parameters"]["slo_ms"] == 2000
        assert found["parameters"]["solo_ms"] > 0
        assert found["parameters"]["buckets"] == {"seq": [4, 8]}
        assert client.get("/v2/models/lookup")["parameters"]["class"] == "best_effort"


def test_a_model_that_raises_fails_its_request_and_says_nothing_of_itself(server: Server) -> None:
    with server.client() as client:
        with pytest.raises(cotenant.Failed) as caught:
            client.infer("picky", {"x": -np.ones((1, 3), np.float32)})
        assert "secret" not in str(caught.value)
        assert client.infer("picky", {"x": ROW})["output"].sum() == 0


def test_a_deadline_out_of_reach_is_rejected_with_the_time_it_would_take(server: Server) -> None:
    with server.client() as client, pytest.raises((cotenant.Rejected, cotenant.Expired)):
        client.infer("double", {"x": ROW}, deadline_ms=0.01)


def test_when_it_is_closed_nobody_is_there_and_the_interpreter_is_as_before(store: Path) -> None:
    before = sys.getswitchinterval(), gc.get_threshold(), threading.active_count()
    server = cotenant.serve(double, http_port=0, store=store, block=False)
    client = server.client()
    assert client.ready()
    server.close()
    server.close()
    with pytest.raises(cotenant.Unavailable):
        client.infer("double", {"x": ROW})
    assert (sys.getswitchinterval(), gc.get_threshold()) == before[:2]
    assert threading.active_count() <= before[2] + 2  # lanes that are told to end do so soon


def test_what_cannot_be_served_is_said_at_once(store: Path) -> None:
    @cotenant.model(example=ROW)
    def broken(x: np.ndarray) -> np.ndarray:
        raise RuntimeError("no weights")

    with pytest.raises(ValueError, match="no weights"):
        cotenant.serve(broken, double, http_port=0, store=store, block=False)
    with pytest.raises(ValueError, match="'double' is there twice"):
        cotenant.serve(double, double, http_port=0, store=store, block=False)
    with pytest.raises(ValueError, match="at least one model"):
        cotenant.serve(http_port=0, store=store, block=False)
    with pytest.raises(ValueError, match="nowhere"):
        cotenant.serve(double, policy="nowhere", http_port=0, store=store, block=False)


def test_a_port_in_use_is_an_error(store: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match="in use"):
            cotenant.serve(double, http_port=taken.getsockname()[1], store=store, block=False)


USER_MODULE = """
import numpy as np
import cotenant

@cotenant.model(name="ignored", slo_ms=1234, max_batch=2, example=np.zeros((1, 3), np.float32))
def triple(x):
    return {"y": 3 * x}
"""
CONFIG = """
[server]
allow_code = true
[[model]]
name = "mine"
source = "own:triple"
[[model]]
name = "echo"
source = "zoo:echo"
slo_ms = 1000
"""


def test_a_configuration_can_name_a_decorated_model(tmp_path: Path, store: Path) -> None:
    (tmp_path / "own.py").write_text(USER_MODULE)
    (tmp_path / "server.toml").write_text(CONFIG)
    config = tmp_path / "server.toml"
    with (
        cotenant.serve(config, http_port=0, store=store, block=False) as server,
        server.client() as client,
    ):
        assert client.infer("mine", {"x": np.ones((2, 3), np.float32)})["y"].tolist() == [[3.0] * 3] * 2
        facts = client.get("/v2/models/mine")["parameters"]
        assert (facts["slo_ms"], facts["max_batch"], facts["class"]) == (1234, 2, "standard")


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("import nowhere_at_all", "ModuleNotFoundError"),
        ("triple = 3", "own:triple"),
        (USER_MODULE.replace("3 * x", "x[0]"), "its first axis|first axis should be the rows"),
    ],
)
def test_a_source_that_is_no_model_is_said_with_its_reason(
    tmp_path: Path, store: Path, module: str, message: str
) -> None:
    if message == "own:triple":  # what is not decorated is taken for a factory of torch models
        pytest.importorskip("torch")
    (tmp_path / "own.py").write_text(module)
    (tmp_path / "server.toml").write_text(CONFIG.partition('[[model]]\nname = "echo"')[0])
    with pytest.raises(ValueError, match=message):
        cotenant.serve(tmp_path / "server.toml", http_port=0, store=store, block=False)

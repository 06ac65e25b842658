"""Bodies may be compressed in both directions, and what comes in stays bounded."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving import Answer, Server, echo_request

from cotenant.domain import ModelMetadata, ModelSpec, TensorSpec
from cotenant.serve.compression import Inflater, accepted_coding, deflate
from cotenant.serve.errors import BadRequest
from cotenant.serve.http import ServeConfig

Serve = Callable[..., Server]
COMPRESS = {"gzip": gzip.compress, "deflate": zlib.compress}

WIDE = ModelMetadata(
    name="wide",
    platform="p",
    versions=("1",),
    inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 20_000), axes=("batch", None)),),
    outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, 20_000), axes=("batch", None)),),
    batched=True,
    spec=ModelSpec(name="wide", slo_ns=None, max_batch=8),
)


def wide_request(value: float = 0.5) -> dict[str, Any]:
    tensor = {"name": "x", "shape": [1, 20_000], "datatype": "FP32", "data": [value] * 20_000}
    return {"inputs": [tensor]}


@pytest.mark.parametrize("coding", sorted(COMPRESS))
@pytest.mark.parametrize("rows", [1, 8])
def test_a_compressed_request_is_answered(server: Server, coding: str, rows: int) -> None:
    body = COMPRESS[coding](json.dumps(echo_request(rows=rows)).encode())
    answer = server.infer(body, {"Content-Encoding": coding.upper()})
    assert answer.status == 200
    assert answer.json["outputs"][0]["shape"] == [rows, 16]


def test_the_json_length_counts_in_the_decompressed_body(server: Server) -> None:
    tensor = {"name": "input", "shape": [1, 16], "datatype": "FP32", "parameters": {"binary_data_size": 64}}
    head = json.dumps({"inputs": [tensor]}).encode()
    headers = {"Content-Encoding": "gzip", "Inference-Header-Content-Length": str(len(head))}
    assert server.infer(gzip.compress(head + bytes(64)), headers).status == 200


@pytest.mark.parametrize("coding", sorted(COMPRESS))
def test_a_large_body_is_decompressed_too(serve: Serve, coding: str) -> None:
    body = COMPRESS[coding](json.dumps(wide_request()).encode())
    answer = serve(None, WIDE).infer(body, {"Content-Encoding": coding}, model="wide")
    assert answer.json["outputs"][0]["data"] == [0.5] * 20_000


@pytest.mark.parametrize("coding", sorted(COMPRESS))
def test_what_grows_beyond_the_limit_is_413(server: Server, coding: str) -> None:
    bomb = COMPRESS[coding](bytes(64 << 20))
    assert len(bomb) < 100_000
    answer = server.infer(bomb, {"Content-Encoding": coding})
    assert answer.status == 413
    assert "decompressed" in answer.error
    assert server.infer().status == 200


@pytest.mark.parametrize(
    ("coding", "body", "status", "complaint"),
    [
        ("gzip", b"{}", 400, "is not gzip"),
        ("gzip", zlib.compress(b"{}"), 400, "is not gzip"),
        ("deflate", gzip.compress(b"{}"), 400, "is not deflate"),
        ("gzip", b"", 400, "ends in the middle"),
        ("gzip", gzip.compress(b"{}")[:-1], 400, "ends in the middle"),
        ("deflate", zlib.compress(b"{}") + b"x", 400, "goes on after the end"),
        ("gzip", gzip.compress(b"{}") * 2, 400, "goes on after the end"),
        ("br", b"{}", 415, "'br' is not supported"),
        ("gzip, gzip", gzip.compress(gzip.compress(b"{}")), 415, "'gzip, gzip' is not supported"),
    ],
)
def test_a_body_that_is_not_what_its_header_says_is_refused(
    server: Server, coding: str, body: bytes, status: int, complaint: str
) -> None:
    answer = server.infer(body, {"Content-Encoding": coding})
    assert (answer.status, complaint in answer.error) == (status, True)


def plain(answer: Answer) -> bytes:
    match answer.headers.get("content-encoding"):
        case "gzip":
            return gzip.decompress(answer.body)
        case "deflate":
            return zlib.decompress(answer.body)
        case _:
            return answer.body


@pytest.mark.parametrize(
    ("accepted", "coding"),
    [
        (None, None),
        ("br", None),
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("deflate, gzip", "gzip"),
        ("GZIP;q=0.5, deflate", "deflate"),
        ("gzip;q=0, deflate;q=0", None),
        ("*", "gzip"),
        ("*;q=0.1, gzip;q=0", "deflate"),
        ("gzip;q=high", None),
        (", ,;", None),
    ],
)
def test_an_answer_is_compressed_as_the_client_takes_it(
    serve: Serve, accepted: str | None, coding: str | None
) -> None:
    headers = {} if accepted is None else {"Accept-Encoding": accepted}
    answer = serve(None, WIDE).infer(wide_request(), headers, model="wide")
    assert answer.headers.get("content-encoding") == coding
    assert answer.headers["vary"] == "accept-encoding"
    assert int(answer.headers["content-length"]) == len(answer.body)
    assert json.loads(plain(answer))["outputs"][0]["data"] == [0.5] * 20_000


def test_the_json_length_of_a_compressed_answer_counts_before_compression(serve: Serve) -> None:
    request = {**wide_request(), "parameters": {"binary_data_output": True}}
    answer = serve(None, WIDE).infer(request, {"Accept-Encoding": "gzip"}, model="wide")
    head = int(answer.headers["inference-header-content-length"])
    assert json.loads(plain(answer)[:head])["outputs"][0]["parameters"] == {"binary_data_size": 80_000}


def test_a_small_answer_is_sent_as_it_is(server: Server) -> None:
    answer = server.infer(headers={"Accept-Encoding": "gzip"})
    assert "content-encoding" not in answer.headers
    assert answer.json["outputs"]


def test_an_answer_that_does_not_shrink_is_sent_as_it_is(serve: Serve) -> None:
    noise = [((n * 2654435761) % 2**32) / 2**32 for n in range(20_000)]
    tensor = {"name": "x", "shape": [1, 20_000], "datatype": "FP32", "data": noise}
    request = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
    config = ServeConfig(compress_from_bytes=0)
    assert plain(serve(config, WIDE).infer(request, {"Accept-Encoding": "gzip"}, model="wide")).endswith(
        serve(config, WIDE).infer(request, model="wide").body[-80_000:]
    )


@given(
    body=st.binary(max_size=4000),
    repeats=st.integers(1, 200),
    coding=st.sampled_from(sorted(COMPRESS)),
    at_once=st.integers(1, 10_000),
    limit=st.integers(1, 100_000),
)
def test_what_was_deflated_inflates_to_the_same_or_is_refused(
    body: bytes, repeats: int, coding: str, at_once: int, limit: int
) -> None:
    whole = body * repeats
    small = deflate(whole, coding.encode())
    assert {"gzip": gzip.decompress, "deflate": zlib.decompress}[coding](small) == whole
    inflater = Inflater(coding.encode(), small, limit)

    def inflate() -> None:
        if not inflater.begin(at_once):
            inflater.finish()

    if len(whole) <= limit:
        inflate()
        assert inflater.body == whole
    else:
        with pytest.raises(BadRequest) as caught:
            inflate()
        assert caught.value.status == 413
        assert len(inflater.body) == limit + 1, "no more comes out than shows that it is too much"


@given(st.binary(max_size=200))
def test_no_accept_encoding_is_too_strange(header: bytes) -> None:
    assert accepted_coding(header) in (None, b"gzip", b"deflate")

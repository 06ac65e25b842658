"""What is fuzzed: readers of bytes that somebody else wrote, with seeds, words and the errors they may raise.

A target passes when its reader returns or raises one of its errors, whatever the bytes; anything else
(another exception, memory beyond the limit, a hang) is a finding. Where it returns, the value is checked.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from cotenant.config import ConfigError, load_scenario
from cotenant.domain import Arrival, ModelMetadata, ModelSpec, Request, TensorSpec
from cotenant.engine_client import EngineClient
from cotenant.experiment.arrival_files import read_arrivals
from cotenant.experiment.datasets import DatasetError, read_dataset
from cotenant.keys_file import load_keys
from cotenant.profile.export import from_json
from cotenant.serve.codec import ModelCodec
from cotenant.serve.connections import limited
from cotenant.serve.errors import BadRequest
from cotenant.serve.http import ServeConfig, make_app
from cotenant.serve.server import uvicorn_config
from cotenant.serve.settings import FrontDoor
from cotenant.serve.tensors import DTYPES, TensorDecoder
from cotenant.simulate.twin.kernels import read_traces
from cotenant.telemetry.event_log import Entry, Header
from cotenant.telemetry.event_log import read as read_events
from cotenant.telemetry.state_file import MAGIC, StateFile, Stored
from cotenant.testing import ECHO, EchoLink
from cotenant.workload.traces import read_gaps


@dataclass(frozen=True)
class Target:
    """One reader. `run(data)` gives it bytes; `words` are pieces that its format is made of."""

    name: str
    run: Callable[[bytes], object]
    errors: tuple[type[Exception], ...]
    seeds: tuple[bytes, ...]
    words: tuple[bytes, ...] = field(default=())


# --- requests ---------------------------------------------------------------------------------------------


def model(name: str, datatype: str, shape: tuple[int, ...], **more: Any) -> ModelMetadata:
    """A batched model with one input and one output of this kind."""
    axes = ("batch", *("seq" if size < 0 else None for size in shape[1:]))
    tensors = [
        TensorSpec(name=name, datatype=datatype, shape=shape, axes=axes, **limits)
        for name, limits in (("input", more), ("output", {}))
    ]
    buckets = (("seq", (4, 64)),) if "seq" in axes else ()
    return ModelMetadata(
        name=name,
        platform="any",
        versions=("1",),
        inputs=tuple(tensors[:1]),
        outputs=tuple(tensors[1:]),
        batched=True,
        spec=ModelSpec(name=name, slo_ns=None, max_batch=8, row_buckets=(1, 2, 4, 8), axis_buckets=buckets),
    )


MODELS = (
    ECHO,
    model("tokens", "INT64", (-1, -1), low=0, high=9),
    model("strings", "BYTES", (-1, -1)),
    model("truths", "BOOL", (-1, 3)),
    model("halves", "FP16", (-1, 2, 2)),
    model("whole", "UINT64", (-1, 2)),
)
CODECS = [ModelCodec(metadata) for metadata in MODELS]


def infer_body(data: bytes) -> None:
    """A byte chooses the model and whether there is binary data, two say where it begins."""
    codec = CODECS[data[0] % len(CODECS)] if data else CODECS[0]
    json_bytes = struct.unpack_from("<H", data, 1)[0] if len(data) > 2 and data[0] & 0x80 else None
    inference = codec.decode(data[3:], json_bytes)
    for spec in codec.metadata.inputs:
        array = inference.inputs[spec.name]
        assert array.dtype == DTYPES[spec.datatype]
        assert array.flags.c_contiguous
        assert array.flags.aligned
        assert array.shape[0] == inference.rows
        assert all(want in (-1, size) for want, size in zip(spec.shape, array.shape, strict=True))


def request(body: dict[str, Any], binary: bytes = b"", which: int = 0) -> bytes:
    """A seed of `infer_body`."""
    head = json.dumps(body).encode()
    return bytes([which | (0x80 if binary else 0)]) + struct.pack("<H", len(head)) + head + binary


def tensor(shape: list[int], datatype: str, **more: Any) -> dict[str, Any]:
    """One input as JSON."""
    return {"inputs": [{"name": "input", "shape": shape, "datatype": datatype, **more}]}


BINARY = {"binary_data_size": 64}
BODIES = (
    request({**tensor([1, 16], "FP32", data=[0.5] * 16), "id": "a", "outputs": [{"name": "output"}]}),
    request({**tensor([1, 16], "FP32", parameters=BINARY)}, bytes(64)),
    request({**tensor([2, 2], "INT64", data=[[1, 2], [3, 4]]), "parameters": {"priority": 2}}, which=1),
    request(tensor([1, 2], "BYTES", data=["ä", "b"]), which=2),
    request(tensor([1, 2], "BYTES", parameters={"binary_data_size": 10}), b"\1\0\0\0a\1\0\0\0b", 2),
    request(tensor([1, 3], "BOOL", data=[True, False, True]), which=3),
    request(tensor([1, 2, 2], "FP16", parameters={"binary_data_size": 8}), bytes(8), 4),
    request(tensor([1, 2], "UINT64", data=[0, 2**64 - 1]), which=5),
    b"\x80\0\0" + bytes(64),
)  # fmt: skip
JSON_WORDS = (
    b"null", b"true", b"-1", b"1e999", b"[", b"]", b"{", b"}", b",", b":", b'"', b'"\\ud800"', b"9" * 400,
    b"[" * 2000, b'{"a":' * 500, b"\xff\xfe", b"NaN", b'"shape":', b'"data":', b'"parameters":', b"0.1",
)  # fmt: skip


DECODERS = [
    TensorDecoder(TensorSpec(name="x", datatype=datatype, shape=(-1, -1), axes=("batch", "n")))
    for datatype in DTYPES
]


def binary_tensor(data: bytes) -> None:
    """A byte chooses the datatype, two are the shape, the rest is the tensor."""
    if len(data) < 3:
        return
    decoder = DECODERS[data[0] % len(DECODERS)]
    shape = (data[1], data[2])
    array = decoder.from_bytes(memoryview(data)[3:], shape, "x")
    assert array.shape == shape
    assert array.size == math.prod(shape)
    np.asarray(array).sum() if array.dtype.kind in "iu" else None


# --- connections ------------------------------------------------------------------------------------------


class PretendTransport(asyncio.Transport):
    """Takes what is written and forgets it."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = False

    def write(self, data: Any) -> None:
        pass

    def close(self) -> None:
        self.closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        pass

    resume_reading = pause_reading


class Connections:
    """A front end without sockets, on an event loop of its own."""

    def __init__(self) -> None:
        door = FrontDoor(max_header_kib=4)
        config = ServeConfig(door=door, max_body_bytes=1 << 16)
        self._failures: list[object] = []
        app = make_app(EngineClient(EchoLink()), None, config)

        async def watched(scope: Any, receive: Any, send: Any) -> None:
            try:
                await app(scope, receive, send)
            except Exception as error:
                self._failures.append(error)
                raise

        self._config = uvicorn_config(watched, door)
        self._config.load()
        self._class = limited(door)
        self._loop = asyncio.new_event_loop()

    def feed(self, data: bytes) -> None:
        """One connection that sends `data` in three pieces and goes."""
        self._loop.run_until_complete(self._feed(data))
        failures, self._failures = self._failures, []
        assert not failures, failures

    async def _feed(self, data: bytes) -> None:
        from uvicorn.server import ServerState

        state = ServerState()
        protocol = self._class(self._config, state, {}, _loop=self._loop)
        transport = PretendTransport()
        protocol.connection_made(transport)
        for piece in (data[:20], data[20:200], data[200:]):
            if not transport.closed:
                protocol.data_received(piece)
                await asyncio.sleep(0)
        protocol.sweep(self._loop.time() + 1e6)
        protocol.connection_lost(None)
        while state.tasks:
            await asyncio.sleep(0)


CONNECTIONS = Connections()
HTTP_SEEDS = (
    b"GET /v2/models/echo HTTP/1.1\r\nHost: x\r\n\r\n" * 2,
    b"POST /v2/models/echo/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nabcd"
    b"GET / HTTP/1.1\r\nHost: y\r\nConnection: close\r\n\r\n",
    b"POST /v2/models/echo/infer HTTP/1.1\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n"
    b"2\r\n{}\r\n0\r\nx: y\r\n\r\n",
    b'POST /v2/repository/index HTTP/1.0\r\nContent-Length: 14\r\n\r\n{"ready":true}',
    b"GET /v2/requests/a%00b%2f..%ff HTTP/1.1\r\nAuthorization: Bearer x\r\nX-SLO-MS: 5\r\n\r\n",
)
HTTP_WORDS = (
    b"\r\n", b"\r\n\r\n", b": ", b" HTTP/1.1", b"Content-Length: ", b"Transfer-Encoding: chunked\r\n",
    b"Inference-Header-Content-Length: 9\r\n", b"Upgrade: websocket\r\nConnection: upgrade\r\n", b"%2e%2e/",
    b"CONNECT ", b"OPTIONS * ", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"x" * 5000, b"0\r\n\r\n", b"\0",
)  # fmt: skip


# --- files ------------------------------------------------------------------------------------------------


class Files:
    """Writes the bytes to files of a folder, for readers that take paths."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        config = folder / "scenario.toml"
        config.write_text('[load]\nduration_s = 60\n[[model]]\nname = "a"\nsource = "zoo:echo"\n')
        self._scenario = load_scenario(config)

    def put(self, name: str, data: bytes) -> Path:
        """The file, written anew."""
        path = self._folder / name
        path.write_bytes(data)
        return path

    def config(self, data: bytes) -> None:
        """A server's configuration or a scenario."""
        load_scenario(self.put("config.toml", data))

    def keys(self, data: bytes) -> None:
        """A file of keys."""
        path = self.put("keys.toml", data)
        path.chmod(0o600)
        load_keys(path)

    def gaps(self, data: bytes) -> None:
        """A trace of arrivals."""
        gaps = read_gaps(self.put("trace.csv", data))
        assert np.isfinite(gaps).all()
        assert (gaps >= 0).all()

    def arrivals(self, data: bytes) -> None:
        """A file of offered requests."""
        offered = read_arrivals(self.put("arrivals.csv", data), self._scenario)
        assert (np.diff(offered.at) >= 0).all()

    def kernels(self, data: bytes) -> None:
        """Kernel traces of a model."""
        read_traces(self.put("kernels.csv", data), "a")

    def dataset(self, data: bytes) -> None:
        """Profiles and co-runs: the three files stand behind each other, parted by a line."""
        for name, part in zip(
            ("profiles", "segments", "coruns"), (data + SPLIT * 2).split(SPLIT), strict=False
        ):
            self.put(f"set.{name}.csv", part)
        dataset = read_dataset(self._folder / "set")
        assert all(row.end_ms > 0 for rows in dataset.runs.values() for row in rows)

    def state(self, data: bytes) -> None:
        """A learned state, its checksum made right."""
        path = self.put("learned.state", MAGIC + hashlib.sha256(data).digest() + data)
        StateFile(path, "device").read(path)

    def events(self, data: bytes) -> None:
        """An event log: the header and one entry, parted by a line; their lengths are made right."""
        frames = [struct.pack("<I", len(part)) + part for part in data.split(SPLIT)]
        list(read_events(self.put("events.log", b"".join(frames) + TORN))[1])


SPLIT = b"\n---\n"
TOML = b"""[load]
duration_s = 3.5
seed = 2
[device]
kind = "twin"
lanes = 2
[server]
max_body_mib = 3
open = true
[[model]]
name = "a"
source = "zoo:resnet18"
slo_ms = 5
class = "protected"
arrivals = "gamma"
rate_per_s = 4
cv = 2.0
buckets = {seq = [1, 2]}
[[phase]]
at_s = 1
[phase.model.a]
rate_per_s = 9
"""
KEYS = b"""[[tenant]]
name = "t"
requests_per_s = 5.0
[[key]]
id = "k"
sha256 = "%s"
roles = ["infer", "admin"]
tenant = "t"
class = "standard"
expires = 2100-01-01
""" % (b"0" * 64)
TOML_WORDS = (
    b"[[model]]\n", b"[server]\n", b"=", b'"', b"'''", b"nan", b"inf", b"-1", b"9" * 400, b"{", b"}",
    b"[" * 300, b"{a=" * 300, b"true", b"2100-01-01T00:00:00Z", b"\xff", b"\0", b"a.b.c = 1\n", b"\n",
)  # fmt: skip
CSV_WORDS = (
    b",", b"\n", b'"', b"nan", b"inf", b"-1", b"1e308", b"9" * 400, b"1e-320", b"\0", b"\xff", b";",
    b"x" * 140_000, b"timestamp_ms", b"gap", b"2024-02-30T00:00:00", b"0001-01-01T00:00:00+23:59",
    b"9999-12-31T23:59:59-23:59",
)  # fmt: skip
DATASET = SPLIT.join(
    (
        b"workload,batch,share,solo_ms,demand_compute,feature_flop\na,1,1,2.5,0.5,3\nb[seq=64],2,1,2.5,0.5,3\n",
        b"workload,batch,share,index,solo_ms,demand_compute\na,1,1,0,2.5,0.5\n",
        b"run,workload,batch,share,start_ms,end_ms,lane,units,queue_n,segment_ends_ms\n"
        b"r1,a,1,1,0,3,0,0;1,1,1;2\nr1,b[seq=64],2,1,0.5,3,1,2,1,\n",
    )
)
KERNELS = (
    b"model,batch,index,kind,bound,sms,duration_ns\na,1,0,gemm,compute,10,2000\na,1,1,copy,memory,10,2000\n"
)
TORN = b"\x05\0\0\0a"
STATE = msgspec.msgpack.encode(Stored(device="device", learned_at=1, wall_s=2.0, state=bytes(9)))
ARRIVAL = Entry(5, Arrival(Request(id="r", model="a", arrived_at=5, deadline_at=9)), [])
EVENTS = SPLIT.join(
    msgspec.msgpack.encode(part)
    for part in (
        Header(policy="ours", predictor="none", learned=b"", specs=[], lanes=[], profiles=[]),
        ARRIVAL,
    )
)


def profile() -> bytes:
    """A committed profile, cut down to one model."""
    whole = json.loads((Path(__file__).parents[1] / "examples" / "demo.profile.json").read_text())
    whole["models"] = whole["models"][:1]
    whole["pairs"] = []
    return json.dumps(whole).encode()


def targets(folder: Path) -> list[Target]:
    """Everything that is fuzzed; files are written to `folder`."""
    files = Files(folder)
    value = (ValueError,)
    tensors = tuple(bytes([which, 1, 4]) + bytes(32) for which in range(len(DECODERS)))
    gaps = (b"gap_s\n0.1\n0.2\n", b"timestamp_ms,x\n1,2\n5,2\n2024-01-01,3\n")
    arrivals = (b"timestamp_s,model,rows,deadline_ms\n0.5,a,1,20\n0.75,a,2,\n",)
    return [
        Target("infer_body", infer_body, (BadRequest,), BODIES, JSON_WORDS),
        Target("binary_tensor", binary_tensor, (BadRequest,), tensors),
        Target("connection", CONNECTIONS.feed, (), HTTP_SEEDS, HTTP_WORDS),
        Target("config", files.config, (ConfigError,), (TOML,), TOML_WORDS),
        Target("keys", files.keys, (ConfigError,), (KEYS,), TOML_WORDS),
        Target("trace", files.gaps, value, gaps, CSV_WORDS),
        Target("arrivals", files.arrivals, value, arrivals, CSV_WORDS),
        Target("kernels", files.kernels, value, (KERNELS,), CSV_WORDS),
        Target("coruns", files.dataset, (DatasetError,), (DATASET,), (*CSV_WORDS, SPLIT, b"[seq=4]")),
        Target("profile", from_json, value, (profile(),), JSON_WORDS),
        Target("state", files.state, value, (STATE,)),
        Target("event_log", files.events, value, (EVENTS,), (SPLIT,)),
    ]

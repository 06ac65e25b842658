"""Requests and answers of the Open Inference Protocol V2 with binary tensors, and the time they may take."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np

from cotenant import clock
from cotenant.client.errors import (
    Cancelled,
    Expired,
    Failed,
    InvalidRequest,
    Rejected,
    ServerError,
    Unavailable,
)

Array = np.ndarray[Any, Any]

JSON_LENGTH = "inference-header-content-length"
NO_BUDGET_LEFT_MS = 0.001
"""Least budget that is sent: the server, not the client, says that a request has expired."""

_DTYPES = {
    "BOOL": "?", "UINT8": "u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "INT8": "i1",
    "INT16": "<i2", "INT32": "<i4", "INT64": "<i8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip
_NAMES = {np.dtype(code): name for name, code in _DTYPES.items()}
_LENGTH = struct.Struct("<I")


class Result(dict[str, Array]):
    """Outputs by name. `late`: the answer came after its deadline, by the server's account or by the
    client's. `latency_ms`: from the call to the answer. `request_id`: for `cotenant explain`. Arrays may be
    read-only."""

    def __init__(
        self, outputs: Mapping[str, Array], *, late: bool, latency_ms: float, request_id: str | None
    ) -> None:
        super().__init__(outputs)
        self.late = late
        self.latency_ms = latency_ms
        self.request_id = request_id


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP answer; names of headers in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Server:
    """Where a server is. `base` begins every path."""

    host: str
    port: int
    tls: bool
    base: str

    @staticmethod
    def at(url: str) -> Server:
        """From `http://HOST[:PORT][/PREFIX]` or https. Raises ValueError."""
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is not an address of the form http://HOST:PORT")
        tls = parts.scheme == "https"
        return Server(parts.hostname, parts.port or (443 if tls else 80), tls, parts.path.rstrip("/"))

    @property
    def authority(self) -> str:
        """The Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class Deadline:
    """The time that is left of a call: `deadline_ms` until the answer is due (None: whatever the model's SLO
    is), `timeout_s` until the client gives up. Both count from the call, retries included."""

    def __init__(self, deadline_ms: float | None, timeout_s: float) -> None:
        if deadline_ms is not None and not 0 < deadline_ms < math.inf:
            raise ValueError(f"deadline_ms is {deadline_ms}; expected milliseconds above 0")
        self._began_ms = _now_ms()
        self._due_ms = math.inf if deadline_ms is None else self._began_ms + deadline_ms
        self._ends_ms = self._began_ms + timeout_s * 1000

    def headers(self) -> dict[str, str]:
        """What is left of the budget, for the server."""
        if self._due_ms == math.inf:
            return {}
        return {"x-slo-ms": f"{max(NO_BUDGET_LEFT_MS, self._due_ms - _now_ms()):.3f}"}

    def left_s(self) -> float:
        """Seconds for which the client still waits."""
        return max(0.001, (self._ends_ms - _now_ms()) / 1000)

    def pause_s(self, error: ServerError) -> float | None:
        """How long to wait before asking again; None when that is no use: nothing says that it may be
        otherwise, or the deadline will have passed."""
        after_ms: float | None = getattr(error, "retry_after_ms", None)
        if after_ms is None or _now_ms() + after_ms >= min(self._ends_ms, self._due_ms):
            return None
        return after_ms / 1000

    def passed(self) -> bool:
        """Whether the answer is late by the client's clock."""
        return _now_ms() > self._due_ms

    def elapsed_ms(self) -> float:
        """Milliseconds since the call."""
        return _now_ms() - self._began_ms


def _now_ms() -> float:
    return clock.MonotonicClock.now() / 1e6


def infer_path(model: str, version: str | None) -> str:
    """Where a model is asked."""
    versions = "" if version is None else f"/versions/{quote(version, safe='')}"
    return f"/v2/models/{quote(model, safe='')}{versions}/infer"


def encode(
    inputs: Mapping[str, Any], outputs: Sequence[str] | None, parameters: Mapping[str, Any]
) -> tuple[dict[str, str], bytes]:
    """Headers and body of an infer request. Raises ValueError for what is no tensor."""
    entries, tail = [], []
    for name, value in inputs.items():
        datatype, array, data = _encoded(name, value)
        size = {"binary_data_size": len(data)}
        entries.append({"name": name, "datatype": datatype, "shape": array.shape, "parameters": size})
        tail.append(data)
    request: dict[str, Any] = {"inputs": entries, "parameters": {**parameters, "binary_data_output": True}}
    if outputs is not None:
        request["outputs"] = [{"name": name} for name in outputs]
    head = json.dumps(request, separators=(",", ":")).encode()
    headers = {"content-type": "application/octet-stream", JSON_LENGTH: str(len(head))}
    return headers, b"".join((head, *tail))


def _encoded(name: str, value: Any) -> tuple[str, Array, bytes]:
    array = np.asarray(value)
    if array.dtype.kind in "USO":
        return "BYTES", array, b"".join(_with_length(name, element) for element in array.flat)
    datatype = _NAMES.get(array.dtype.newbyteorder("<"))
    if datatype is None and array.dtype.name == "bfloat16":
        datatype = "BF16"
    if datatype is None:
        raise ValueError(f"input {name!r} is {array.dtype}, which cannot be sent")
    return datatype, array, array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def _with_length(name: str, element: Any) -> bytes:
    if not isinstance(element, str | bytes):
        raise ValueError(f"input {name!r} holds {type(element).__name__}; expected text, bytes or numbers")
    data = element.encode() if isinstance(element, str) else element
    return _LENGTH.pack(len(data)) + data


def decode(reply: Reply, deadline: Deadline) -> Result:
    """The result. Raises the error that the answer stands for, and ServerError for what is no V2 answer."""
    if reply.status != 200:
        raise error_of(reply)
    request_id = reply.headers.get("x-request-id")
    late = deadline.passed() or reply.headers.get("x-cotenant-outcome") == "late"
    try:
        outputs = _outputs(reply)
    except (ValueError, KeyError, TypeError, struct.error) as error:
        message = f"the answer cannot be read: {type(error).__name__}: {error}"
        raise ServerError(message, status=reply.status, request_id=request_id) from error
    return Result(outputs, late=late, latency_ms=deadline.elapsed_ms(), request_id=request_id)


def _outputs(reply: Reply) -> dict[str, Array]:
    length = reply.headers.get(JSON_LENGTH)
    at = len(reply.body) if length is None else int(length)
    outputs = {}
    for entry in json.loads(reply.body[:at])["outputs"]:
        size = (entry.get("parameters") or {}).get("binary_data_size")
        if size is None:
            found = _from_json(entry)
        else:
            found = _from_bytes(entry["datatype"], memoryview(reply.body)[at : at + size])
            at += size
        outputs[entry["name"]] = found.reshape(entry["shape"])
    return outputs


def _from_json(entry: Mapping[str, Any]) -> Array:
    if entry["datatype"] == "BYTES":
        return _objects([text.encode() for text in entry["data"]])
    return np.array(entry["data"], _DTYPES[entry["datatype"]])


def _from_bytes(datatype: str, view: memoryview) -> Array:
    if datatype == "BYTES":
        found, at = [], 0
        while at < len(view):
            (length,) = _LENGTH.unpack_from(view, at)
            found.append(bytes(view[at + 4 : at + 4 + length]))
            at += 4 + length
        return _objects(found)
    if datatype == "BF16":
        import ml_dtypes

        return np.frombuffer(view, ml_dtypes.bfloat16)
    return np.frombuffer(view, _DTYPES[datatype])


def _objects(values: Sequence[bytes]) -> Array:
    array = np.empty(len(values), object)
    array[:] = values
    return array


_ERRORS: dict[int, type[ServerError]] = {
    429: Rejected,
    499: Cancelled,
    502: Unavailable,
    503: Unavailable,
    504: Expired,
}


def error_of(reply: Reply) -> ServerError:
    """The error that an answer other than 200 stands for."""
    try:
        body = json.loads(reply.body)
    except ValueError:
        body = None
    body = body if isinstance(body, dict) else {}
    message = str(body.get("error") or f"the server answered {reply.status}")
    common: dict[str, Any] = {
        "status": reply.status,
        "reason": str(body.get("reason") or ""),
        "request_id": reply.headers.get("x-request-id"),
    }
    kind = _ERRORS.get(reply.status, InvalidRequest if 400 <= reply.status < 500 else Failed)
    if issubclass(kind, Rejected | Unavailable):
        common["predicted_ms"] = _number(body.get("predicted_ms"))
        after_s = _number(reply.headers.get("retry-after"))
        after_ms = _number(body.get("retry_after_ms"))
        common["retry_after_ms"] = after_ms if after_ms is not None or after_s is None else 1000 * after_s
    return kind(message, **common)


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None

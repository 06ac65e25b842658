"""Writes a ModelInferResponse: every output raw, as clients expect, or typed where that was asked for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cotenant.domain import ModelMetadata, TensorSpec
from cotenant.ports import Tensors
from cotenant.serve.errors import BadRequest
from cotenant.serve.grpc import inference_pb2 as pb
from cotenant.serve.grpc.reading import CONTENTS, PIECE_ELEMENTS
from cotenant.serve.tensors import DTYPES, Array, to_bytes

Wanted = Sequence[tuple[TensorSpec, bool]]


def all_raw(wanted: Wanted) -> bool:
    """Whether the outputs are wanted raw. Raises BadRequest when some are and some are not, which the message
    cannot say."""
    raw = [binary for _, binary in wanted]
    if any(raw) and not all(raw):
        raise BadRequest(
            400,
            "outputs: parameters.binary_data differs between them; over gRPC all outputs are raw (true) or "
            "all typed (false)",
        )
    return all(raw)


def write(
    response: pb.ModelInferResponse,
    metadata: ModelMetadata,
    outputs: Tensors,
    wanted: Wanted,
    *,
    raw: bool,
    request_id: str | None,
) -> None:
    """Fill in the answer. Raises KeyError if the engine left out an output it has."""
    response.model_name = metadata.name
    response.model_version = metadata.versions[-1]
    response.id = request_id or ""
    for spec, _ in wanted:
        array: Array = np.asarray(outputs[spec.name], DTYPES[spec.datatype], order="C")
        entry = response.outputs.add(name=spec.name, datatype=spec.datatype, shape=array.shape)
        if raw:
            response.raw_output_contents.append(to_bytes(array))
        else:
            _fill(entry.contents, array, spec.datatype)


def _fill(contents: pb.InferTensorContents, array: Array, datatype: str) -> None:
    field = getattr(contents, CONTENTS[datatype])
    flat = array.reshape(-1)
    if datatype == "BYTES":
        field.extend(value.encode() if isinstance(value, str) else bytes(value) for value in flat)
        return
    for at in range(0, flat.size, PIECE_ELEMENTS):
        field.extend(flat[at : at + PIECE_ELEMENTS].tolist())

"""Writes a ModelInferResponse: every output raw, as clients expect, or typed where that was asked for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cotenant.domain import ModelMetadata, model_of
from cotenant.ports import Tensors
from cotenant.serve.classify import classify
from cotenant.serve.errors import BadRequest
from cotenant.serve.grpc import inference_pb2 as pb
from cotenant.serve.grpc.reading import CONTENTS, PIECE_ELEMENTS
from cotenant.serve.oip import Wanted
from cotenant.serve.shared_memory import Place
from cotenant.serve.tensors import DTYPES, Array, to_bytes


def all_raw(wanted: Sequence[Wanted]) -> bool:
    """Whether the outputs are wanted raw. Raises BadRequest when some are and some are not, which the message
    cannot say."""
    raw = [want.binary for want in wanted if want.place is None]
    if len(set(raw)) > 1:
        raise BadRequest(
            400,
            "outputs: parameters.binary_data differs between them; over gRPC all outputs are raw (true) or "
            "all typed (false)",
        )
    return not raw or raw[0]


def write(
    response: pb.ModelInferResponse,
    metadata: ModelMetadata,
    outputs: Tensors,
    wanted: Sequence[Wanted],
    *,
    raw: bool,
    request_id: str | None,
) -> None:
    """Fill in the answer; outputs that go to shared memory are written there. Raises KeyError if the engine
    left out an output it has, and BadRequest when one does not fit its place."""
    response.model_name = model_of(metadata.name)
    response.model_version = metadata.versions[-1]
    response.id = request_id or ""
    for want in wanted:
        spec, datatype = want.spec, want.spec.datatype
        array: Array = np.asarray(outputs[spec.name], DTYPES[datatype], order="C")
        if want.n_classes:
            array, datatype = classify(array, want.n_classes, spec, metadata.batched), "BYTES"
        entry = response.outputs.add(name=spec.name, datatype=datatype, shape=array.shape)
        if want.place is not None:
            _put(entry, want.place, to_bytes(array))
            if raw:  # clients count on an entry for each output
                response.raw_output_contents.append(b"")
        elif raw:
            response.raw_output_contents.append(to_bytes(array))
        else:
            _fill(entry.contents, array, datatype)


def _put(entry: pb.ModelInferResponse.InferOutputTensor, place: Place, data: bytes) -> None:
    place.write(data, f"output '{entry.name}'")
    entry.parameters["shared_memory_region"].string_param = place.region.name
    entry.parameters["shared_memory_offset"].int64_param = place.offset
    entry.parameters["shared_memory_byte_size"].int64_param = len(data)


def _fill(contents: pb.InferTensorContents, array: Array, datatype: str) -> None:
    field = getattr(contents, CONTENTS[datatype])
    flat = array.reshape(-1)
    if datatype == "BYTES":
        field.extend(value.encode() if isinstance(value, str) else bytes(value) for value in flat)
        return
    for at in range(0, flat.size, PIECE_ELEMENTS):
        field.extend(flat[at : at + PIECE_ELEMENTS].tolist())

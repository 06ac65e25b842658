"""A model's codec: V2 infer requests validated against the model, and its answers encoded for HTTP."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cotenant.domain import Axes, ModelMetadata, TensorSpec, model_of
from cotenant.serve.errors import BadRequest
from cotenant.serve.json_limits import MAX_ELEMENTS, OBJECT_COST, check_count, check_json
from cotenant.serve.oip import (
    OF_INPUT,
    OF_REQUEST,
    REQUEST,
    BodyData,
    Inference,
    InferRequest,
    InputTensor,
    TensorData,
    check_parameters,
    decode_json,
)
from cotenant.serve.outputs import OutputCodec
from cotenant.serve.shared_memory import Regions, place_of
from cotenant.serve.tensors import DTYPES, Array, TensorDecoder

MAX_DIMENSIONS = 32
LARGEST_DIMENSION = 2**31 - 1


class ModelCodec:
    """Decodes requests for and encodes answers of one loaded model; made once per load."""

    def __init__(self, metadata: ModelMetadata, max_elements: int = MAX_ELEMENTS) -> None:
        self.metadata = metadata
        self._max_elements = max_elements
        self._model = model_of(metadata.name)
        self._decoders = {spec.name: TensorDecoder(spec) for spec in metadata.inputs}
        self._buckets = dict(metadata.spec.axis_buckets)
        self._outputs = OutputCodec(metadata)
        self.encode, self.slow_elements = self._outputs.encode, self._outputs.slow_elements
        self._has_strings = any(spec.datatype == "BYTES" for spec in metadata.inputs)

    def slow_bytes(self, body: bytes | bytearray, json_bytes: int | None) -> int:
        """How many bytes of the body are slow to decode (JSON, strings); binary numbers are free."""
        if json_bytes is None or self._has_strings:
            return len(body)
        return json_bytes

    # --- decoding ---------------------------------------------------------------------------------

    def decode(
        self, body: bytes | bytearray, json_bytes: int | None, regions: Regions | None = None
    ) -> Inference:
        """Validate a request over HTTP. `json_bytes` is the value of `Inference-Header-Content-Length`, if
        given; `regions`: the shared memory that it may refer to."""
        if json_bytes == 0:
            return self._decode_raw(body)
        if json_bytes is None:
            check_json(body, self._max_elements)
            nothing = BodyData(memoryview(b""), has_binary=False)
            return self.inference(decode_json(REQUEST, body), nothing, regions)
        if json_bytes > len(body):
            raise BadRequest(
                400, f"Inference-Header-Content-Length is {json_bytes}, but the body has {len(body)} bytes"
            )
        view = memoryview(body)
        check_json(view[:json_bytes], self._max_elements)
        request = decode_json(REQUEST, view[:json_bytes])
        return self.inference(request, BodyData(view[json_bytes:], has_binary=True), regions)

    def inference(
        self, request: InferRequest, data: TensorData, regions: Regions | None, *, in_binary: bool = False
    ) -> Inference:
        """Validate a request of any protocol, whose inputs are read from `data` or from shared memory.
        `in_binary`: how outputs are wanted of which it does not say so."""
        if request.model_name is not None and request.model_name != self._model:
            raise BadRequest(
                400, f"model_name: is '{request.model_name:.100}', but the path says '{self._model}'"
            )
        parameters = request.parameters or {}
        check_parameters(parameters, OF_REQUEST, "parameters")
        inputs, rows, axes = self._inputs(request.inputs, data, regions)
        return Inference(
            id=request.id,
            inputs=inputs,
            rows=rows,
            axes=axes,
            wanted=self._outputs.wanted(request.outputs, parameters, regions, in_binary=in_binary),
            timeout_us=parameters.get("timeout"),
            priority=parameters.get("priority", 0),
        )

    def _inputs(
        self, tensors: list[InputTensor], data: TensorData, regions: Regions | None
    ) -> tuple[dict[str, Array], int, Axes]:
        arrays: dict[str, Array] = {}
        sizes: dict[str | None, tuple[int, str]] = {}
        n_shared = 0
        for index, tensor in enumerate(tensors):
            field = f"inputs[{index}] '{tensor.name}'"
            decoder = self._decoder(tensor, field, arrays)
            self._check_shape(decoder.spec, tensor.shape, field, sizes)
            if decoder.dtype.kind == "O":
                check_count(OBJECT_COST * math.prod(tensor.shape), self._max_elements)
            if tensor.parameters:
                check_parameters(tensor.parameters, OF_INPUT, f"{field}: parameters")
                place = place_of(tensor.parameters, regions, field)
                if place is not None and regions is not None:
                    data.absent(index, tensor, field)
                    n_shared += place.byte_size
                    regions.check_size(n_shared)
                    arrays[tensor.name] = decoder.from_bytes(place.read(), tensor.shape, field)
                    continue
            arrays[tensor.name] = data.read(index, tensor, decoder, field)
        data.finish()
        if len(arrays) != len(self._decoders):
            missing = [name for name in self._decoders if name not in arrays]
            raise BadRequest(400, f"inputs: missing {_names(missing)} of model '{self._model}'")
        return arrays, self._rows(sizes), self._axes(sizes)

    def _decoder(self, tensor: InputTensor, field: str, seen: dict[str, Array]) -> TensorDecoder:
        decoder = self._decoders.get(tensor.name)
        if decoder is None:
            raise BadRequest(
                400,
                f"{field}: model '{self._model}' has no such input; expected {_names(self._decoders)}",
            )
        if tensor.name in seen:
            raise BadRequest(400, f"{field}: given twice")
        if tensor.datatype != decoder.spec.datatype:
            expected = decoder.spec.datatype
            known = "" if tensor.datatype in DTYPES else ", which is no V2 datatype"
            raise BadRequest(400, f"{field}: datatype is '{tensor.datatype}'{known}; expected '{expected}'")
        return decoder

    def _check_shape(
        self,
        spec: TensorSpec,
        shape: Sequence[int],
        field: str,
        sizes: dict[str | None, tuple[int, str]],
    ) -> None:
        """Check `shape` against the spec, and that an axis has one size in all inputs. The rows' key in
        `sizes` is None."""
        if len(shape) != len(spec.shape):
            got = f"{len(shape)} dimensions" if len(shape) > MAX_DIMENSIONS else str(list(shape))
            raise BadRequest(
                400,
                f"{field}: shape {got} does not fit {list(spec.shape)}: "
                f"expected {len(spec.shape)} dimensions",
            )
        if max(shape, default=0) > LARGEST_DIMENSION or min(shape, default=0) < -LARGEST_DIMENSION:
            raise BadRequest(400, f"{field}: shape has a dimension beyond {LARGEST_DIMENSION}")
        for dimension, (size, expected) in enumerate(zip(shape, spec.shape, strict=True)):
            if expected >= 0:
                if size != expected:
                    raise BadRequest(400, _misfit(field, shape, spec, dimension, f"must be {expected}"))
                continue
            if size < 1:
                raise BadRequest(400, _misfit(field, shape, spec, dimension, "must be at least 1"))
            is_rows = dimension == 0 and self.metadata.batched
            if is_rows and size > self.metadata.spec.max_batch:
                raise BadRequest(
                    400,
                    f"{field}: {size} rows, but model '{self._model}' takes at most "
                    f"{self.metadata.spec.max_batch} (max_batch)",
                )
            axis = spec.axes[dimension]
            if axis is None and not is_rows:
                continue
            key = None if is_rows else axis
            known_size, known_field = sizes.setdefault(key, (size, field))
            if known_size != size:
                what = "rows" if is_rows else f"axis '{axis}'"
                raise BadRequest(
                    400,
                    f"{field}: {what} is {size} in shape {list(shape)}, but {known_size} in {known_field}",
                )

    def _rows(self, sizes: dict[str | None, tuple[int, str]]) -> int:
        if not self.metadata.batched:
            return 1
        return sizes[None][0] if None in sizes else 1

    def _axes(self, sizes: dict[str | None, tuple[int, str]]) -> Axes:
        if not self._buckets:
            return ()
        axes: list[tuple[str, int]] = []
        for axis, (size, field) in sizes.items():
            buckets = self._buckets.get(axis) if axis is not None else None
            if axis is None or buckets is None:
                continue
            bucket = next((bucket for bucket in buckets if size <= bucket), None)
            if bucket is None:
                raise BadRequest(
                    400, f"{field}: axis '{axis}' is {size}, but its largest bucket is {buckets[-1]}"
                )
            axes.append((axis, bucket))
        return tuple(sorted(axes))

    def _decode_raw(self, body: bytes | bytearray) -> Inference:
        """A body that is the data of the only input; its shape is derived, the answer is in binary."""
        if len(self._decoders) != 1:
            raise BadRequest(
                400,
                "Inference-Header-Content-Length is 0 (a raw body), but model "
                f"'{self._model}' has {len(self._decoders)} inputs; expected exactly 1",
            )
        ((name, decoder),) = self._decoders.items()
        field = f"inputs[0] '{name}'"
        shape = self._raw_shape(decoder, len(body), field)
        sizes: dict[str | None, tuple[int, str]] = {}
        self._check_shape(decoder.spec, shape, field, sizes)
        array = decoder.from_bytes(memoryview(body), shape, field)
        return Inference(
            id=None,
            inputs={name: array},
            rows=self._rows(sizes),
            axes=self._axes(sizes),
            wanted=self._outputs.all_binary,
        )

    def _raw_shape(self, decoder: TensorDecoder, n_bytes: int, field: str) -> tuple[int, ...]:
        shape = list(decoder.spec.shape)
        if decoder.dtype.kind == "O":
            return tuple(1 if size < 0 else size for size in shape)
        free = [dimension for dimension, size in enumerate(shape) if size < 0]
        if len(free) == 2 and self.metadata.batched and free[0] == 0:
            shape[0] = 1
            del free[0]
        if len(free) > 1:
            raise BadRequest(
                400, f"{field}: a raw body leaves {len(free)} dimensions of {shape} open; send JSON"
            )
        if free:
            known = math.prod(size for size in shape if size >= 0) * decoder.dtype.itemsize
            shape[free[0]] = n_bytes // known if known else 0
        return tuple(shape)


class ModelCodecs:
    """The codecs of the loaded models, which are those that `loaded` returns."""

    def __init__(
        self, loaded: Callable[[], Mapping[str, ModelMetadata]], max_elements: int = MAX_ELEMENTS
    ) -> None:
        self._loaded, self._max_elements = loaded, max_elements
        self._codecs: dict[str, ModelCodec] = {}

    def of(self, metadata: ModelMetadata) -> ModelCodec:
        """The model's codec; a new one when it has been loaded anew."""
        codec = self._codecs.get(metadata.name)
        if codec is None or codec.metadata is not metadata:
            loaded = self._loaded()
            self._codecs = {name: known for name, known in self._codecs.items() if name in loaded}
            codec = self._codecs[metadata.name] = ModelCodec(metadata, self._max_elements)
        return codec


def _names(names: Any) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _misfit(field: str, shape: Sequence[int], spec: TensorSpec, dimension: int, rule: str) -> str:
    return f"{field}: shape {list(shape)} does not fit {list(spec.shape)}: dimension {dimension} {rule}"

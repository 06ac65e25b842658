"""The outputs of one model: which a request wants and how, and the answer that holds them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson

from cotenant.domain import ModelMetadata, TensorSpec, model_of
from cotenant.ports import Tensors
from cotenant.serve.classify import UNRANKED, classify
from cotenant.serve.errors import BadRequest
from cotenant.serve.oip import OF_OUTPUT, Encoded, Wanted, WantedTensor, boolean, check_parameters
from cotenant.serve.shared_memory import Regions, place_of
from cotenant.serve.tensors import BINARY_ONLY, DTYPES, Array, to_bytes, to_json


class OutputCodec:
    """Reads what is wanted of and encodes answers of one loaded model."""

    def __init__(self, metadata: ModelMetadata) -> None:
        self._metadata = metadata
        self._model = model_of(metadata.name)
        self._outputs = {spec.name: spec for spec in metadata.outputs}
        self._all_json = tuple(Wanted(spec) for spec in metadata.outputs)
        self.all_binary = tuple(Wanted(spec, True) for spec in metadata.outputs)
        self._json_refused = any(spec.datatype in BINARY_ONLY for spec in metadata.outputs)

    def wanted(
        self,
        outputs: list[WantedTensor] | None,
        parameters: dict[str, Any],
        regions: Regions | None = None,
        *,
        in_binary: bool = False,
    ) -> tuple[Wanted, ...]:
        """What a request wants that has these `outputs` and `parameters`: all, when it names none; in binary
        or not, as `in_binary` says where it does not. Raises BadRequest."""
        in_binary = boolean(parameters, "binary_data_output", "parameters", in_binary)
        if not outputs:
            if self._json_refused and not in_binary:
                for spec in self._metadata.outputs:
                    _check_json(spec, "outputs")
            return self.all_binary if in_binary else self._all_json
        wanted: dict[str, Wanted] = {}
        for index, output in enumerate(outputs):
            field = f"outputs[{index}] '{output.name}'"
            if output.name in wanted:
                raise BadRequest(400, f"{field}: given twice")
            wanted[output.name] = self._one(output, in_binary, regions, field)
        return tuple(wanted.values())

    def _one(self, output: WantedTensor, in_binary: bool, regions: Regions | None, field: str) -> Wanted:
        spec = self._outputs.get(output.name)
        if spec is None:
            known = ", ".join(f"'{name}'" for name in self._outputs)
            raise BadRequest(400, f"{field}: model '{self._model}' has no such output; expected {known}")
        own = output.parameters or {}
        check_parameters(own, OF_OUTPUT, f"{field}: parameters")
        n_classes = _n_classes(own, spec, field)
        place = place_of(own, regions, field)
        binary = boolean(own, "binary_data", f"{field}: parameters", in_binary)
        if not binary and not n_classes and place is None:
            _check_json(spec, field)
        return Wanted(spec, binary, n_classes, place)

    def slow_elements(self, outputs: Tensors, wanted: Sequence[Wanted]) -> int:
        """How many elements of the answer are slow to encode."""
        return sum(
            outputs[want.spec.name].size
            for want in wanted
            if not want.binary or want.n_classes or want.place or want.spec.datatype == "BYTES"
        )

    def encode(self, outputs: Tensors, wanted: Sequence[Wanted], request_id: str | None) -> Encoded:
        """The answer's body; outputs that go to shared memory are written there. Raises KeyError if the
        engine left out an output it has, and BadRequest when one cannot be had as it is wanted."""
        entries: list[dict[str, Any]] = []
        tail: list[bytes] = []
        for want in wanted:
            spec = want.spec
            array: Array = np.asarray(outputs[spec.name], DTYPES[spec.datatype], order="C")
            datatype = spec.datatype
            if want.n_classes:
                array, datatype = classify(array, want.n_classes, spec, self._metadata.batched), "BYTES"
            entry: dict[str, Any] = {"name": spec.name, "datatype": datatype, "shape": array.shape}
            if want.place is not None:
                data = to_bytes(array)
                want.place.write(data, f"output '{spec.name}'")
                entry["parameters"] = {
                    "shared_memory_region": want.place.region.name,
                    "shared_memory_offset": want.place.offset,
                    "shared_memory_byte_size": len(data),
                }
            elif want.binary:
                data = to_bytes(array)
                entry["parameters"] = {"binary_data_size": len(data)}
                tail.append(data)
            else:
                entry["data"] = to_json(array, spec.name)
            entries.append(entry)
        answer: dict[str, Any] = {
            "model_name": self._model,
            "model_version": self._metadata.versions[-1],
            "outputs": entries,
        }
        if request_id is not None:
            answer["id"] = request_id
        head = orjson.dumps(answer)
        if not tail:
            return Encoded(head, None)
        return Encoded(b"".join((head, *tail)), len(head))


def _n_classes(parameters: dict[str, Any], spec: TensorSpec, field: str) -> int:
    """The V2 parameter `classification`; 0: not asked for. Raises BadRequest."""
    value = parameters.get("classification", 0)
    if type(value) is not int or not 0 <= value < 2**31:
        raise BadRequest(
            400, f"{field}: parameters.classification: expected a number of classes, got {value!r:.40}"
        )
    if value and spec.datatype in UNRANKED:
        raise BadRequest(
            400, f"{field}: parameters.classification: '{spec.name}' is {spec.datatype}, which has no order"
        )
    return value


def _check_json(spec: TensorSpec, field: str) -> None:
    if spec.datatype in BINARY_ONLY:
        raise BadRequest(
            400,
            f"{field}: '{spec.name}' is {spec.datatype}, which cannot be sent as JSON; ask for it in binary "
            "(binary_data or binary_data_output)",
        )

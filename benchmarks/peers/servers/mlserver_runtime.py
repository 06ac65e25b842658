"""MLServer: custom runtimes for its V2 protocol; settings.json and model-settings.json are written by
`catalogue.py`."""

import sys
from pathlib import Path

from mlserver import MLModel
from mlserver.codecs import Base64Codec, NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


class Echo(MLModel):
    async def load(self) -> bool:
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        found = NumpyCodec.decode_input(payload.inputs[0])
        return InferenceResponse(
            model_name=self.name, outputs=[NumpyCodec.encode_output(name="output", payload=found)]
        )


class Mixed(MLModel):
    """The model of the runtime's name; tensors travel as base64."""

    async def load(self) -> bool:
        from mixed_models import Model

        self.model = Model(self.name)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        answers = self.model.answer(Base64Codec.decode_input(payload.inputs[0]))
        return InferenceResponse(
            model_name=self.name,
            outputs=[Base64Codec.encode_output(name="output", payload=answers, use_bytes=False)],
        )

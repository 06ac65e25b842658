"""One model in ONNX Runtime: its sessions, warming them, and what may be said of its errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

from cotenant.domain import ModelMetadata
from cotenant.execute.batch import Array, Batcher
from cotenant.execute.model import example_inputs
from cotenant.redact import without_paths

LONGEST_ERROR = 300


class LoadedModel:
    """A servable model: its sessions (one, or one per lane) and what each lane keeps of it."""

    def __init__(self, metadata: ModelMetadata, sessions: Sequence[ort.InferenceSession]) -> None:
        self.metadata = metadata
        self.output_names = [spec.name for spec in metadata.outputs]
        self.batchers: dict[int, Batcher] = {}
        self.sessions = sessions

    def session(self, lane: int) -> ort.InferenceSession:
        """The session that runs on `lane`."""
        return self.sessions[lane % len(self.sessions)]

    def batcher(self, owner: int) -> Batcher:
        """The batcher of one lane's thread, which `owner` identifies."""
        batcher = self.batchers.get(owner)
        if batcher is None:
            batcher = self.batchers[owner] = Batcher(self.metadata)
        return batcher


def describe(error: Exception) -> str:
    """Type and text of an error in one short line, without the machine's paths."""
    return f"{type(error).__name__}: {without_paths(str(error))}"[:LONGEST_ERROR]


def session_options(n_threads: int) -> ort.SessionOptions:
    """How every session of a lane with so many threads runs."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = n_threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def open_session(path: Path, n_threads: int) -> ort.InferenceSession:
    """A session of the file itself, links followed: external data is looked for beside it, where `inspect`
    has checked it, not beside a link to it."""
    options = session_options(n_threads)
    return ort.InferenceSession(str(path.resolve()), options, providers=["CPUExecutionProvider"])


def warm(model: LoadedModel) -> None:
    """Run every variant once on each session. Raises ValueError when the outputs belie the batch axis."""
    metadata = model.metadata
    random = np.random.default_rng(0)
    for session in model.sessions:

        def run(feed: Mapping[str, Array], session: ort.InferenceSession = session) -> Sequence[Array]:
            outputs: Sequence[Array] = session.run(model.output_names, feed)
            return outputs

        batcher = Batcher(metadata)
        for variant in metadata.spec.variants():
            (outputs,) = batcher.run(variant, [example_inputs(metadata, variant, random)], run)
            for name, output in outputs.items():
                if variant.rows > 1 and output.shape[:1] != (variant.rows,):
                    raise ValueError(
                        f"output '{name}' has shape {list(output.shape)} for {variant.rows} rows, but its "
                        "first dimension should be the rows; serve it with max_batch = 1"
                    )

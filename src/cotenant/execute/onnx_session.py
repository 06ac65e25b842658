"""One model in ONNX Runtime: its sessions, warming them, and what may be said of its errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

from cotenant.cores import core_numbers, pinned
from cotenant.domain import Dispatch, ModelMetadata, Variant
from cotenant.execute.batch import Array, Batcher
from cotenant.execute.lane_model import LaneRun, Passed
from cotenant.execute.model import example_inputs
from cotenant.ports import LaneInfo, Tensors
from cotenant.redact import without_paths

LONGEST_ERROR = 300


class OnnxFile:
    """Implements `Loadable`. When every lane has one core all lanes share a session (`run` is thread-safe and
    one-thread sessions work in the caller's thread); otherwise each has its own, whose pool threads are born
    on the lane's cores."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def label(self) -> str:
        return f"model file {self._path.name}"

    def n_copies(self, lanes: Sequence[LaneInfo]) -> int:
        return 1 if _share_a_session(lanes) else len(lanes)

    def open(self, metadata: ModelMetadata, lanes: Sequence[LaneInfo], cores: Sequence[int]) -> LoadedModel:
        model = LoadedModel(metadata, self._sessions(lanes, cores))
        warm(model)
        return model

    def _sessions(self, lanes: Sequence[LaneInfo], cores: Sequence[int]) -> list[ort.InferenceSession]:
        if _share_a_session(lanes):
            return [open_session(self._path, 1)]
        sessions = []
        for lane in lanes:
            with pinned(core_numbers(lane.units, cores)):  # pool threads inherit the cores
                sessions.append(open_session(self._path, len(lane.units)))
        return sessions


def _share_a_session(lanes: Sequence[LaneInfo]) -> bool:
    return all(len(lane.units) == 1 for lane in lanes)


class LoadedModel:
    """A servable model, a `LaneModel`: its sessions (one, or one per lane) and what each lane keeps of it."""

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

    def begin(
        self, dispatch: Dispatch, inputs: Sequence[Tensors], passed: Passed, resumed: LaneRun | None
    ) -> OnnxRun:
        return OnnxRun(self, dispatch, inputs)

    def trial(self, variant: Variant) -> Callable[[], object]:
        session, batcher = self.session(0), Batcher(self.metadata)
        inputs = [example_inputs(self.metadata, variant, np.random.default_rng(0))]
        return lambda: batcher.run(variant, inputs, lambda feed: session.run(self.output_names, feed))

    def lane_lost(self, lane: int, owner: int) -> None:
        self.batchers.pop(owner, None)

    def lane_restarted(self, lane: int) -> None:
        """Nothing: a session that was told to end a run can begin another."""


class OnnxRun:
    """Implements `LaneRun`; it has no boundaries. Giving it up ends it between two nodes."""

    __slots__ = ("_dispatch", "_inputs", "_model", "_options")

    def __init__(self, model: LoadedModel, dispatch: Dispatch, inputs: Sequence[Tensors]) -> None:
        self._model, self._dispatch, self._inputs = model, dispatch, inputs
        self._options = ort.RunOptions()

    def run(self, owner: int) -> Sequence[Tensors]:
        session = self._model.session(self._dispatch.lane)
        names, options = self._model.output_names, self._options

        def run(feed: Mapping[str, Array]) -> Sequence[Array]:
            outputs: Sequence[Array] = session.run(names, feed, options)
            return outputs

        return self._model.batcher(owner).run(self._dispatch.variant, self._inputs, run)

    def preempt(self) -> None:
        """Nothing: a run of ONNX Runtime has no boundaries."""

    def give_up(self) -> None:
        self._options.terminate = True


def describe(error: BaseException) -> str:
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

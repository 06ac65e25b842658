"""Python models on the lanes of a CPU, beside ONNX models (see `onnx`).

How this works. A function is called by every lane's thread; of a class each lane has an instance of its own,
made while the model is loaded. numpy leaves the interpreter free in most of what takes long; a model that
keeps it holds up the other lanes of Python models and the thread that decides, so work that is pure Python
belongs in small pieces or elsewhere. A run that is given up is interrupted by an exception at its next
bytecode; the lane's instance, whose state nobody can vouch for, is replaced.

Arguments are writable and the lane's own, to be overwritten by its next batch; what is returned is copied. A
model in segments is a generator: `next` runs it to its next boundary. One that was stopped there goes on, on
whichever lane resumes it, with all its local variables, so it gets arrays that no other batch will overwrite.
"""

from __future__ import annotations

import ctypes
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from cotenant.domain import Dispatch, ModelMetadata, Variant
from cotenant.execute.batch import Array, Batcher
from cotenant.execute.lane_model import LaneRun, Passed
from cotenant.execute.python_metadata import example_of
from cotenant.execute.python_model import PythonModel
from cotenant.ports import LaneInfo, Tensors

logger = logging.getLogger(__name__)


class GivenUpError(SystemExit):
    """Raised inside a run that nobody waits for. A thread that ends by it ends silently."""


class PythonSource:
    """Implements `Loadable`."""

    def __init__(self, model: PythonModel) -> None:
        self.model = model

    @property
    def label(self) -> str:
        return f"model {self.model.name!r}"

    def n_copies(self, lanes: Sequence[LaneInfo]) -> int:
        return len(lanes) if self.model.has_instances else 1

    def open(self, metadata: ModelMetadata, lanes: Sequence[LaneInfo], cores: Sequence[int]) -> PythonLanes:
        opened = PythonLanes(self.model, metadata, [self.model.take_instance() for _ in lanes])
        for instance in {id(made): made for made in opened.instances}.values():
            for variant in metadata.spec.variants():
                opened.warm(instance, variant)
        return opened


class PythonLanes:
    """Implements `LaneModel`: one instance per lane."""

    def __init__(
        self, model: PythonModel, metadata: ModelMetadata, instances: Sequence[Callable[..., Any]]
    ) -> None:
        self.metadata = metadata
        self.instances: list[Callable[..., Any] | None] = list(instances)
        self._model = model
        self._n_failed = 0
        self._batchers: dict[int, Batcher] = {}

    def begin(
        self, dispatch: Dispatch, inputs: Sequence[Tensors], passed: Passed, resumed: LaneRun | None
    ) -> LaneRun:
        if self.metadata.spec.n_segments == 1:
            return WholeRun(self, dispatch, inputs)
        steps = resumed.steps if isinstance(resumed, StepwiseRun) else None
        return StepwiseRun(self, dispatch, inputs, passed, steps)

    def trial(self, variant: Variant) -> Callable[[], object]:
        instance = self.instance(0)
        return lambda: self.warm(instance, variant)

    def lane_lost(self, lane: int, owner: int) -> None:
        self._batchers.pop(owner, None)
        if self._model.has_instances:
            self.instances[lane] = None

    def lane_restarted(self, lane: int) -> None:
        try:
            self.instance(lane)
        except Exception:
            logger.exception("model %r cannot be set up anew", self.metadata.name)

    # --- for runs -----------------------------------------------------------------------------------------

    def instance(self, lane: int) -> Callable[..., Any]:
        """The lane's own; made if it was lost. Raises what making it raises."""
        found = self.instances[lane]
        if found is None:
            found = self.instances[lane] = self._model.new_instance()
        return found

    def batcher(self, owner: int) -> Batcher:
        """The batcher of a lane's thread, which `owner` identifies."""
        batcher = self._batchers.get(owner)
        if batcher is None:
            batcher = self._batchers[owner] = Batcher(self.metadata, np.empty)
        return batcher

    def arrays(self, feed: Mapping[str, Array]) -> list[Array]:
        """The arguments of a call."""
        return [feed[name] for name in self._model.parameters]

    def outputs(self, found: Any, rows: int) -> list[Array]:
        """Copies of what a call gave for so many rows, checked, in order of the metadata."""
        named = self._model.checked(self._model.named(found), self.metadata.outputs, rows)
        return [np.array(array, order="C") for array in named.values()]

    def failed(self) -> None:
        """Log the exception of a run, which clients are not told: the first, the second, the fourth and so
        on, so that a model that always fails does not fill the disk."""
        self._n_failed += 1
        if self._n_failed & (self._n_failed - 1) == 0:
            logger.exception("run %d of model %r that failed", self._n_failed, self.metadata.name)

    def warm(self, instance: Callable[..., Any] | None, variant: Variant) -> None:
        """Run a variant to its end, in the calling thread."""
        assert instance is not None
        feed = example_of(self._model, variant.rows, dict(variant.axes))
        self._model.run(instance, self.arrays(feed), self.metadata.outputs)


class _Run:
    """What runs share: being given up, and telling of failures, which the server's clients are not told."""

    def __init__(self, lanes: PythonLanes, dispatch: Dispatch, inputs: Sequence[Tensors]) -> None:
        self._lanes, self._dispatch, self._inputs = lanes, dispatch, inputs
        self._thread_id: int | None = None

    def run(self, owner: int) -> Sequence[Tensors] | None:
        self._thread_id = threading.get_ident()
        try:
            return self._results(owner)
        except Exception:
            self._lanes.failed()
            raise
        finally:
            self._thread_id = None

    def _results(self, owner: int) -> Sequence[Tensors] | None:
        raise NotImplementedError

    def give_up(self) -> None:
        thread_id = self._thread_id
        if thread_id is not None:
            error = ctypes.py_object(GivenUpError)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread_id), error)


class WholeRun(_Run):
    """Implements `LaneRun` for a model that runs in one piece."""

    def _results(self, owner: int) -> Sequence[Tensors]:
        lanes = self._lanes
        instance = lanes.instance(self._dispatch.lane)

        def run(feed: Mapping[str, Array]) -> list[Array]:
            arrays = lanes.arrays(feed)
            return lanes.outputs(instance(*arrays), arrays[0].shape[0] if lanes.metadata.batched else 1)

        return lanes.batcher(owner).run(self._dispatch.variant, self._inputs, run)

    def preempt(self) -> None:
        """Nothing: it has no boundaries."""


class StepwiseRun(_Run):
    """Implements `LaneRun` for a model in segments; `steps` is the generator it goes on with."""

    def __init__(
        self,
        lanes: PythonLanes,
        dispatch: Dispatch,
        inputs: Sequence[Tensors],
        passed: Passed,
        steps: Iterator[Any] | None,
    ) -> None:
        super().__init__(lanes, dispatch, inputs)
        self.steps = steps
        self._passed = passed
        self._stopping = False

    def _results(self, owner: int) -> Sequence[Tensors] | None:
        lanes, variant = self._lanes, self._dispatch.variant
        batcher = Batcher(lanes.metadata, np.empty)
        if self.steps is None:
            feed = batcher.feed(variant, self._inputs)
            self.steps = lanes.instance(self._dispatch.lane)(*lanes.arrays(feed))
        n_segments = lanes.metadata.spec.n_segments
        for segment in range(self._dispatch.first_segment + 1, n_segments + 1):
            ended, found = _step(self.steps)
            if ended != (segment == n_segments):
                raise ValueError(
                    f"model {lanes.metadata.name!r} has {n_segments} segments on its example, but not here"
                )
            self._passed(segment)
            if ended:
                return batcher.answers(variant, self._inputs, lanes.outputs(found, variant.rows))
            if self._stopping:
                return None
        raise AssertionError("a dispatch has a segment to run")

    def preempt(self) -> None:
        self._stopping = True


def _step(steps: Iterator[Any]) -> tuple[bool, Any]:
    """Run to the next boundary: whether that was the end, and what was returned there."""
    try:
        next(steps)
    except StopIteration as end:
        return True, end.value
    return False, None

"""What a model must offer to run on the lanes of a CPU, whatever it is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from cotenant.domain import Dispatch, ModelMetadata, Variant
from cotenant.ports import LaneInfo, Tensors

Passed = Callable[[int], None]
"""Told, in the lane's thread, that a run has passed a boundary: the next segment, or how many there are."""


class LaneRun(Protocol):
    """One dispatch of a model on a lane."""

    def run(self, owner: int) -> Sequence[Tensors] | None:
        """Outputs per request, in order; None when it stopped at a boundary, where a run that resumes it goes
        on. Called once, in the lane's thread, which `owner` identifies. May raise anything."""
        ...

    def preempt(self) -> None:
        """Let it stop at its next boundary, if it has any. From the deciding thread."""
        ...

    def give_up(self) -> None:
        """Make it end early if that can be done; nobody waits for it. From the deciding thread."""
        ...


class LaneModel(Protocol):
    """A model that is open on every lane."""

    @property
    def metadata(self) -> ModelMetadata: ...

    def begin(
        self, dispatch: Dispatch, inputs: Sequence[Tensors], passed: Passed, resumed: LaneRun | None
    ) -> LaneRun:
        """A run of a dispatch; `resumed` is the run that stopped where this one goes on. Does not block."""
        ...

    def trial(self, variant: Variant) -> Callable[[], object]:
        """A run of a variant on example inputs, in the thread that calls it. Only before anything else runs
        on the model: while it is being loaded."""
        ...

    def lane_lost(self, lane: int, owner: int) -> None:
        """The thread `owner` of a lane was abandoned in the middle of a run. From the deciding thread."""
        ...

    def lane_restarted(self, lane: int) -> None:
        """In the lane's new thread, before it takes work. May block; raises nothing."""
        ...


class Loadable(Protocol):
    """Something that can be opened on lanes."""

    @property
    def label(self) -> str:
        """What errors call it, `model file m.onnx`."""
        ...

    def n_copies(self, lanes: Sequence[LaneInfo]) -> int:
        """How often it takes what one copy takes of the memory, when it is opened on these lanes."""
        ...

    def open(self, metadata: ModelMetadata, lanes: Sequence[LaneInfo], cores: Sequence[int]) -> LaneModel:
        """The model, every variant run once on every lane's part of it. Blocks. `cores`: numbers of the cores
        that the lanes' units stand for. May raise anything."""
        ...

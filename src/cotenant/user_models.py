"""Models that are Python objects: named in a configuration as `module:attribute`, or handed over as they are.

A `module:attribute` may also be a torch factory; which it is shows only when its module has run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cotenant.config import ARCHIVE, SCHEMES, ModelConfig, Scenario, holds_weights
from cotenant.domain import NS_PER_MS
from cotenant.execute.python_model import PythonModel
from cotenant.execute.user_code import find_attribute


def names_code(source: str) -> bool:
    """Whether a source has the form `module:attribute`."""
    scheme, colon, _ = source.partition(":")
    return (
        bool(colon) and scheme not in SCHEMES and not source.endswith(ARCHIVE) and not holds_weights(source)
    )


@dataclass(slots=True)
class _Found:
    """What a source named when its module last ran: a Python model and its hash then, something else, or
    nothing, for a reason."""

    model: PythonModel | None = None
    hash: str = ""
    error: str | None = None


class UserModels:
    """Python models by source. A module of the configuration's folder runs again when its file has changed.

    `given`: models that are there already, by the source that stands for them in the scenario. May block;
    thread-safe as far as loading is: one model at a time."""

    def __init__(self, folder: Path, given: Mapping[str, PythonModel] | None = None) -> None:
        self._folder = folder
        self._given = dict(given or {})
        self._found: dict[str, _Found] = {}

    def find(self, source: str) -> PythonModel | None:
        """The Python model; None for what is not one. Raises ValueError when that cannot be told."""
        if source in self._given:
            return self._given[source]
        if not names_code(source):
            return None
        found = self._found.get(source)
        if found is None or found.error or (found.model and found.model.hash != found.hash):
            found = self._found[source] = self._look(source)
        if found.error is not None:
            raise ValueError(found.error)
        return found.model

    def _look(self, source: str) -> _Found:
        try:
            attribute = find_attribute(source, self._folder)
        except ValueError as error:
            return _Found(error=str(error))
        if not isinstance(attribute, PythonModel):
            return _Found()
        return _Found(attribute, attribute.hash)

    def completed(self, scenario: Scenario) -> Scenario:
        """The scenario with what its Python models say of themselves: SLO, percentile and class where a table
        gives no SLO, buckets where it gives none, and never more rows than a model takes."""
        return replace(scenario, models=tuple(self._completed(model) for model in scenario.models))

    def _completed(self, table: ModelConfig) -> ModelConfig:
        try:
            found = self.find(table.source)
        except ValueError:  # told when the model is loaded
            return table
        if found is None:
            return table
        said = found.declaration.settings
        if table.slo_ms is None and table.slo_scale is None and said.slo_ns is not None:
            table = replace(
                table,
                slo_ms=said.slo_ns / NS_PER_MS,
                slo_percentile=said.slo_percentile,
                job_class=said.job_class,
            )
        return replace(
            table,
            max_batch=min(table.max_batch, said.max_batch),
            buckets=table.buckets or {axis: tuple(sizes) for axis, sizes in said.buckets.items()},
        )

"""From a twin scenario to what its device runs: the kernels of every variant of every model."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from cotenant.catalogue import settings_of
from cotenant.config import ConfigError, ModelConfig, Scenario
from cotenant.domain import Axes, ModelSpec
from cotenant.execute.model import row_buckets
from cotenant.simulate.twin.device import MOST_SEGMENTS, Programs
from cotenant.simulate.twin.kernels import KernelFileError, Kernels, at_batch, read_traces
from cotenant.simulate.twin.specs import spec_of
from cotenant.simulate.twin.zoo import analytic

DEFAULT_SPEC = "v100"
DEFAULT_LANES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class TwinModels:
    """What a twin's device runs, and the models without their SLOs."""

    programs: Programs
    specs: tuple[ModelSpec, ...]


def twin_models(scenario: Scenario) -> TwinModels:
    """Every model of the scenario on its device. Raises ConfigError."""
    try:
        spec = spec_of(scenario.device.spec or DEFAULT_SPEC)
    except ValueError as error:
        raise ConfigError(f"{scenario.path}: [device] spec: {error}") from error
    programs = Programs(spec)
    return TwinModels(
        programs=programs, specs=tuple(_add(model, scenario, programs) for model in scenario.models)
    )


def _add(model: ModelConfig, scenario: Scenario, programs: Programs) -> ModelSpec:
    where = f"{scenario.path}: [[model]] {model.name!r}"
    scheme, _, rest = model.source.partition(":")
    if scheme == "kernels":
        return _traced(model, scenario, programs, rest, where)
    if scheme == "zoo":
        return _counted(model, programs, rest, where)
    raise ConfigError(
        f"{where} source: {model.source!r} cannot be simulated on a twin; use kernels:FILE.csv#MODEL or "
        "zoo:NAME"
    )


def _traced(model: ModelConfig, scenario: Scenario, programs: Programs, rest: str, where: str) -> ModelSpec:
    """From a file of kernels, `FILE.csv#MODEL`."""
    file, _, name = rest.partition("#")
    if model.buckets:
        raise ConfigError(f"{where} buckets: traces of kernels have no axes but the batch; leave the key out")
    try:
        traces = read_traces(scenario.folder / file, name)
    except KernelFileError as error:
        raise ConfigError(f"{where} source: {error}") from error
    rows = row_buckets(model.max_batch)
    made = {size: at_batch(traces, size, programs.spec) for size in rows}
    return _spec(model, programs, {(): made})


def _counted(model: ModelConfig, programs: Programs, name: str, where: str) -> ModelSpec:
    """From the zoo's models as kernels."""
    try:
        found = analytic(name)
    except ValueError as error:
        raise ConfigError(f"{where} source: {error}") from error
    axes = dict(found.axes) | dict(model.buckets)
    unknown = sorted(set(axes) - set(found.axes))
    if unknown:
        known = ", ".join(found.axes) or "none"
        raise ConfigError(f"{where} buckets: {name!r} has no axis {unknown[0]!r}; its axes: {known}")
    buckets = tuple(sorted(axes.items()))
    made: dict[Axes, dict[int, Kernels]] = {}
    for sizes in itertools.product(*(values for _, values in buckets)):
        key = tuple(zip((axis for axis, _ in buckets), sizes, strict=True))
        rows = row_buckets(model.max_batch)
        made[key] = {n: found.at(n, dict(key), programs.spec) for n in rows}
    return _spec(model, programs, made, buckets)


def _spec(
    model: ModelConfig,
    programs: Programs,
    made: dict[Axes, dict[int, Kernels]],
    axis_buckets: tuple[tuple[str, tuple[int, ...]], ...] = (),
) -> ModelSpec:
    """Make every variant runnable; `made`: axes -> rows -> kernels."""
    settings = settings_of(model)
    n_segments = min(MOST_SEGMENTS, *(len(of) for by_rows in made.values() for of in by_rows.values()))
    spec = ModelSpec(
        name=model.name,
        slo_ns=settings.slo_ns,
        slo_percentile=model.slo_percentile,
        job_class=model.job_class,
        max_batch=model.max_batch,
        row_buckets=row_buckets(model.max_batch),
        axis_buckets=axis_buckets,
        n_segments=n_segments,
    )
    for variant in spec.variants():
        programs.add(variant, made[variant.axes][variant.rows], n_segments)
    return spec

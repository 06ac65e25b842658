"""From a scenario to the requests it offers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cotenant.config import ModelConfig, Scenario
from cotenant.workload.arrivals import Instants, Traffic, instants, merged


def scaled_rates(scenario: Scenario, scale: float, capacity_per_s: float | None) -> dict[str, float]:
    """Factor on every model's rate. With `scale_of = "capacity"` the rates are shares of the capacity, which
    must then be given; best-effort models keep their rates x scale."""
    if scenario.load.scale_of != "capacity":
        return dict.fromkeys((model.name for model in scenario.models), scale)
    if capacity_per_s is None:
        raise ValueError(
            f'{scenario.path}: [load] scale_of = "capacity" needs the measured capacity of the device'
        )
    total = sum(model.rate_per_s for model in scenario.models) or 1.0
    return dict.fromkeys((model.name for model in scenario.models), scale * capacity_per_s / total)


def arrivals(
    scenario: Scenario,
    *,
    scale: float | None = None,
    seed: int | None = None,
    capacity_per_s: float | None = None,
) -> tuple[Instants, Instants]:
    """All arrivals of the scenario in order of time: (instants in ns from 0, index of the model).

    `scale` and `seed` replace the scenario's own. Raises ValueError for traces that cannot be read."""
    chosen = scenario.load.scale if scale is None else scale
    factors = scaled_rates(scenario, chosen, capacity_per_s)
    per_model = [
        instants(
            list(_phases(scenario, model, factors[model.name])),
            scenario.load.duration_s,
            scenario.load.seed if seed is None else seed,
            model.name,
        )
        for model in scenario.models
    ]
    return merged(per_model)


def _phases(scenario: Scenario, model: ModelConfig, factor: float) -> Iterator[Traffic]:
    settings = {
        "rate_per_s": model.rate_per_s,
        "arrivals": model.arrivals,
        "cv": model.cv,
        "file": model.file,
        "column": model.column,
    }
    yield _traffic(scenario, 0.0, settings, factor)
    for phase in sorted(scenario.phases, key=lambda phase: phase.at_s):
        if model.name in phase.overrides:
            settings = {**settings, **phase.overrides[model.name]}
            yield _traffic(scenario, phase.at_s, settings, factor)


def _traffic(scenario: Scenario, from_s: float, settings: dict[str, object], factor: float) -> Traffic:
    file = settings["file"]
    return Traffic(
        from_s=from_s,
        rate_per_s=float(str(settings["rate_per_s"])) * factor,
        process=str(settings["arrivals"]),
        cv=float(str(settings["cv"])),
        file=None if file is None else scenario.folder / str(file),
        column=None if settings["column"] is None else str(settings["column"]),
    )


def n_offered(which: Sequence[int] | Instants, n_models: int) -> list[int]:
    """Arrivals per model."""
    counts = [0] * n_models
    for index in which:
        counts[int(index)] += 1
    return counts

"""From a scenario to the requests it offers."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from cotenant.config import ModelConfig, Scenario
from cotenant.experiment.arrival_files import Offered, read_arrivals
from cotenant.workload.arrivals import Instants, instants, merged
from cotenant.workload.traffic import Traffic, TrafficShape


def scaled_rates(scenario: Scenario, scale: float, capacity_per_s: float | None) -> dict[str, float]:
    """Factor on every model's rate. With `scale_of = "capacity"` the rates are shares of the capacity, which
    must then be given."""
    if scenario.load.scale_of != "capacity":
        return dict.fromkeys((model.name for model in scenario.models), scale)
    if capacity_per_s is None:
        raise ValueError(
            f'{scenario.path}: [load] scale_of = "capacity" needs the measured capacity of the device'
        )
    total = sum(model.rate_per_s for model in scenario.models) or 1.0
    return dict.fromkeys((model.name for model in scenario.models), scale * capacity_per_s / total)


def replaying(
    scenario: Scenario, file: Path | None, scale: float | None, capacity_per_s: float | None
) -> Scenario:
    """The scenario with the load of a file of arrivals, where one is given; the others must then be None.
    Raises ValueError, also when there is no model to offer load to."""
    if not scenario.models:
        raise ValueError(
            f"{scenario.path}: has no [[model]] to offer load to; a [repository] says what a server serves, "
            "not what is asked of it"
        )
    if file is None:
        return scenario
    for name, value in (("scale", scale), ("capacity", capacity_per_s)):
        if value is not None:
            raise ValueError(f"a {name} does not go with {file}, which says what arrives when")
    return replace(scenario, arrivals_file=file)


def load_config(scenario: Scenario, scale: float | None) -> dict[str, Any]:
    """What a report says of where its load came from."""
    if scenario.arrivals_file is not None:
        return {"scale": None, "arrivals_in": str(scenario.arrivals_file)}
    return {"scale": scenario.load.scale if scale is None else scale}


def arrivals(
    scenario: Scenario,
    *,
    scale: float | None = None,
    seed: int | None = None,
    capacity_per_s: float | None = None,
) -> tuple[Instants, Instants]:
    """All arrivals of the scenario in order of time: (instants in ns from 0, index of the model).

    `scale` and `seed` replace the scenario's own. Raises ValueError for traces that cannot be read."""
    found = offer(scenario, scale=scale, seed=seed, capacity_per_s=capacity_per_s)
    return found.at, found.which


def offer(
    scenario: Scenario,
    *,
    scale: float | None = None,
    seed: int | None = None,
    capacity_per_s: float | None = None,
) -> Offered:
    """Every request that the scenario offers: read from its file of arrivals, where it replays one, or drawn.
    Raises ValueError as `arrivals` does."""
    if scenario.arrivals_file is not None:
        if scale is not None:
            raise ValueError(
                f"a scale does not go with {scenario.arrivals_file}, which says what arrives when"
            )
        return read_arrivals(scenario.arrivals_file, scenario)
    chosen = scenario.load.scale if scale is None else scale
    factors = scaled_rates(scenario, chosen, capacity_per_s)
    per_model = [
        instants(
            [_traffic(scenario, *stretch, factors[model.name]) for stretch in scenario.stretches(model)],
            scenario.load.duration_s,
            scenario.load.seed if seed is None else seed,
            model.name,
        )
        for model in scenario.models
    ]
    at, which = merged(per_model)
    rows = np.asarray([model.rows for model in scenario.models], np.int64)
    return Offered(at=at, which=which, rows=rows[which])


def _traffic(scenario: Scenario, from_s: float, settings: ModelConfig, factor: float) -> Traffic:
    shape = {f.name: getattr(settings, f.name) for f in fields(TrafficShape)}
    return Traffic(
        from_s=from_s,
        rate_per_s=settings.rate_per_s * factor,
        process=settings.arrivals,
        file=None if settings.file is None else scenario.folder / settings.file,
        speed=factor,
        **shape,
    )

"""What every predictor must do, checked on the fluid one and on each baseline."""

from __future__ import annotations

from functools import cache

import pytest

from cotenant.experiment.simulated_coruns import SimulatedConfig, simulate_coruns
from cotenant.predict.fluid import FluidPredictor
from cotenant.predict.pair_map import ReducedMap
from cotenant.predict.zoo import ZOO
from cotenant.predict.zoo.oracle import Oracle
from cotenant.predict.zoo.static_linear import StaticLinear
from cotenant.testing.predictor_checks import CHECKS, PredictorChecks, case_with_own_units

NEEDS_SKLEARN = ("gaussian-process", "boosting")


def fluid(features, lanes):
    return FluidPredictor(features, ReducedMap(features).begin(), lanes=lanes)


MAKERS = {"fluid": fluid, "static_linear": StaticLinear, **ZOO}


def named(name: str):
    """Those that refit again and again take minutes in all."""
    return pytest.param(name, marks=pytest.mark.slow) if name.startswith(NEEDS_SKLEARN) else name


@cache
def checks(name: str) -> PredictorChecks:
    if name.startswith(NEEDS_SKLEARN):
        pytest.importorskip("sklearn")
    if name == "oracle":
        truth = simulate_coruns(SimulatedConfig(n_workloads=5, n_runs=2)).truth
        return PredictorChecks(lambda features, lanes: Oracle(features, lanes, truth))
    return PredictorChecks(MAKERS[name], expects_joiners=name.startswith("boosting-online"))


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", ["fluid", "static_linear", "oracle", *map(named, ZOO)])
def test_predictor(name, check):
    getattr(checks(name), check)()


@cache
def on_own_units(name: str) -> PredictorChecks:
    return PredictorChecks(MAKERS[name], case=case_with_own_units())


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize(
    "name", ["fluid", "static_linear", "linear-rls", "igniter-fluid", "log-additive-rls-fluid"]
)
def test_predictor_on_lanes_with_units_of_their_own(name, check):
    getattr(on_own_units(name), check)()

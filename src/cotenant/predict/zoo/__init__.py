"""Baselines that the predictor is compared with: one method, one file, all driven through `study_port`.

`ZOO` names them. `NAME` uses a slowdown model as published, on the set in flight at dispatch; `NAME-fluid`
the same model inside the fluid integration, which tells the value of overlap from that of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from cotenant.ports import LaneInfo
from cotenant.predict.study_port import StudyPredictor
from cotenant.predict.zoo.at_dispatch import AtDispatch
from cotenant.predict.zoo.igniter import Igniter
from cotenant.predict.zoo.in_fluid import InFluid
from cotenant.predict.zoo.linear import Linear, LinearEwma
from cotenant.predict.zoo.linear_online import LinearRls, LinearSgd
from cotenant.predict.zoo.log_additive import LogAdditive
from cotenant.predict.zoo.none import ConstantInflation, NoInterference
from cotenant.predict.zoo.seam import SlowdownModel
from cotenant.predict.zoo.wrapped import MakeModel
from cotenant.profile.features import FeatureTable

Factory = Callable[[FeatureTable, Sequence[LaneInfo]], StudyPredictor]


def _gaussian_process(table: FeatureTable) -> SlowdownModel:
    from cotenant.predict.zoo.gaussian_process import GaussianProcess  # needs scikit-learn

    return GaussianProcess(table)


def _boosting(table: FeatureTable) -> SlowdownModel:
    from cotenant.predict.zoo.boosting import Boosting  # needs scikit-learn

    return Boosting(table)


def _boosting_online(name: str, *, conformal: bool) -> Factory:
    def make(features: FeatureTable, lanes: Sequence[LaneInfo]) -> StudyPredictor:
        from cotenant.predict.zoo.boosting_online import BoostingOnline  # needs scikit-learn

        return BoostingOnline(name, features, lanes, conformal=conformal)

    return make


MODELS: Mapping[str, MakeModel] = {
    "none": lambda table: NoInterference(),
    "constant": lambda table: ConstantInflation(),
    "linear": Linear,
    "linear-ewma": LinearEwma,
    "linear-sgd": LinearSgd,
    "linear-rls": LinearRls,
    "igniter": Igniter,
    "log-additive": LogAdditive,
    "log-additive-rls": lambda table: LogAdditive(table, online=True),
    "gaussian-process": _gaussian_process,
    "boosting": _boosting,
}
"""Slowdown models by name, each made from a table of features."""
WITHOUT_FLUID = ("none", "linear-ewma")
"""No interference has no overlap to follow; smoothed inputs are a way of their own to follow it."""


def _dispatched(name: str) -> Factory:
    return lambda features, lanes: AtDispatch(name, features, lanes, MODELS[name])


def _integrated(name: str) -> Factory:
    return lambda features, lanes: InFluid(f"{name}-fluid", features, lanes, MODELS[name])


ZOO: Mapping[str, Factory] = {
    **{name: _dispatched(name) for name in MODELS},
    **{f"{name}-fluid": _integrated(name) for name in MODELS if name not in WITHOUT_FLUID},
    "boosting-online": _boosting_online("boosting-online", conformal=False),
    "boosting-online-conformal": _boosting_online("boosting-online-conformal", conformal=True),
}
"""Every baseline by name; scikit-learn is imported when one that needs it is made."""

__all__ = ["MODELS", "ZOO", "Factory", "MakeModel", "SlowdownModel", "StudyPredictor"]

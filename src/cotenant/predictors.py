"""What goes with a policy besides its plan: the predictor that it asks, what that one may learn, and whether
traffic is metered. `study`, `simulate`, `serve` and `replay` all ask here.

A policy that is not in `PARTS` has everything. Those that are there have less, for comparison: the names
with `ours-` leave one part out, `static_linear` has a predictor fitted before the run, `oracle` the truth,
which only a simulated device can tell.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from cotenant.config import ConfigError
from cotenant.ports import LaneInfo, Learner, LoadMeter, Predictor, ProfileTable
from cotenant.predict.fluid import FluidConfig, FluidPredictor
from cotenant.predict.pair_map import ReducedMap
from cotenant.predict.solo import SoloConfig, SoloPredictor
from cotenant.predict.warm_up import warm_up
from cotenant.predict.zoo.static_linear import StaticLinear
from cotenant.profile.features import FeatureTable
from cotenant.profile.pairs import CoRuns
from cotenant.schedule.policy import Policy
from cotenant.workload.characterise import OnlineLoadMeter
from cotenant.workload.no_load import NoLoad


class Kind(StrEnum):
    """Predictors that policies go with."""

    FLUID = "fluid"
    STATIC_LINEAR = "static_linear"
    ORACLE = "oracle"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """`learns`: from completions; else it stays as profiles and probes have made it. `calibrates`: upper
    quantiles are held to what was missed; else they are as wide as the predictor believes. `meters`: traffic
    is characterised; else nobody is expected to come or to join."""

    kind: Kind = Kind.FLUID
    learns: bool = True
    calibrates: bool = True
    meters: bool = True

    @property
    def whole(self) -> bool:
        """Whether nothing is left out: what was learned is then worth keeping for the next run."""
        return self == Parts()


PARTS: Mapping[str, Parts] = {
    "ours-no-learning": Parts(learns=False),
    "ours-no-load-meter": Parts(meters=False),
    "ours-no-conformal": Parts(calibrates=False),
    "static_linear": Parts(kind=Kind.STATIC_LINEAR, learns=False, calibrates=False, meters=False),
    "oracle": Parts(kind=Kind.ORACLE),
}
"""By the name of a policy; every other one has all."""


def parts_of(policy: Policy) -> Parts:
    """What goes with a policy."""
    return PARTS.get(policy.name, Parts())


def make_load_meter(policy: Policy) -> LoadMeter:
    """A meter that has seen nothing yet."""
    return OnlineLoadMeter() if parts_of(policy).meters else NoLoad()


class Predicting(Predictor, Learner, Protocol):
    """Both halves of a predictor."""


class Served(Predicting, Protocol):
    """What a server can run: it is named in logs, which hold what it knows, and its state can be kept."""

    @property
    def name(self) -> str: ...

    @property
    def features(self) -> FeatureTable: ...

    def copied(self) -> Callable[[], bytes]: ...

    def restore(self, state: bytes, moved_ns: int = 0) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What was measured of a device. `coruns` is asked by predictors that are fitted before the run; it may
    measure first, and raises ConfigError, saying what to do, where it cannot be had."""

    profiles: ProfileTable
    features: FeatureTable
    lanes: Sequence[LaneInfo]
    coruns: Callable[[], CoRuns]


def make_predictor(policy: Policy, device: Measured) -> Served:
    """The predictor that goes with the policy, as it is before the first request. Raises ConfigError for one
    that this device cannot have."""
    parts = parts_of(policy)
    if parts.kind is Kind.ORACLE:
        raise ConfigError(f'policy {policy.name!r} knows the truth, which takes [device] kind = "twin"')
    if parts.kind is Kind.FLUID:
        config = FluidConfig(learns=parts.learns, conformal=parts.calibrates)
        return make_fluid(device.profiles, device.features, device.lanes, config)
    coruns = device.coruns()
    fitted = StaticLinear(coruns.features, device.lanes, device.profiles)
    fitted.fit(coruns.observations)
    return fitted


def unfitted(
    policy: Policy, profiles: ProfileTable, features: FeatureTable, lanes: Sequence[LaneInfo]
) -> Served:
    """The same, knowing nothing but these: to be restored from a state."""
    nothing = CoRuns(features=features, observations=())
    return make_predictor(
        policy, Measured(profiles=profiles, features=features, lanes=lanes, coruns=lambda: nothing)
    )


def make_solo(policy: Policy, profiles: ProfileTable) -> SoloPredictor:
    """What stands in for the fluid predictor where nothing but solo spans was measured."""
    parts = parts_of(policy)
    return SoloPredictor(profiles, SoloConfig(learns=parts.learns, calibrates=parts.calibrates))


def make_fluid(
    profiles: ProfileTable,
    features: FeatureTable,
    lanes: Sequence[LaneInfo],
    config: FluidConfig | None = None,
) -> FluidPredictor:
    """The fluid predictor, nothing learned yet. Raises nothing for what was not measured: it is known by its
    solo profile."""
    config = config or FluidConfig()
    warm_up()
    predictor = FluidPredictor(
        features,
        ReducedMap(features).begin(),
        profiles=profiles,
        screen=SoloPredictor(profiles, SoloConfig(learns=config.learns)),
        lanes=lanes,
        config=config,
    )
    predictor.get_ready()
    return predictor

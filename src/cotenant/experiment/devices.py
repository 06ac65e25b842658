"""The simulated device of a scenario: the one place that finds what it is made of."""

from __future__ import annotations

from cotenant.assemble import simulation_profile
from cotenant.catalogue import Places
from cotenant.config import Scenario
from cotenant.experiment.simulated import SimulatedDevice, simulated_device


def open_device(scenario: Scenario, where: Places) -> SimulatedDevice:
    """Raises ConfigError that says what to measure first."""
    return simulated_device(scenario, simulation_profile(scenario, where))

"""Every model beside every stressor, in both directions: what it suffers and what it causes.

Sensitivity: the model's span beside the stressor over its span alone. Pressure: the stressor's span beside
the model over its own span alone at that intensity. O(models), not O(models^2).
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from driver import Driver
from subjects import Subject

from cotenant.domain import NS_PER_S, Variant

INTENSITIES = (2, 4, 8)
"""Of 8; the stressors' batches."""


@dataclass(frozen=True)
class Stressed:
    """One model beside one stressor."""

    variant: Variant
    resource: str
    intensity: float
    sensitivity: float
    pressure: float
    n: int


def alone(driver: Driver, subject: Subject, variant: Variant, n: int = 5) -> float:
    """Median span (ns) of a few runs after one that does not count."""
    return statistics.median([driver.run(*subject.work(variant)).span_ns for _ in range(n + 1)][1:])


def measure(
    driver: Driver, subjects: dict[str, Subject], stressors: dict[str, Subject], seconds: float
) -> list[Stressed]:
    """Both directions, for the smallest and the largest batch of each model."""
    work = [
        (subject, variant, resource, intensity)
        for subject in subjects.values()
        for variant in (subject.variants[0], subject.variants[-1])
        for resource in stressors
        for intensity in INTENSITIES
    ]
    each_ns = int(seconds * NS_PER_S / len(work))
    stress_ns: dict[tuple[str, int], float] = {}
    found: list[Stressed] = []
    for subject, variant, resource, intensity in work:
        source = stressors[resource]
        level = next(v for v in source.variants if v.rows == intensity)
        if (resource, intensity) not in stress_ns:
            stress_ns[resource, intensity] = alone(driver, source, level)
        solo_ns = alone(driver, subject, variant, 3)
        suffered, caused = driver.beside(subject.work(variant), source.work(level), each_ns)
        found.append(
            Stressed(
                variant=variant,
                resource=resource,
                intensity=intensity / INTENSITIES[-1],
                sensitivity=statistics.median(suffered) / solo_ns,
                pressure=statistics.median(caused) / stress_ns[resource, intensity],
                n=min(len(suffered), len(caused)),
            )
        )
    return found

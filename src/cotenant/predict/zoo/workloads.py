"""Features as the baselines see them, and finished runs as rows of them.

Where lanes have compute units of their own, co-runners have one more resource: which part of the victim's
units they run on. Without it no regressor could tell a neighbour on the same core from one on another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cotenant.domain import Observation, Overlap, Variant
from cotenant.ports import LaneInfo
from cotenant.predict.zoo.encoding import SHARED_UNITS
from cotenant.predict.zoo.seam import Row
from cotenant.profile.features import FeatureTable, WorkloadFeatures

Key = tuple[Variant, float, float]
"""(variant, share, part of the victim's units; 0 for a victim)."""


class Workloads:
    """`table`: the features, extended where lanes lie apart. What is handed out for a key is one object."""

    def __init__(self, source: FeatureTable, lanes: Sequence[LaneInfo]) -> None:
        self._source = source
        self._units = {lane.index: set(lane.units) for lane in lanes}
        units = list(self._units.values())
        self._apart = all(units) and any(a.isdisjoint(b) for a in units for b in units)
        self._known: dict[Key, WorkloadFeatures] = {}
        self.table = source
        if self._apart:
            self.table = FeatureTable((*source.resources, SHARED_UNITS), source.statics)
            for entry in source:
                self.table.add(self.at((entry.variant, entry.share, 0.0)))

    def at(self, key: Key) -> WorkloadFeatures:
        """The features of a key. Raises KeyError for an unknown model."""
        found = self._known.get(key)
        if found is None:
            variant, share, shared = key
            found = self._source.of(variant, share)
            if self._apart:
                found = replace(
                    found,
                    demand=(*found.demand, shared),
                    segment_demand=tuple((*demand, shared) for demand in found.segment_demand),
                )
            self._known[key] = found
        return found

    def forget(self, model: str) -> None:
        """What was handed out of a model that was loaded anew holds no more."""
        self._known = {key: entry for key, entry in self._known.items() if key[0].model != model}

    def key_of(self, workload: WorkloadFeatures) -> Key:
        """The key of what `at` handed out."""
        return workload.variant, workload.share, workload.demand[-1] if self._apart else 0.0

    def victim(self, variant: Variant, share: float) -> WorkloadFeatures:
        """A workload that suffers. Raises KeyError for an unknown model."""
        return self.at((variant, share, 0.0))

    def beside(self, variant: Variant, share: float, lane: int, of_lane: int) -> WorkloadFeatures:
        """A workload on `lane` beside a victim on `of_lane`."""
        shared = 0.0
        if self._apart and lane in self._units and of_lane in self._units:
            mine = self._units[of_lane]
            shared = len(mine & self._units[lane]) / len(mine)
        return self.at((variant, share, shared))

    def row(self, observation: Observation) -> Row | None:
        """A finished run with the shares of its span that others were there; None where it is not known what
        was run."""
        o = observation
        victim = self.victim(o.variant, o.share)
        work = self.work_ns(victim, o)
        span = o.ended_at - o.started_at
        if work <= 0 or span <= 0:
            return None
        others = []
        for overlap in o.overlaps:
            begin, end = clipped(overlap, o.started_at, o.ended_at)
            if end > begin:
                other = self.beside(overlap.variant, overlap.share, overlap.lane, o.lane)
                others.append((other, (end - begin) / span))
        return Row(victim, tuple(others), span / work)

    def work_ns(self, victim: WorkloadFeatures, observation: Observation) -> float:
        """Solo span (ns) of what was run; 0 where that is not known."""
        first, n_ended = observation.first_segment, len(observation.segment_ended_at)
        if first == 0 and not observation.preempted:
            return victim.solo_ns
        last = first + n_ended if observation.preempted else observation.end_segment
        shares = [share for share, _ in victim.segments]
        if len(shares) != observation.end_segment:
            return 0.0
        return victim.solo_ns * sum(shares[first:last])


def clipped(overlap: Overlap, started_at: int, ended_at: int) -> tuple[int, int]:
    """From when to when (instants) the other was there within a run."""
    end = ended_at if overlap.ended_at is None else min(ended_at, overlap.ended_at)
    return max(started_at, overlap.began_at), end

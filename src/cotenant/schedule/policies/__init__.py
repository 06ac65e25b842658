"""Policies, one file each, and the table of their names."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cotenant.ports import LaneInfo
from cotenant.schedule.policies.deferred_edf import DeferredEdf
from cotenant.schedule.policies.exclusive_edf import ExclusiveEdf
from cotenant.schedule.policies.fcfs import Fcfs
from cotenant.schedule.policies.k_edf import KEdf
from cotenant.schedule.policies.ours import Ours
from cotenant.schedule.policy import Policy

POLICIES: dict[str, Callable[[], Policy]] = {
    "fcfs": Fcfs,
    "exclusive_edf": ExclusiveEdf,
    "deferred_edf": DeferredEdf,
    "k_edf": KEdf,
    "ours": Ours,
    "static_linear": lambda: Ours(name="static_linear"),
    "oracle": lambda: Ours(name="oracle"),
    "ours-no-overlap": lambda: Ours(name="ours-no-overlap", overlaps=False),
    "ours-no-deferral": lambda: Ours(name="ours-no-deferral", defers=False),
    "ours-no-learning": lambda: Ours(name="ours-no-learning"),
    "ours-no-load-meter": lambda: Ours(name="ours-no-load-meter"),
    "ours-no-conformal": lambda: Ours(name="ours-no-conformal"),
    "deferred_edf-no-rejection": lambda: DeferredEdf(rejects=False, name="deferred_edf-no-rejection"),
}
"""Name -> factory with the default settings. The last one measures saturated capacity. Several plan alike and
differ in what goes with them by name: predictor, learning, load meter (`cotenant.predictors`)."""

APART, SHARED = "deferred_edf", "ours"
"""What `default`, the policy that the server ships with, resolves to: where lanes share no compute (CPU
cores), and where all share all of it (a GPU). On CPU cores lanes hardly slow each other down, and decisions
take time from the same cores (figures in `docs/policies.md`)."""


def default_for(lanes: Sequence[LaneInfo]) -> str:
    """Name of the policy that `default` stands for on a device with these lanes."""
    shared = len(lanes) > 1 and len({lane.units for lane in lanes}) == 1
    return SHARED if shared else APART


def make_policy(name: str, lanes: Sequence[LaneInfo] = ()) -> Policy:
    """The policy called `name`; `default` is that of a device with these lanes. Raises ValueError that lists
    the known names."""
    resolved = default_for(lanes) if name == "default" else name
    if resolved not in POLICIES:
        known = ", ".join(["default", *POLICIES])
        raise ValueError(f"unknown policy {name!r}; known: {known}")
    return POLICIES[resolved]()

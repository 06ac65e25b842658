"""What a study of policies says in a few figures, from its JSON alone.

Gains, reductions and shares are fractions. Where the study lacks what a figure needs it is null.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from cotenant.experiment.goodput import Points, crosses_at, value_at

SIMPLE = ("fcfs", "exclusive_edf", "deferred_edf", "k_edf")
"""What any better policy has to beat."""
STATIC = "static_linear"
ORACLE = "oracle"
LEVELS = ("0.95", "0.99")
REFERENCE_LEVEL = 0.75
"""Attainment at which policies are compared at one load."""
MISSES_BETWEEN = (0.99, 0.80)
N_BETWEEN = 25
NEAR_LOAD = 0.9
"""Share of the saturated capacity at which costs and predictions are compared."""
HONEST = 0.9
"""The static policy counts as a fair opponent from this share of the best simple policy's goodput on."""
DROPS = ("late", "rejected", "expired", "cancelled", "failed")
FAIRNESS = ("fair", "jain", "worst")
"""Beginnings of the keys of reports that say how evenly models are served."""

Json = Mapping[str, Any]


def summarise(result: Json) -> dict[str, Any]:
    """`best_simple`, `goodput`, `reference` (all at one load), `misses`, `honesty`, `near` (costs and
    predictions)."""
    rows = {row["policy"]: row for row in result["policies"]}
    simple = [name for name in SIMPLE if name in rows]
    best = {level: max(simple, key=lambda name: goodput(rows[name], level), default=None) for level in LEVELS}
    return {
        "best_simple": best,
        "goodput": {name: _goodputs(rows, name, best) for name in rows},
        "reference": at_reference(rows, best["0.95"]),
        "misses": misses(rows, best["0.95"]),
        "honesty": honesty(rows, best["0.95"]),
        "near": near(rows, NEAR_LOAD),
    }


def goodput(row: Json, level: str) -> float:
    """Mean goodput (ok answers per second) of a policy at a level."""
    return float(row["goodput_per_s"][level]["mean"])


def points(row: Json, key: str) -> list[tuple[float, float]]:
    """(scale, value) of one figure of a curve, where it has a value."""
    return [(point["scale"], point[key]) for point in row["curve"] if point.get(key) is not None]


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def _goodputs(rows: Mapping[str, Json], name: str, best: Mapping[str, str | None]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for level in LEVELS:
        mine, simple = goodput(rows[name], level), best[level]
        found[level] = {
            "per_s": mine,
            "to_best_simple": None if simple is None else _ratio(mine, goodput(rows[simple], level)),
            "to_oracle": _ratio(mine, goodput(rows[ORACLE], level)) if ORACLE in rows else None,
        }
    return found


def at_reference(rows: Mapping[str, Json], best: str | None) -> dict[str, Any] | None:
    """Every policy at the load where the static one (else the best simple, else the first) passes 75 %."""
    of = STATIC if STATIC in rows else best or next(iter(rows))
    scale = crosses_at(points(rows[of], "attainment"), REFERENCE_LEVEL)
    if scale is None:
        return None
    theirs = {key: value_at(points(rows[of], key), scale) for key in ("attainment", "tail_variability")}
    found: dict[str, Any] = {"of": of, "scale": scale, "load": value_at(points(rows[of], "load"), scale)}
    found["policies"] = {}
    for name, row in rows.items():
        attained = value_at(points(row, "attainment"), scale)
        tail = value_at(points(row, "tail_variability"), scale)
        gain, less = _ratio(attained, theirs["attainment"]), _ratio(tail, theirs["tail_variability"])
        found["policies"][name] = {
            "attainment": attained,
            "gain": None if gain is None else gain - 1,
            "tail_variability": tail,
            "tail_reduction": None if less is None else 1 - less,
        }
    return found


def misses(rows: Mapping[str, Json], best: str | None) -> dict[str, Any] | None:
    """Misses as a share of the best simple policy's, mean over loads between its 99 % and 80 %, as far as the
    curve goes."""
    if best is None:
        return None
    base = points(rows[best], "attainment")
    if not base:
        return None
    low = crosses_at(base, MISSES_BETWEEN[0]) or base[0][0]
    high = crosses_at(base, MISSES_BETWEEN[1]) or base[-1][0]
    scales = [low * (high / low) ** (k / (N_BETWEEN - 1)) for k in range(N_BETWEEN)]
    return {
        "of": best,
        "between": [low, high],
        "attained": [value_at(base, low), value_at(base, high)],
        "policies": {
            name: _mean_ratio(points(row, "attainment"), base, scales) for name, row in rows.items()
        },
    }


def _mean_ratio(mine: Points, base: Points, scales: Sequence[float]) -> float | None:
    ratios = []
    for scale in scales:
        ours, theirs = value_at(mine, scale), value_at(base, scale)
        if ours is not None and theirs is not None and theirs < 1:
            ratios.append((1 - ours) / (1 - theirs))
    return math.fsum(ratios) / len(ratios) if ratios else None


def honesty(rows: Mapping[str, Json], best: str | None) -> dict[str, Any] | None:
    """Whether the static policy is a fair opponent: its goodput at 95 % beside the best simple one's."""
    if STATIC not in rows or best is None:
        return None
    ratio = _ratio(goodput(rows[STATIC], "0.95"), goodput(rows[best], "0.95"))
    return {"ratio": ratio, "at_least": HONEST, "holds": ratio is not None and ratio >= HONEST}


def near(rows: Mapping[str, Json], load: float) -> dict[str, Any]:
    """Costs, predictions and where misses come from, at the point of the curve nearest to a load (share of
    the saturated capacity)."""
    curve = next(iter(rows.values()))["curve"]
    index = min(range(len(curve)), key=lambda i: abs(math.log(curve[i]["load"] / load)))
    return {
        "load": curve[index]["load"],
        "scale": curve[index]["scale"],
        "policies": {name: _facts(row["curve"][index]) for name, row in rows.items()},
    }


def _facts(point: Json) -> dict[str, Any]:
    offered = point["offered"]
    extra = point["per_class"].get("best_effort")
    prediction = point["prediction"]
    return {
        "attainment": point["attainment"],
        "decision_us_p99": point["decision_us"]["p99"],
        "device_busy": point["device_busy"],
        "device_load": point["device_load"],
        "drops": {kind: _ratio(point[kind], offered) for kind in DROPS},
        "mape": prediction["mape"],
        "coverage": prediction["coverage"],
        "best_effort_per_s": None if extra is None else extra["goodput_per_s"],
        **{key: point[key] for key in point if key.startswith(FAIRNESS)},
    }

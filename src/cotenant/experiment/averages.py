"""Means over seeds: of single figures with their interval, and of whole run reports."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""97.5 % quantile of Student's t for 1 to 30 degrees of freedom."""


def t_975(freedom: int) -> float:
    """97.5 % quantile of Student's t (`freedom` >= 1); beyond the table the first term of its expansion
    about the normal one (Abramowitz and Stegun, 26.7.5)."""
    z = 1.959964
    return T_975[freedom - 1] if freedom <= len(T_975) else z + (z**3 + z) / (4 * freedom)


def half_width(values: Sequence[float]) -> float | None:
    """Half the width of the 95 % confidence interval of the mean; None below two values."""
    n = len(values)
    if n < 2:
        return None
    mean = math.fsum(values) / n
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    return t_975(n - 1) * math.sqrt(variance / n)


def mean_report(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of run reports, key by key and table by table, over those that have a figure there.

    What is no number stays when all agree, else it is the list of what there was. The seed is the first."""
    found = _mean_table(reports)
    if "seed" in reports[0]:
        found["seed"] = reports[0]["seed"]
    return found


def _mean_table(tables: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    keys = dict.fromkeys(key for table in tables for key in table)
    return {key: _mean([table[key] for table in tables if key in table]) for key in keys}


def _mean(values: Sequence[Any]) -> Any:
    known = [value for value in values if value is not None]
    if not known:
        return None
    if all(isinstance(value, Mapping) for value in known):
        return _mean_table(known)
    if all(value == known[0] for value in known):
        return known[0]
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in known):
        return math.fsum(known) / len(known)
    return list(dict.fromkeys(str(value) for value in known))

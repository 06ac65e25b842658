"""What only the server knows of a run, read from its metrics before and after."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from msgspec import Struct
from prometheus_client.parser import text_string_to_metric_families

DECISIONS = "cotenant_decision_seconds_bucket"
LEVELS = ("0.9", "0.95", "0.99")


class ServerFacts(Struct, frozen=True):
    """Counters of a server at an instant: (name, labels) -> value. Empty when it has no metrics page."""

    values: Mapping[tuple[str, tuple[tuple[str, str], ...]], float]

    def total(self, name: str, **labels: str) -> float:
        """Sum over all label sets that contain `labels`."""
        wanted = set(labels.items())
        return sum(v for (n, found), v in self.values.items() if n == name and wanted <= set(found))

    def since(self, before: ServerFacts, duration_s: float) -> dict[str, Any]:
        """The report's keys that these counters can tell, for the time between the two readings."""

        def grown(name: str, **labels: str) -> float:
            return self.total(name, **labels) - before.total(name, **labels)

        lanes = {dict(found)["lane"] for n, found in self.values if n == "cotenant_lane_busy_seconds_total"}
        n = grown("cotenant_predictions_total")
        n_errors = grown("cotenant_prediction_absolute_error_count")
        n_batches = grown("cotenant_batch_rows_count")
        return {
            "device_busy": min(1.0, grown("cotenant_device_busy_seconds_total") / duration_s),
            "device_load": min(
                1.0, grown("cotenant_lane_busy_seconds_total") / duration_s / max(1, len(lanes))
            ),
            "mean_batch": _ratio(grown("cotenant_batch_rows_sum"), n_batches),
            "prediction": {
                "n": int(n),
                "mape": _ratio(grown("cotenant_prediction_absolute_error_sum"), n_errors),
                "median_ape": None,
                "p90_ape": None,
                "signed_error": _ratio(grown("cotenant_prediction_signed_error_sum"), n_errors),
                "coverage": {
                    level: _ratio(grown("cotenant_predictions_covered_total", level=level), n)
                    for level in LEVELS
                },
                "width": dict.fromkeys(LEVELS),
            },
            "decision_us": self._decisions(before),
        }

    def _decisions(self, before: ServerFacts) -> dict[str, float | None]:
        """Percentiles of the decision time: upper bounds of the histogram's buckets (us)."""
        counts = sorted(
            (float(dict(found)["le"]), value - before.values.get((name, found), 0.0))
            for (name, found), value in self.values.items()
            if name == DECISIONS
        )
        total = counts[-1][1] if counts else 0.0
        result: dict[str, float | None] = {}
        for name, level in (("p50", 0.5), ("p99", 0.99)):
            bound = next((le for le, n in counts if total and n >= level * total), None)
            result[name] = None if bound is None or bound == float("inf") else bound * 1e6
        return result


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None


async def server_facts(url: str) -> ServerFacts:
    """Read the server's metrics page; a server without one gives no facts."""

    def fetch() -> ServerFacts:
        try:
            with urllib.request.urlopen(url.rstrip("/") + "/metrics", timeout=10) as page:
                text = page.read().decode()
        except (OSError, urllib.error.URLError):
            return ServerFacts({})
        values = {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
        return ServerFacts(values)

    return await asyncio.to_thread(fetch)

"""Baselines that the fluid predictor must beat, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cotenant.ports import LaneInfo
from cotenant.predict.study_port import StudyPredictor
from cotenant.profile.features import FeatureTable

BASELINES: dict[str, Callable[[FeatureTable, Sequence[LaneInfo]], StudyPredictor]] = {}
"""Name -> how to make it."""

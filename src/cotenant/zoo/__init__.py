"""The model zoo: seven models made on this machine from seeds, so that nothing is downloaded."""

from __future__ import annotations

from cotenant.zoo.build import DEFAULT_BUCKETS, NAMES, build, ensure, path_of

__all__ = ["DEFAULT_BUCKETS", "NAMES", "build", "ensure", "path_of"]

"""What may be said of an error to a stranger."""

from __future__ import annotations

import re

_PATH = re.compile(r"(?<![\w.])(?:[A-Za-z]:)?[/\\](?:[\w.+~-]+[/\\])+[\w.+~-]*")


def without_paths(text: str) -> str:
    """The text in one line, fit for a stranger: folders are nobody's business."""
    return _PATH.sub("...", " ".join(text.split()))

"""Labels of a model's outputs: what the elements stand for, one per line of a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from msgspec import structs

from cotenant.domain import ModelMetadata, TensorSpec

ALL = "*"
"""Stands for every output of a model."""
MOST_BYTES = 1 << 20
"""Largest file of labels: every front end is told them with the rest of what a model is."""


def labelled(metadata: ModelMetadata, files: Mapping[str, Path]) -> ModelMetadata:
    """The metadata with the labels that `files` hold, by output, or by `ALL`. Raises ValueError when a file
    cannot be read or there is no such output."""
    if not files:
        return metadata
    names = [spec.name for spec in metadata.outputs]
    for name in files:
        if name != ALL and name not in names:
            raise ValueError(f"labels: the model has no output {name!r}; it has {', '.join(names)}")

    def with_labels(spec: TensorSpec) -> TensorSpec:
        file = files.get(spec.name, files.get(ALL))
        return spec if file is None else structs.replace(spec, labels=_read(file))

    return structs.replace(metadata, outputs=tuple(map(with_labels, metadata.outputs)))


def _read(path: Path) -> tuple[str, ...]:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"labels: {path.name} is larger than {MOST_BYTES >> 20} MiB")
        return tuple(path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ValueError(f"labels: {path.name} cannot be read: {reason}") from error

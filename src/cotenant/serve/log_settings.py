"""The log settings that clients see and change: which severities this process logs.

They hold for the loggers below `cotenant`. File and format of the log belong to whoever runs the server.
A logger's level says from which severity on it logs; where one above it is switched off, whoever handles its
records filters them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping

from cotenant.serve.errors import BadRequest

SEVERITIES = {
    "log_info": logging.INFO,
    "log_warning": logging.WARNING,
    "log_error": logging.ERROR,
}
VERBOSE = "log_verbose_level"
FIXED: Mapping[str, object] = {"log_file": "", "log_format": "default"}
"""Settings that are what they are: the log goes to standard error."""
SILENT = logging.CRITICAL + 1


class LogSettings(logging.Filter):
    """The settings of one logger; also the filter that honours them."""

    def __init__(self, logger: logging.Logger) -> None:
        """Takes over what the logger's level says; nothing is changed before `update`."""
        super().__init__()
        self._logger = logger
        level = logger.getEffectiveLevel()
        self._on: dict[str, bool] = {name: level <= severity for name, severity in SEVERITIES.items()}
        self._verbose = level <= logging.DEBUG

    def get(self) -> dict[str, object]:
        """Every setting."""
        return {**self._on, VERBOSE: int(self._verbose), **FIXED}

    def update(self, wanted: Mapping[str, object]) -> None:
        """Change the settings that are named, all or none. Raises BadRequest."""
        for name, value in wanted.items():
            self._check(name, value)
        for name, value in wanted.items():
            if name in SEVERITIES:
                self._on[name] = bool(value)
            elif name == VERBOSE:
                self._verbose = bool(value)
        self._apply()

    def _check(self, name: str, value: object) -> None:
        if name in SEVERITIES:
            if not isinstance(value, bool):
                raise BadRequest(400, f"{name}: expected true or false, got {value!r:.40}")
        elif name == VERBOSE:
            if type(value) is not int or value not in (0, 1):
                raise BadRequest(400, f"{name}: expected 0 or 1 (all that there is), got {value!r:.40}")
        elif name not in FIXED:
            known = ", ".join((*SEVERITIES, VERBOSE))
            raise BadRequest(400, f"{name:.100}: unknown log setting; known: {known}")
        elif value != FIXED[name]:
            raise BadRequest(400, f"{name}: cannot be changed over the API; it is '{FIXED[name]}'")

    def _apply(self) -> None:
        on = [severity for name, severity in SEVERITIES.items() if self._on[name]]
        level = logging.DEBUG if self._verbose else min(on, default=SILENT)
        self._logger.setLevel(level)
        level_says_it = all(severity in on for severity in SEVERITIES.values() if severity >= level)
        for handler in _handlers(self._logger):
            handler.removeFilter(self)
            if not level_says_it:
                handler.addFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record's severity is switched on; what is worse than an error goes with errors. Records
        of other loggers pass."""
        if record.name != self._logger.name and not record.name.startswith(f"{self._logger.name}."):
            return True
        if record.levelno < logging.INFO:
            return self._verbose
        name = max((s, n) for n, s in SEVERITIES.items() if s <= record.levelno)[1]
        return self._on[name]


def _handlers(logger: logging.Logger) -> Iterator[logging.Handler]:
    """Whoever handles the logger's records: handlers of its own, and of those above it."""
    at: logging.Logger | None = logger
    while at is not None:
        yield from at.handlers
        at = at.parent if at.propagate else None

"""The log settings that clients see and change: which severities this process logs.

They hold for the loggers below `cotenant`. File and format of the log belong to whoever runs the server.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

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
        """Takes over what the logger's level says. Call it when its handlers are there."""
        super().__init__()
        self._logger = logger
        level = logger.getEffectiveLevel()
        self._on: dict[str, bool] = {name: level <= severity for name, severity in SEVERITIES.items()}
        self._verbose = level <= logging.DEBUG
        self._apply()

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
        self._logger.setLevel(logging.DEBUG if self._verbose else min(on, default=SILENT))
        for holder in (self._logger, *self._logger.handlers):
            if self not in holder.filters:
                holder.addFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record's severity is switched on; what is worse than an error goes with errors."""
        if record.levelno < logging.INFO:
            return self._verbose
        name = max((s, n) for n, s in SEVERITIES.items() if s <= record.levelno)[1]
        return self._on[name]

"""Structured logs: one set-up for the whole process, lines of text or JSON on one stream.

How this works. Everything goes through Python's `logging`; a line of ours has a stable event name and fields
besides its message. The handler on the root logger only remembers the record: a thread formats and writes it,
because a stream whose reader is slow would hold up whoever decides. What does not fit is dropped and counted.
Fields hold ids, names and figures; never tensors, headers or keys.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TextIO

import msgspec

FORMATS = ("text", "json")
LEVELS = ("debug", "info", "warning", "error")
ROOT = "cotenant"
WAITING = 10_000
"""Records that may wait for the stream; beyond it the newest are dropped."""
LONGEST = 4000
"""Characters of a message or of a field that are shown."""
SECRET = ("authorization", "cookie", "key", "password", "secret", "token")
"""Fields whose names contain one of these are never shown: a guard, nobody should hand them over."""
QUIET = ("uvicorn", "asyncio")
"""Loggers of libraries that are heard from their warnings on."""

Value = str | int | float | bool | None
Fields = dict[str, Value]


class Logger:
    """Logs events. Cheap where the level is off."""

    __slots__ = ("_logger",)

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(f"{ROOT}.{name}")

    def debug(self, event: str, message: str, **fields: Value) -> None:
        """For whoever looks for a fault."""
        self._log(logging.DEBUG, event, message, fields)

    def info(self, event: str, message: str, **fields: Value) -> None:
        """What an operator wants to know."""
        self._log(logging.INFO, event, message, fields)

    def warning(self, event: str, message: str, **fields: Value) -> None:
        """Something does not work as it should; service goes on."""
        self._log(logging.WARNING, event, message, fields)

    def error(self, event: str, message: str, **fields: Value) -> None:
        """Requests fail for it."""
        self._log(logging.ERROR, event, message, fields)

    def _log(self, level: int, event: str, message: str, fields: Fields) -> None:
        if self._logger.isEnabledFor(level):
            extra = {"cotenant_event": event, "cotenant_fields": fields}
            self._logger.log(level, "%s", message, extra=extra)


class Background(logging.Handler):
    """Writes records from a thread of its own; `emit` only remembers them."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self.n_dropped = 0
        self._stream = stream
        self._waiting: deque[logging.LogRecord] = deque()
        self._awake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._loop, name="cotenant-log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Have a record written soon."""
        if len(self._waiting) >= WAITING:
            self.n_dropped += 1
            return
        self._waiting.append(record)
        self._awake.set()

    def finish(self, wait_s: float = 2.0) -> None:
        """Write what is left, and stop; waits no longer than `wait_s` for a stream that takes nothing."""
        self._closing = True
        self._awake.set()
        self._thread.join(wait_s)

    def _loop(self) -> None:
        n_told = 0
        while True:
            self._awake.wait()
            self._awake.clear()
            closing = self._closing
            with suppress(OSError, ValueError):  # the stream is closed: nobody is left to tell
                while self._waiting:
                    self._stream.write(self.format(self._waiting.popleft()) + "\n")
                if self.n_dropped > n_told:
                    n_told = self.n_dropped
                    self._stream.write(self.format(_dropped(n_told)) + "\n")
                self._stream.flush()
            if closing:
                return


def _dropped(n: int) -> logging.LogRecord:
    message = f"{n} lines were dropped so far: the stream takes them too slowly"
    record = logging.LogRecord(ROOT, logging.WARNING, "", 0, message, None, None)
    record.cotenant_event, record.cotenant_fields = "log.dropped", {"n_dropped": n}
    return record


class JsonLines(logging.Formatter):
    """One JSON object per line: time, level, event, message, fields, and `traceback` where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        line: Fields = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "event": _event(record),
            "message": record.getMessage()[:LONGEST],
            **_fields(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()


class TextLines(logging.Formatter):
    """`TIME LEVEL EVENT MESSAGE name=value ...`; a traceback follows on lines of its own."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        message = record.getMessage()[:LONGEST].replace("\n", "\\n")
        fields = [f"{name}={_shown(value)}" for name, value in _fields(record).items() if value is not None]
        line = " ".join([_time(record), record.levelname.lower(), _event(record), message, *fields])
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _time(record: logging.LogRecord) -> str:
    return (
        datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    )


def _event(record: logging.LogRecord) -> str:
    return str(getattr(record, "cotenant_event", record.name))


def _fields(record: logging.LogRecord) -> Fields:
    fields: Fields = getattr(record, "cotenant_fields", {})
    return {name: _safe(name, value) for name, value in fields.items()}


def _safe(name: str, value: Value) -> Value:
    if any(word in name.lower() for word in SECRET):
        return "[hidden]"
    return value[:LONGEST] if isinstance(value, str) else value


def _shown(value: Value) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    plain = text and not any(char.isspace() or char in '"=' for char in text)
    return text if plain else msgspec.json.encode(text).decode()


@contextmanager
def logging_to(stream: TextIO, form: str = "text", level: str = "info") -> Iterator[Background]:
    """Send the logs of this process to the stream, in one of `FORMATS`, from one of `LEVELS` on."""
    root = logging.getLogger()
    handler = Background(stream)
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    levels = {name: logging.getLogger(name).level for name in (ROOT, *QUIET)}
    logging.getLogger(ROOT).setLevel(level.upper())
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    root.addHandler(handler)
    try:
        yield handler
    finally:
        root.removeHandler(handler)
        for name, before in levels.items():
            logging.getLogger(name).setLevel(before)
        handler.finish()

"""Log and trace settings: what can be honoured works, everything else is refused by name."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from serving import Server

from cotenant.serve.log_settings import LogSettings

LOG, TRACE = "/v2/logging", "/v2/trace/setting"


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """The logger as it was."""
    logger = logging.getLogger("cotenant")
    level = logger.level
    yield
    logger.setLevel(level)


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@pytest.fixture
def logged() -> Iterator[tuple[LogSettings, Kept, logging.Logger]]:
    parent, kept = logging.getLogger("settings-test"), Kept()
    parent.addHandler(kept)
    parent.setLevel(logging.INFO)
    parent.propagate = False
    yield LogSettings(parent), kept, logging.getLogger("settings-test.child")
    parent.handlers.clear()
    parent.filters.clear()


def say_everything(logger: logging.Logger) -> None:
    for level in ("debug", "info", "warning", "error", "critical"):
        getattr(logger, level)(level)


@pytest.mark.parametrize(
    ("wanted", "heard"),
    [
        ({}, "info warning error critical"),
        ({"log_verbose_level": 1}, "debug info warning error critical"),
        ({"log_info": False}, "warning error critical"),
        ({"log_warning": False}, "info error critical"),
        ({"log_info": False, "log_warning": False, "log_error": False}, ""),
        ({"log_error": False, "log_verbose_level": 1}, "debug info warning"),
    ],
)
def test_severities_are_switched_on_and_off_one_by_one(logged: Any, wanted: Any, heard: str) -> None:
    settings, kept, child = logged
    settings.update(wanted)
    say_everything(child)
    assert kept.texts == heard.split()
    assert wanted.items() <= settings.get().items()


def test_the_route_shows_and_changes_them(server: Server) -> None:
    before = server.get(LOG).json
    assert set(before) == {
        "log_file",
        "log_info",
        "log_warning",
        "log_error",
        "log_verbose_level",
        "log_format",
    }
    changed = server.ask("POST", LOG, {"log_info": not before["log_info"], "log_file": ""})
    assert changed.json == {**before, "log_info": not before["log_info"]} == server.get(LOG).json
    assert server.ask("POST", LOG, before).json == before


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ({"log_file": "/tmp/x"}, "log_file: cannot be changed"),
        ({"log_format": "ISO8601"}, "log_format: cannot be changed"),
        ({"log_info": 1}, "log_info: expected true or false, got 1"),
        ({"log_verbose_level": 2}, "log_verbose_level: expected 0 or 1"),
        ({"log_verbose_level": True}, "log_verbose_level: expected 0 or 1"),
        ({"log_warnings": True}, "log_warnings: unknown log setting"),
        ([], "expected object"),
        (b"{", "truncated"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name_and_changes_nothing(
    server: Server, body: Any, complaint: str
) -> None:
    before = server.get(LOG).json
    if isinstance(body, dict):
        body = {"log_error": not before["log_error"], **body}
    answer = server.ask("POST", LOG, body)
    assert (answer.status, complaint in answer.error) == (400, True), answer.error
    assert server.get(LOG).json == before


@pytest.mark.parametrize("path", [TRACE, "/v2/models/echo/trace/setting"])
def test_tracing_is_off_and_can_be_switched_off(server: Server, path: str) -> None:
    off = server.get(path).json
    assert off["trace_level"] == ["OFF"]
    for body in (None, {}, off, {"trace_level": "OFF"}, {"trace_level": None, "trace_rate": None}):
        answer = server.ask("POST", path, body)
        assert (answer.status, answer.json) == (200, off)


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ({"trace_level": ["TIMESTAMPS"]}, "trace_level: this server writes no trace files"),
        ({"trace_file": "/tmp/x"}, "trace_file: this server writes no trace files"),
        ({"trace_rate": "5"}, "trace_rate: this server writes no trace files"),
        ({"rate": "5"}, "rate: unknown trace setting; known: trace_level"),
    ],
)
def test_other_trace_settings_are_refused_by_name(server: Server, body: Any, complaint: str) -> None:
    answer = server.ask("POST", TRACE, body)
    assert (answer.status, complaint in answer.error) == (400, True)


def test_trace_settings_are_those_of_models_that_there_are(server: Server) -> None:
    assert server.get("/v2/models/nope/trace/setting").status == 404
    assert server.ask("POST", "/v2/models/nope/trace/setting", {}).status == 404


def test_web_pages_change_no_settings(server: Server) -> None:
    for path in (LOG, TRACE):
        assert server.ask("POST", path, {}, {"Origin": "http://evil.example"}).status == 403

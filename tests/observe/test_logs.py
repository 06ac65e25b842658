"""Log lines have a stable form, hold no secrets, and never hold up whoever logs."""

from __future__ import annotations

import io
import json
import logging
import threading
from typing import Any

import pytest

from cotenant.clock import VirtualClock
from cotenant.domain import NS_PER_MS, NS_PER_S, Completion, Dispatch, Prediction, Request, Snapshot, Variant
from cotenant.telemetry.logs import WAITING, Logger, logging_to
from cotenant.telemetry.reports import Reports

LOG = Logger("test")


def lines(form: str, level: str, log: Any) -> list[str]:
    stream = io.StringIO()
    with logging_to(stream, form, level):
        log()
    return stream.getvalue().splitlines()


def test_json_lines_have_an_event_a_level_a_message_and_fields() -> None:
    def log() -> None:
        LOG.warning("model.odd", 'it says "so"\nand more', model="m", n=3, share=0.5, nothing=None)

    (line,) = [json.loads(line) for line in lines("json", "info", log)]
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "warning",
        "event": "model.odd",
        "message": 'it says "so"\nand more',
        "model": "m",
        "n": 3,
        "share": 0.5,
        "nothing": None,
    }


def test_text_lines_stay_on_one_line() -> None:
    (line,) = lines(
        "text", "info", lambda: LOG.info("a.b", "one\ntwo", model="m", why="two words", none=None)
    )
    assert line.endswith('info a.b one\\ntwo model=m why="two words"')


@pytest.mark.parametrize(("level", "n"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_what_is_below_the_level_is_not_logged(level: str, n: int) -> None:
    def log() -> None:
        for name in ("debug", "info", "warning", "error"):
            getattr(LOG, name)("some.event", "text")

    assert len(lines("text", level, log)) == n


def test_fields_that_sound_like_secrets_are_hidden() -> None:
    def log() -> None:
        LOG.info("auth.refused", "no", api_key="hunter2", Authorization="Bearer hunter2", tenant="t")

    text = "\n".join(lines("json", "info", log) + lines("text", "info", log))
    assert "hunter2" not in text
    assert text.count("[hidden]") == 4


def test_libraries_log_through_the_same_lines_from_their_warnings_on() -> None:
    def log() -> None:
        logging.getLogger("uvicorn.error").info("Started server process")
        try:
            raise RuntimeError("inside")
        except RuntimeError:
            logging.getLogger("uvicorn.error").exception("Exception in %s", "ASGI")

    (line,) = [json.loads(line) for line in lines("json", "debug", log)]
    assert (line["event"], line["message"]) == ("uvicorn.error", "Exception in ASGI")
    assert "RuntimeError: inside" in line["traceback"]


def test_a_stream_that_takes_nothing_holds_nobody_up_and_what_is_lost_is_counted() -> None:
    class Stuck(io.StringIO):
        go_on = threading.Event()

        def write(self, text: str) -> int:
            self.go_on.wait()
            return super().write(text)

    stream = Stuck()
    with logging_to(stream) as handler:
        for _ in range(WAITING + 50):
            LOG.info("a.b", "text")
        assert handler.n_dropped > 0
        stream.go_on.set()
    last = stream.getvalue().splitlines()[-1]
    assert "log.dropped" in last
    assert f"n_dropped={handler.n_dropped}" in last


def test_logging_is_as_before_afterwards() -> None:
    before = list(logging.getLogger().handlers)
    with logging_to(io.StringIO()):
        assert len(logging.getLogger().handlers) == len(before) + 1
    assert logging.getLogger().handlers == before


# --- reports ----------------------------------------------------------------------------------------------


def failed(number: int) -> tuple[Dispatch, Completion]:
    variant = Variant("m", 2)
    requests = tuple(
        Request(id=f"r{number}-{k}", model="m", arrived_at=0, deadline_at=None) for k in range(2)
    )
    prediction = Prediction(issued_at=0, finish_at=(1,) * 5, slo_level=0.99, version=0, corunners=0)
    dispatch = Dispatch(
        id=number,
        variant=variant,
        requests=requests,
        rows=2,
        lane=0,
        share=1.0,
        decided_at=0,
        latest_start_at=None,
        first_segment=0,
        end_segment=1,
        prediction=prediction,
        snapshot=Snapshot(at=0, in_flight=()),
    )
    error = "RuntimeError: weights are gone"
    return dispatch, Completion(dispatch_id=number, lane=0, started_at=0, ended_at=3 * NS_PER_MS, error=error)


def test_a_failed_run_is_logged_with_its_details_and_the_ids_of_its_requests() -> None:
    (line,) = [
        json.loads(x) for x in lines("json", "info", lambda: Reports(lambda: 0).run_failed(*failed(7)))
    ]
    assert (line["event"], line["level"]) == ("run.failed", "error")
    assert line["message"] == "RuntimeError: weights are gone"
    assert (line["model"], line["dispatch"], line["run_ms"]) == ("m", 7, 3.0)
    assert line["request_id"] == "r7-0"
    assert line["request_ids"] == "r7-0 r7-1"


def test_failures_are_logged_at_a_bounded_rate_and_what_was_left_out_is_counted() -> None:
    clock = VirtualClock()

    def log() -> None:
        reports = Reports(clock.now)
        for number in range(1000):
            reports.run_failed(*failed(number))
        clock.advance_to(NS_PER_S)
        reports.run_failed(*failed(1000))

    found = [json.loads(line) for line in lines("json", "info", log)]
    assert len(found) == 11
    assert found[-1]["left_out"] == 990

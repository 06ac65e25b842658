"""Explain one request: ask a running server, or look into the store, and show it."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cotenant.telemetry.explanation import ENDED, Explanation, counted, shown
from cotenant.telemetry.slow_store import find_slow

NOT_FOUND = 404


class NotRememberedError(ValueError):
    """The server was reached and knows nothing of the request."""


class NotReachedError(ValueError):
    """No server answered."""


def explain_request(url: str, request_id: str, slow: Path) -> dict[str, Any]:
    """What is known of the request: by the server at `url`, else by the file of slow requests. Raises
    ValueError with a clear message when nothing is."""
    try:
        return ask_server(url, request_id)
    except (NotRememberedError, NotReachedError) as error:
        kept = find_slow(slow, request_id)
        if kept is None:
            where = f"{slow} holds nothing of it" if slow.is_file() else f"there is no {slow}"
            raise ValueError(f"{error}; of slow requests that were kept, {where}") from None
    found: dict[str, Any] = msgspec.to_builtins(kept)
    return found


def ask_server(url: str, request_id: str) -> dict[str, Any]:
    """What the server at `url` knows of it. Raises NotRememberedError, NotReachedError or ValueError."""
    address = f"{url.rstrip('/')}/v2/requests/{urllib.parse.quote(request_id, safe='')}"
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            found: dict[str, Any] = json.load(answer)
            return found
    except urllib.error.HTTPError as error:
        why = _error_of(error)
        if error.code == NOT_FOUND:
            raise NotRememberedError(f"{url}: {why}") from None
        raise ValueError(f"{url} answered {error.code}: {why}") from None
    except (urllib.error.URLError, TimeoutError, OSError, ValueError) as error:
        raise NotReachedError(f"{url} cannot be asked: {getattr(error, 'reason', error)}") from None


def _error_of(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(error)["error"])
    except (ValueError, KeyError, TypeError, OSError):
        return error.reason or "no reason given"


# --- for people -------------------------------------------------------------------------------------------


def show_explanation(console: Console, found: dict[str, Any]) -> None:
    """One sentence, then where the time went, what was predicted, and who ran beside."""
    told = msgspec.convert(found, Explanation)
    console.print(f"[bold]{escape(told.id)}[/] {escape(told.model)}: {escape(told.sentence)}", soft_wrap=True)
    spans = Table("", "from", "span", box=None, pad_edge=False, header_style="dim")
    for name, begin, span in _spans(told):
        spans.add_row(name, "" if begin is None else shown(begin), shown(span))
    if spans.row_count:
        console.print(spans)
    if told.predicted:
        console.print(_predictions(told))
    if told.decision is not None:
        _show_decision(console, told)
    if told.corunners:
        console.print(_corunners(told))


def _spans(told: Explanation) -> Iterator[tuple[str, float | None, float]]:
    """Name, begin and length of each stretch (ms)."""
    at = told.read_ms or 0.0
    if told.read_ms is not None:
        yield "received", 0.0, told.read_ms
    if told.queue_ms is not None:
        yield "waited", at, told.queue_ms
        parts = (
            ("  every lane taken", told.lanes_busy_ms),
            ("  kept apart from what ran", told.apart_ms),
            ("  with every lane free", told.batch_wait_ms),
        )
        for name, ms in parts:
            if ms:
                yield name, None, ms
        at += told.queue_ms
    if told.staged_ms is not None:
        yield "handed over", at, told.staged_ms
    if told.run_ms is not None:
        yield "ran", told.started_ms, told.run_ms
    if told.suspended_ms is not None:
        yield "  suspended meanwhile", None, told.suspended_ms
    if told.answer_ms is not None:
        yield "answered", told.ended_ms, told.answer_ms


def _predictions(told: Explanation) -> Table:
    """Finish by level as predicted at dispatch, beside what was."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("finish")
    row = ["predicted"]
    for level, ms in told.predicted.items():
        table.add_column(level, justify="right")
        row.append(shown(ms))
    for name, value in (
        ("actual", told.ended_ms if told.state == ENDED else None),
        ("due", told.deadline_ms),
    ):
        if value is not None:
            table.add_column(name, justify="right")
            row.append(shown(value))
    table.add_row(*row)
    return table


def _show_decision(console: Console, told: Explanation) -> None:
    decision = told.decision
    assert decision is not None
    held = f"{counted(told.batch_rows, 'row')} of {counted(told.batch_requests or 0, 'request')}"
    batch = f"{told.variant}, {held}, lane {told.lane}"
    beside = f", beside {', '.join(decision.beside)}" if decision.beside else ""
    console.print(f"dispatched {escape(f'{batch}: {decision.why}{beside}')}", soft_wrap=True)
    for other in decision.alternatives:
        due = "no deadline" if other.due_ms is None else f"due after {shown(other.due_ms)}"
        console.print(f"  instead of {escape(f'{other.variant} ({due}): {other.why}')}", soft_wrap=True)


def _corunners(told: Explanation) -> Table:
    table = Table(
        "ran beside", "rows", "lane", "for", "of the run", box=None, pad_edge=False, header_style="dim"
    )
    for other in told.corunners:
        share = f"{other.share:.0%}"
        table.add_row(escape(other.variant), str(other.rows), str(other.lane), shown(other.ms), share)
    return table

"""W3C trace context is read as the specification says, and what does not follow it is taken as absent."""

from __future__ import annotations

import pytest

from cotenant.telemetry.trace_context import parse

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{SPAN}-01"


def test_a_parent_is_read_and_written_back() -> None:
    parent = parse(GOOD, "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE")
    assert parent is not None
    assert (parent.trace_id, parent.span_id, parent.sampled) == (TRACE, SPAN, True)
    assert parent.state == "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"
    assert parent.header == GOOD


@pytest.mark.parametrize(
    ("flags", "sampled"), [("00", False), ("01", True), ("02", False), ("03", True), ("ff", True)]
)
def test_only_the_lowest_flag_says_sampled(flags: str, sampled: bool) -> None:
    parent = parse(f"00-{TRACE}-{SPAN}-{flags}")
    assert parent is not None
    assert parent.sampled is sampled


def test_a_later_version_may_say_more() -> None:
    assert parse(f"cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like") is not None
    assert parse(f"cc-{TRACE}-{SPAN}-01") is not None


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "00",
        GOOD.upper(),
        GOOD + "-more",
        GOOD + "x",
        f"cc-{TRACE}-{SPAN}-01.more",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[:-1]}-{SPAN}-01",
        f"{GOOD}, {GOOD}",
        GOOD + "\n" + GOOD,
    ],
)
def test_what_does_not_follow_the_specification_is_no_parent(text: str | None) -> None:
    assert parse(text) is None


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (None, ""),
        (" a=1 , b=2 ,, ", "a=1,b=2"),
        ("tenant@vendor=x", "tenant@vendor=x"),
        ("a=1,a=2", ""),
        ("no value", ""),
        ("a=b=c", ""),
        ("a=\r\nset-cookie: x", ""),
        ("a=" + "x" * 600, ""),
        (",".join(f"k{n}=1" for n in range(33)), ""),
    ],
)
def test_a_state_that_cannot_be_understood_is_not_passed_on(text: str | None, kept: str) -> None:
    parent = parse(GOOD, text)
    assert parent is not None
    assert parent.state == kept

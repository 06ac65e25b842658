"""W3C Trace Context: the headers `traceparent` and `tracestate`, read and written.

What does not follow https://www.w3.org/TR/trace-context/ is taken as absent, as that asks: the trace then
begins here.
"""

from __future__ import annotations

import re

from msgspec import Struct

TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?\Z")
SAMPLED = 0x01
LONGEST_STATE = 512
"""Characters of a `tracestate` that is passed on; a longer one is dropped."""
MOST_MEMBERS = 32
MEMBER = re.compile(r"[a-z0-9][a-z0-9_\-*/@]{0,255}=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{1,256}(?<! )\Z")


class TraceParent(Struct, frozen=True):
    """Who asks: ids in hexadecimal, whether the caller samples the trace, and its `tracestate`."""

    trace_id: str
    span_id: str
    sampled: bool
    state: str = ""

    @property
    def header(self) -> str:
        """As a `traceparent`."""
        return f"00-{self.trace_id}-{self.span_id}-{SAMPLED if self.sampled else 0:02x}"


def parse(traceparent: str | None, tracestate: str | None = None) -> TraceParent | None:
    """The caller's span; None where there is none, or none that can be understood. Of several `tracestate`
    headers the values are joined by commas; several `traceparent` are none."""
    found = TRACEPARENT.match(traceparent.strip()) if traceparent else None
    if found is None:
        return None
    version, trace_id, span_id, flags, rest = found.groups()
    if version == "ff" or (version == "00" and rest) or not int(trace_id, 16) or not int(span_id, 16):
        return None
    return TraceParent(trace_id, span_id, bool(int(flags, 16) & SAMPLED), _state(tracestate))


def _state(text: str | None) -> str:
    """The `tracestate` to pass on; empty when it is not to be understood."""
    if not text or len(text) > LONGEST_STATE:
        return ""
    members = [member.strip() for member in text.split(",") if member.strip()]
    names = {member.partition("=")[0] for member in members}
    good = len(names) == len(members) <= MOST_MEMBERS and all(map(MEMBER.match, members))
    return ",".join(members) if good else ""

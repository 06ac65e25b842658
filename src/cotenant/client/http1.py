"""HTTP/1.1 as both clients speak it: a request as bytes, an answer out of the bytes that come."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httptools

from cotenant.client.wire import Reply, Server


def request_bytes(server: Server, method: str, path: str, headers: Mapping[str, str], body: bytes) -> bytes:
    """A whole request. Raises ValueError for a header or a path that could be taken for several."""
    if not path.isprintable() or " " in path:
        raise ValueError(f"{path!r} is no path of a URL")
    lines = [f"{method} {server.base}{path} HTTP/1.1", f"host: {server.authority}"]
    for name, value in {**headers, "content-length": str(len(body))}.items():
        if "\r" in value or "\n" in value:
            raise ValueError(f"header {name!r} holds a line break")
        lines.append(f"{name}: {value}")
    return "\r\n".join((*lines, "", "")).encode("latin-1") + body


class AnswerParser:
    """Collects one answer. `reply` is set once it is complete, then `reusable` says whether the connection
    may be kept."""

    def __init__(self) -> None:
        self.reply: Reply | None = None
        self.reusable = False
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []
        self._parser: Any = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> Reply | None:
        """Take in what has come; the answer, if it is complete. Raises ConnectionError for what is not
        HTTP."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            raise ConnectionError(f"the answer is not HTTP: {error}") from None
        return self.reply

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, data: bytes) -> None:
        self._body.append(data)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:  # informational: the answer itself is still to come
            self._headers, self._body = {}, []
            return
        self.reusable = self._parser.should_keep_alive()
        self.reply = Reply(status, self._headers, b"".join(self._body))

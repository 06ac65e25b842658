"""How many objects a JSON text would become, before any is made.

A decoder makes dozens of bytes of every two or three bytes of `[],[],[]`. Counting separators in the text is
nearly free, and bounds what decoding can make of it. Nesting is bounded by the decoder itself, which refuses
what is deeper than the interpreter's recursion limit.
"""

from __future__ import annotations

from cotenant.serve.errors import BadRequest

UNCHECKED_BYTES = 64 * 1024
"""A text this short cannot become much (bytes)."""
OBJECT_COST = 16
"""Elements that a string, an array or an object counts as."""
MAX_ELEMENTS = 1 << 22


def check_json(text: bytes | bytearray | memoryview, max_elements: int) -> None:
    """Raises BadRequest (413) when the text holds more than so many elements. Separators inside of strings
    count too."""
    if len(text) <= UNCHECKED_BYTES:
        return
    if isinstance(text, memoryview):
        text = bytes(text)
    n_objects = text.count(b"[") + text.count(b"{") + text.count(b'"') // 2
    check_count(text.count(b",") + OBJECT_COST * n_objects, max_elements)


def check_count(n_elements: int, max_elements: int) -> None:
    """Raises BadRequest (413) when there are more than so many elements."""
    if n_elements > max_elements:
        raise BadRequest(
            413,
            f"the request has more elements than the limit of {max_elements} (max_elements; strings and "
            f"lists count {OBJECT_COST}-fold); send numbers in binary, or fewer rows at a time",
        )

"""The bytes of a stream: server-sent events, one a chunk.

A chunk costs the token that it carries the time it takes here, since the engine waits for Python's
lock meanwhile: what a stream's chunks have in common is written once.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic_core import to_json

DONE = b"data: [DONE]\n\n"

_CHOICES = b'"choices":['


def frame(data: Mapping[str, object]) -> bytes:
    """One event."""
    return b"data: %b\n\n" % encoded(data)


class Frames:
    """The frames of one stream's choices."""

    def __init__(self, empty: Mapping[str, object], after: Mapping[str, object]) -> None:
        """empty: a chunk without choices; after: what stands behind everything else in a chunk."""
        head, found, tail = encoded(empty).partition(_CHOICES)
        assert found
        self._head, self._tail = b"data: " + head + found, tail[:-1]
        self._end = _members(after) + b"}\n\n"

    def choice(self, choice: Mapping[str, object], told: Mapping[str, object]) -> bytes:
        """The frame of a chunk with one choice. told: what else the chunk says."""
        return b"".join((self._head, encoded(choice), self._tail, _members(told), self._end))


def encoded(value: Mapping[str, object]) -> bytes:
    """JSON. A number that is not finite is null there: JSON has none."""
    return to_json(value, inf_nan_mode="null")


def _members(more: Mapping[str, object]) -> bytes:
    """What follows inside an object that has members already."""
    return b"," + encoded(more)[1:-1] if more else b""

"""The bytes of a stream: server-sent events, one a chunk.

A chunk costs the token that it carries the time it takes here, since the engine waits for Python's
lock meanwhile: what a stream's chunks have in common is written once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

DONE = b"data: [DONE]\n\n"

# One encoder for all: json.dumps would make one a call.
_ENCODER = json.JSONEncoder(
    ensure_ascii=False, check_circular=False, allow_nan=False, separators=(",", ":")
)
_CHOICES = '"choices":['


def frame(data: Mapping[str, object]) -> bytes:
    """One event. Raises ValueError where a number is not finite."""
    return f"data: {_ENCODER.encode(data)}\n\n".encode()


class Frames:
    """The frames of one stream's choices."""

    def __init__(self, empty: Mapping[str, object], after: Mapping[str, object]) -> None:
        """empty: a chunk without choices; after: what stands behind everything else in a chunk."""
        head, found, tail = _ENCODER.encode(empty).partition(_CHOICES)
        assert found
        self._head, self._tail = f"data: {head}{found}", tail[:-1]
        self._end = "".join(_member(name, value) for name, value in after.items()) + "}\n\n"

    def choice(self, choice: Mapping[str, object], told: Mapping[str, object] | None) -> str:
        """The frame of a chunk with one choice. told: what else the chunk says."""
        extra = "" if told is None else "".join(_member(*item) for item in told.items())
        return f"{self._head}{_ENCODER.encode(choice)}{self._tail}{extra}{self._end}"


def _member(name: str, value: object) -> str:
    return f',"{name}":{_ENCODER.encode(value)}'

"""Reading a request's body: never more than was allowed, never for longer than was allowed."""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect, Request

from paceline.server.errors import ApiError

GONE = 499  # what the log says of a client that left; nobody receives it
SECONDS = 60.0  # that a client may take to send its request
_DISCARD = 64 << 20  # bytes read and thrown away so that a client sees why it is refused


async def read_body(request: Request, most: int) -> bytes:
    """The body. Raises ApiError: 413 for one of more than `most` bytes, 408 for a slow one.

    What is too much is thrown away as it comes: a client that is still sending would otherwise
    see a broken connection instead of the answer.
    """
    length = request.headers.get("content-length", "")
    size = int(length) if length.isdecimal() and len(length) < 20 else 0
    if size > _DISCARD or (size > most and "expect" in request.headers):
        raise _too_large(most)
    parts: list[bytes] = []
    read = 0
    try:
        async with asyncio.timeout(SECONDS):
            async for part in request.stream():
                read += len(part)
                if read > max(most, _DISCARD):
                    break
                if max(read, size) <= most:
                    parts.append(part)
                else:
                    parts.clear()
    except TimeoutError:
        raise _closing(408, f"the request's body took more than {SECONDS:g} s") from None
    except ClientDisconnect:
        raise ApiError(GONE, "the client left before its request was read") from None
    if read > most:
        raise _too_large(most)
    return b"".join(parts)


def _too_large(most: int) -> ApiError:
    return _closing(413, f"the request is larger than this server's {most} bytes")


def _closing(status: int, message: str) -> ApiError:
    return ApiError(status, message, headers={"Connection": "close"})

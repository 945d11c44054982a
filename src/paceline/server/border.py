"""What every request passes before its handler: its record, its id, its key. Pure ASGI.

A class from the outside in: `Recorded` gives a request its record and the answer its id, and
turns what nobody caught into an answer; `Guarded` asks for a key.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from paceline.server.errors import ApiError, told
from paceline.server.record import Record, log_failure

# Asked every few seconds: not logged.
_QUIET = ("/health", "/health/live", "/health/ready", "/metrics", "/v1/paceline/load")
_GUARDED = ("/v1", "/tokenize", "/detokenize")


class Recorded:
    """Outermost: begins and writes each request's record, and echoes its id."""

    def __init__(self, app: ASGIApp, seen: Callable[[Record], None]) -> None:
        """seen: told of every record once the answer is out."""
        self._app, self._seen = app, seen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = Record.begin(scope)

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = record.status or message["status"]
                name = (b"x-request-id", record.id.encode())
                message["headers"] = [*message.get("headers", ()), name]
            await send(message)

        try:
            await self._app(scope, receive, marked)
        except Exception as error:
            log_failure(record, error)
            if record.status == 0:  # nothing was sent yet
                await told(error).response()(scope, receive, marked)
        finally:
            if record.path not in _QUIET:
                record.tell()
            self._seen(record)


class Guarded:
    """Asks for an API key under /v1 and wherever else something is read; the time it takes tells
    nothing about the keys."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app = app
        self._digests = [_digest(key.encode()) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        guarded = scope["type"] == "http" and scope["path"].startswith(_GUARDED)
        if guarded and self._digests and not self._known(scope):
            await _unknown_key().response()(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _known(self, scope: Scope) -> bool:
        value = next((v for k, v in scope["headers"] if k == b"authorization"), b"")
        scheme, _, key = value.partition(b" ")
        given = _digest(key.strip() if scheme.lower() == b"bearer" else b"")
        known = False
        for digest in self._digests:  # every one, whichever it is
            known |= hmac.compare_digest(given, digest)
        return known


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _unknown_key() -> ApiError:
    return ApiError(
        401,
        "the API key is missing or unknown; send it as 'Authorization: Bearer KEY'",
        code="invalid_api_key",
        headers={"WWW-Authenticate": "Bearer"},
    )

"""HTTP/1.1 on a connection: uvicorn over httptools, a parser in C, with a bound on what comes
before a body and on how long a client may read nothing of its answer.

uvicorn's other parser has the first bound, and takes several times as long for every chunk that is
sent; this one would read headers for as long as somebody sends them.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_MOST = 64 * 1024  # bytes of a request's line and headers
UNREAD = 30.0  # seconds in which a client that is sent something takes none of it: it is gone


class BoundedHttp(HttpToolsProtocol):
    """One connection. A request whose head is longer gets a 400, and the connection ends; so does
    one with as much behind its body."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._came = self._head = 0  # bytes: received since a body's last part, and of the head
        self._watch: asyncio.TimerHandle | None = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._look(None)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._look_away()

    def connection_lost(self, exc: Exception | None) -> None:
        self._look_away()
        super().connection_lost(exc)

    def _look(self, before: int | None) -> None:
        """End a connection that took nothing of what waits for it since there were `before`."""
        waits = self.transport.get_write_buffer_size()
        if before is not None and waits >= before:
            self.transport.abort()  # the rest would wait for as long as its text did
        else:
            self._watch = self.loop.call_later(UNREAD, self._look, waits)

    def _look_away(self) -> None:
        if self._watch is not None:
            self._watch.cancel()

    def data_received(self, data: bytes) -> None:
        self._came += len(data)
        super().data_received(data)
        # No end is in sight: what a header has so far is kept until it is whole.
        if self._came > _MOST and not self.transport.is_closing():
            self.send_400_response("The request's headers are too long.")

    def on_url(self, url: bytes) -> None:
        self._head += len(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head += len(name) + len(value)
        if self._head > _MOST:  # the parser gives up, and the request gets a 400
            raise ValueError("the request's headers are too long")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._came = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._came = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._came = self._head = 0

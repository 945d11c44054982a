"""HTTP/1.1 on a connection: uvicorn over httptools, a parser in C, with a bound on what comes
before a body. uvicorn's other parser has such a bound, and takes several times as long for every
chunk that is sent; this one would read headers for as long as somebody sends them.
"""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_MOST = 64 * 1024  # bytes of a request's line and headers


class BoundedHttp(HttpToolsProtocol):
    """One connection. A request whose head is longer gets a 400, and the connection ends; so does
    one with as much behind its body."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._came = self._head = 0  # bytes: received since a body's last part, and of the head

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

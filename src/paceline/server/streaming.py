"""An answer as server-sent events: what each chunk carries, and a sign of life while nothing comes.

A stream's frames are made of events that somebody else waits for; the text is `Shape`'s.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from paceline import Event
from paceline.server import details
from paceline.server.asking import Ask
from paceline.server.frames import Frames, frame
from paceline.server.generation import Generation, Text
from paceline.server.shapes import Json, Shape, counts
from paceline.server.wire import StreamOptions

PING = b": ping\n\n"  # a comment, which every reader of server-sent events passes over


class Chunks:
    """The frames of one stream's chunks."""

    def __init__(
        self, shape: Shape, ask: Ask, generation: Generation, options: StreamOptions | None
    ) -> None:
        self._shape, self._ask, self._generation = shape, ask, generation
        asked = options or StreamOptions()
        self._counted, self._timed = bool(asked.include_usage), bool(asked.include_timing)
        self._running = bool(asked.continuous_usage_stats)
        self._opened: set[int] = set()
        later = self._counted and not self._running  # OpenAI's: null in every chunk but the last
        self._frames = Frames(shape.chunk([]), {"usage": None} if later else {})

    def of(self, text: Text, event: Event) -> bytes:
        """What an event adds; nothing where there is nothing to show."""
        choices = self._shape.piece(text, event)
        if self._timed and not choices:  # tokens that complete no character have their chunk, too
            choices = [self._shape.silence(text)]
        told: Json = {}
        if self._running:
            told = {"usage": counts(self._ask, self._generation.texts)}
        parts: list[bytes] = []
        if text.index not in self._opened:
            self._opened.add(text.index)
            beside = told | (self._shape.beside(text) or {})
            parts = [self._frames.choice(choice, beside) for choice in self._shape.opening(text)]
        timed = self._details(event) if self._timed else {}
        for choice in choices:
            parts.append(self._frames.choice(choice, told | timed))
            timed = {}  # the round's figures go with its text, which comes before the finish
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _details(self, event: Event) -> Json:
        seconds = time.monotonic() - self._generation.began
        return {details.KEY: details.details(event, seconds)}

    def last(self) -> bytes:
        """What follows once every text is whole; nothing where it was not asked for."""
        shape, ask, texts = self._shape, self._ask, self._generation.texts
        told = shape.metrics(ask, texts)
        if self._counted:
            told = {"usage": shape.usage(ask, texts)} | told
        return frame(shape.chunk([]) | told) if told else b""


class EventStream(StreamingResponse):
    """Sends frames as they come and calls `close` at the end, however it comes."""

    media_type = "text/event-stream"

    def __init__(
        self,
        frames: AsyncIterator[bytes],
        close: Callable[[], None],
        ping: float = 0.0,
        since: float = 0.0,
    ) -> None:
        """ping: seconds without a frame after which a comment is sent, again and again; 0 sends
        none. since: from when on there was none, by `time.monotonic`."""
        # A proxy that gathers chunks would undo the streaming.
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(frames, headers=headers)
        self._frames, self._close, self._ping, self._sent = frames, close, ping, since

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Without starlette's own watch for a client that leaves: the exchange has one."""
        pinging: asyncio.Task[None] | None = None
        try:
            start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
            await send(start)
            if self._ping:
                pinging = asyncio.create_task(self._pings(send))
            async for data in self._frames:
                self._sent = time.monotonic()
                await send({"type": "http.response.body", "body": data, "more_body": True})
            if pinging is not None:
                pinging.cancel()
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            if pinging is not None:
                pinging.cancel()
            self._close()

    async def _pings(self, send: Send) -> None:
        """Beside the frames, so that waiting for one costs a stream nothing and is never broken
        off; whatever is sent is sent whole, so none is cut by a ping."""
        while True:
            left = self._sent + self._ping - time.monotonic()
            if left > 0:
                await asyncio.sleep(left)
                continue
            self._sent = time.monotonic()
            await send({"type": "http.response.body", "body": PING, "more_body": True})

"""From an ask to an answer: whole or as server-sent events, ended early where the client leaves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from paceline import Engine, Event
from paceline.server import details
from paceline.server.asking import Ask
from paceline.server.body import GONE
from paceline.server.errors import ApiError, busy, told
from paceline.server.frames import DONE, Frames, encoded, frame
from paceline.server.gate import Gate
from paceline.server.generation import Generation, Text
from paceline.server.record import Record, log_failure
from paceline.server.shapes import Shape
from paceline.server.wire import StreamOptions


class Exchange:
    """One request inside the server: its place, its texts, its client. Closed exactly once."""

    def __init__(
        self,
        request: Request,
        engine: Engine,
        gate: Gate,
        ask: Ask,
        timeout: float,
        ended: Callable[[Generation], None] | None,
        seen: Callable[[Event], None],
    ) -> None:
        """Take a place and submit. ended: told of the generation once, at its end (None: it writes
        no text that anybody reads); seen: of every event. Raises ApiError and the engine's errors,
        and then holds nothing."""
        self.record = Record.of(request.scope)
        self.ask = ask
        gate.enter(ask.texts)
        try:
            self.generation = Generation(engine, ask, self.record.began, timeout)
        except BaseException:
            gate.leave(ask.texts)
            raise
        self._gate, self._ended, self._seen, self._open = gate, ended, seen, True
        self._watcher = asyncio.create_task(self._watch(request.receive))

    async def _watch(self, receive: Receive) -> None:
        """Cancel the texts as soon as the client hangs up."""
        while (await receive())["type"] != "http.disconnect":
            pass
        if any(text.finish is None for text in self.generation.texts):
            self.record.status = GONE
        self.generation.cancel()

    async def events(self) -> AsyncGenerator[tuple[Text, Event], None]:
        """The generation's events. A text that failed ends them with its ApiError."""
        try:
            async with aclosing(self.generation.events()) as events:
                async for text, event in events:
                    self._seen(event)
                    if event.finish != "error":
                        yield text, event
        except Exception as error:
            problem = told(error)
            if problem.status >= 500:
                log_failure(self.record, error)
            raise problem from error

    def close(self) -> None:
        """End what still runs, give the place back, and book what was written."""
        if not self._open:
            return
        self._open = False
        self._watcher.cancel()
        self.generation.cancel()
        texts = self.generation.texts
        done = all(text.finish in ("stop", "length") for text in texts)
        seconds = time.monotonic() - self.generation.began
        self._gate.leave(self.ask.texts, seconds if done and self._ended else None)
        self.record.written(self.ask.prompt_tokens, texts)
        if self._ended is not None:
            self._ended(self.generation)


async def answer_whole(exchange: Exchange, shape: Shape) -> Response:
    """Wait for every text and answer in one piece."""
    try:
        async with aclosing(exchange.events()) as events:
            async for _ in events:
                pass
    finally:
        exchange.close()
    texts = exchange.generation.texts
    if all(text.finish == "deadline" and not text.tokens for text in texts):
        raise _too_late()
    if any(text.logprobs or text.prompt_logprobs for text in texts):
        # Thousands of entries: the streams of others go on.
        content = await asyncio.to_thread(lambda: encoded(shape.whole(texts, exchange.ask)))
    else:
        content = encoded(shape.whole(texts, exchange.ask))
    return Response(content, media_type="application/json")


async def answer_stream(
    exchange: Exchange, shape: Shape, options: StreamOptions | None
) -> Response:
    """Wait for the first round, so that what fails at once has its status; then stream."""
    events = exchange.events()
    try:
        first = await anext(events, None)
        if first is None or (first[1].finish == "deadline" and not first[0].tokens):
            raise _too_late()
    except BaseException:
        exchange.close()
        await events.aclose()
        raise
    return EventStream(_chunks(exchange, shape, options, first, events), exchange.close)


async def _chunks(
    exchange: Exchange,
    shape: Shape,
    options: StreamOptions | None,
    first: tuple[Text, Event],
    events: AsyncGenerator[tuple[Text, Event], None],
) -> AsyncIterator[bytes]:
    """The stream's frames, one send an event."""
    counted = bool(options and options.include_usage)
    timed = bool(options and options.include_timing)
    opened: set[int] = set()
    written = Frames(shape.chunk([]), {"usage": None} if counted else {})

    def frames(text: Text, event: Event) -> bytes:
        choices = shape.piece(text, event)
        if timed and not choices:  # tokens that complete no character have their chunk, too
            choices = [shape.silence(text)]
        told = None
        if timed:
            seconds = time.monotonic() - exchange.generation.began
            told = {details.KEY: details.details(event, seconds)}
        parts: list[bytes] = []
        if text.index not in opened:
            opened.add(text.index)
            beside = shape.beside(text)
            parts = [written.choice(choice, beside) for choice in shape.opening(text)]
        for choice in choices:
            parts.append(written.choice(choice, told))
            told = None  # the round's figures go with its text, which comes before the finish
        return parts[0] if len(parts) == 1 else b"".join(parts)

    try:
        yield frames(*first)
        async for text, event in events:
            if data := frames(text, event):
                yield data
        if counted:
            total = shape.usage(exchange.ask, exchange.generation.texts)
            yield frame(shape.chunk([]) | {"usage": total})
    except ApiError as error:
        exchange.record.error = error.message
        yield frame(error.body())
    yield DONE


class EventStream(StreamingResponse):
    """Sends frames as they come and calls `close` at the end, however it comes."""

    media_type = "text/event-stream"

    def __init__(self, frames: AsyncIterator[bytes], close: Callable[[], None]) -> None:
        # A proxy that gathers chunks would undo the streaming.
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(frames, headers=headers)
        self._frames, self._close = frames, close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Without starlette's own watch for a client that leaves: the exchange has one."""
        try:
            start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
            await send(start)
            async for frame in self._frames:
                await send({"type": "http.response.body", "body": frame, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._close()


def _too_late() -> ApiError:
    return busy(503, "the request's time ran out before its text began; try again", 5, "timeout")

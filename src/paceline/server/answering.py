"""From an ask to an answer: whole or as server-sent events, ended early where the client leaves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive

from paceline import Event
from paceline.server.asking import Ask
from paceline.server.body import GONE
from paceline.server.errors import ApiError, busy, told
from paceline.server.frames import DONE, encoded, frame
from paceline.server.gate import Gate
from paceline.server.generation import Generation, Text
from paceline.server.record import Record, log_failure, warn
from paceline.server.shapes import Shape
from paceline.server.streaming import Chunks, EventStream
from paceline.server.wire import StreamOptions


class Exchange:
    """One request inside the server: its place, its texts, its client. Closed exactly once."""

    def __init__(
        self,
        request: Request,
        gate: Gate,
        ask: Ask,
        begin: Callable[[Ask, float], Generation],
        ended: Callable[[Generation], None] | None,
        seen: Callable[[Event], None],
    ) -> None:
        """Take a place and submit. begin: submits, told when the request came; ended: told of the
        generation once, at its end (None: it writes no text that anybody reads); seen: of every
        event. Raises ApiError and the engine's errors, and then holds nothing."""
        self.record = Record.of(request.scope)
        self.ask = ask
        gate.enter(ask.texts)
        try:
            self.generation = begin(ask, self.record.began)
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
        if any(text.finish == "deadline" for text in texts):
            warn(
                "a request's time ran out",
                request_id=self.record.id,
                tokens=self.record.tokens,
                remedy="give --timeout more seconds, or 0 for no limit; the wait for a slot counts",
            )
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
    exchange: Exchange, shape: Shape, options: StreamOptions | None, ping: float
) -> Response:
    """Wait for the first round, so that what fails at once has its status; then stream. ping:
    seconds after which the stream begins without it, 0 for never."""
    events = exchange.events()
    since = time.monotonic()
    # A task of its own: that it takes long ends the wait and not what is waited for.
    first = asyncio.ensure_future(anext(events, None))
    try:
        await asyncio.wait([first], timeout=ping or None)
        if first.done():
            _begun(first.result())
    except BaseException:
        exchange.close()
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await events.aclose()
        raise
    chunks = Chunks(shape, exchange.ask, exchange.generation, options)
    return EventStream(_frames(exchange.record, chunks, first, events), exchange.close, ping, since)


async def _frames(
    record: Record,
    chunks: Chunks,
    first: asyncio.Future[tuple[Text, Event] | None],
    events: AsyncGenerator[tuple[Text, Event], None],
) -> AsyncIterator[bytes]:
    """The stream's frames, one send an event; what goes wrong on the way is one, too."""
    try:
        yield chunks.of(*_begun(await first))
        async for text, event in events:
            if data := chunks.of(text, event):
                yield data
        if data := chunks.last():
            yield data
    except ApiError as error:
        record.error = error.message
        yield frame(error.body())
    yield DONE


def _begun(first: tuple[Text, Event] | None) -> tuple[Text, Event]:
    """The first event. Raises ApiError where the time was over before it."""
    if first is None or (first[1].finish == "deadline" and not first[0].tokens):
        raise _too_late()
    return first


def _too_late() -> ApiError:
    return busy(503, "the request's time ran out before its text began; try again", 5, "timeout")

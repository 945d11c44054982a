"""The texts of one HTTP request on their way: asked of the engine, followed, cancelled together.

Owns the handles and what has come of each text. Knows no wire format.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace

from paceline import Engine, Event, Handle, SequenceStats, TokenLogprob
from paceline.server.asking import Ask
from paceline.types import FinishReason

PREDICTED = "predicted"  # the drafter that proposes what a request predicts


@dataclass(slots=True)
class Text:
    """One choice: what has come of it so far. Times are `time.monotonic`'s."""

    index: int
    echo: str
    prompt: tuple[int, ...] = ()
    prompt_logprobs: list[TokenLogprob] | None = None
    stats: SequenceStats = field(default_factory=SequenceStats)  # the engine's own, as it goes
    submitted: float = field(default_factory=time.monotonic)
    pieces: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    tokens: int = 0
    predicted: int = 0
    first_tokens: int = 0
    first_at: float | None = None
    last_at: float = 0.0
    finish: str | None = None
    stop_reason: str | int | None = None

    def take(self, event: Event) -> None:
        """Add what a round committed."""
        now = time.monotonic()
        count = len(event.token_ids)
        if count:
            if self.first_at is None:
                self.first_at, self.first_tokens = now, count
            self.last_at = now
        self.tokens += count
        self.token_ids += event.token_ids
        self.predicted += event.sources.count(PREDICTED)
        self.pieces.append(event.text)
        self.logprobs += event.logprobs or ()
        if event.finish is not None:  # "error": the exception itself comes next
            self.finish, self.stop_reason = event.finish, event.stop_reason

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def token_seconds(self) -> float | None:
        """TPOT: seconds a token after those of the first round, or None where there are none."""
        later = self.tokens - self.first_tokens
        if self.first_at is None or later <= 0:
            return None
        return (self.last_at - self.first_at) / later


class Generation:
    """Every text that a request asked for, one after the other by prompt and choice."""

    def __init__(
        self, engine: Engine, ask: Ask, began: float, timeout: float | None, scorers: Executor
    ) -> None:
        """Submit all, or none. began: when the request came; timeout: seconds from then; scorers:
        where the log-probabilities of prompts are waited for."""
        self.ask, self.began = ask, began
        self._engine, self._scorers, self._cancelled = engine, scorers, False
        self._until = math.inf if timeout is None else began + timeout
        self.texts: list[Text] = []
        self._handles: list[Handle] = []
        left = None if timeout is None else max(1e-3, self._until - time.monotonic())
        try:
            for place, prompt in enumerate(ask.prompts):
                for seed in ask.seeds[place]:
                    echo = ask.echoes[place] if ask.echoes else ""
                    self.texts.append(Text(len(self.texts), echo, prompt))
                    if not ask.write:
                        continue
                    handle = engine.submit(
                        prompt,
                        replace(ask.params, seed=seed),
                        prediction=ask.prediction or None,
                        k=ask.k,
                        priority=ask.priority,
                        deadline=left,
                        grammar=ask.grammar,
                    )
                    self._handles.append(handle)
                    self.texts[-1].stats = handle.stats
        except Exception:
            self.cancel()
            raise

    def cancel(self) -> None:
        """End every text that is not finished, before its next round."""
        self._cancelled = True
        for handle in self._handles:
            if handle.finish is None:
                handle.cancel()

    async def events(self) -> AsyncGenerator[tuple[Text, Event], None]:
        """Every event of every text, booked there, as rounds commit; the prompts' log-probabilities
        are there before the first. Raises a text's error."""
        if self.ask.scored is not None and not await self._score(self.ask.scored):
            for text in self.texts:
                yield text, _over(text, "deadline")
            return
        if not self.ask.write:
            for text in self.texts:
                yield text, _over(text, "length")
            return
        if len(self.texts) == 1:
            (text,) = self.texts
            async for event in self._handles[0].events():
                text.take(event)
                yield text, event
            return
        news: asyncio.Queue[tuple[Text, Event | Exception | None]] = asyncio.Queue()
        pumps = [
            asyncio.create_task(_pump(handle, text, news))
            for handle, text in zip(self._handles, self.texts, strict=True)
        ]
        try:
            running = len(pumps)
            while running:
                text, item = await news.get()
                if isinstance(item, Exception):
                    raise item
                if item is None:
                    running -= 1
                    continue
                text.take(item)
                yield text, item
        finally:
            for pump in pumps:
                pump.cancel()

    async def _score(self, top: int) -> bool:
        """Read the prompts; returns False where time ran out or the client left."""
        loop = asyncio.get_running_loop()
        known: dict[tuple[int, ...], list[TokenLogprob]] = {}
        for text in self.texts:
            if text.prompt not in known:
                found = known[text.prompt] = []
                pieces = self._engine.prompt_logprobs(text.prompt, top)
                while piece := await loop.run_in_executor(self._scorers, next, pieces, None):
                    found += piece
                    if self._cancelled or time.monotonic() > self._until:
                        self.cancel()
                        return False
            text.prompt_logprobs = known[text.prompt]
        return True


def _over(text: Text, finish: FinishReason) -> Event:
    """The end of a text that the engine was not asked for."""
    event = Event("", (), "", (), finish=finish)
    text.take(event)
    return event


async def _pump(
    handle: Handle, text: Text, news: asyncio.Queue[tuple[Text, Event | Exception | None]]
) -> None:
    try:
        async for event in handle.events():
            news.put_nowait((text, event))
        news.put_nowait((text, None))
    except Exception as error:
        news.put_nowait((text, error))

"""What a caller holds of a request: its events, its result, and the means to end it.

The engine's thread puts events into the request's `Reader` and wakes whoever waits; a caller's
thread or event loop takes them out. Neither ever waits for the other. Knows no device.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterable
from contextvars import Context
from typing import Any

from paceline.engine.outbox import Reader
from paceline.types import Completion, Event, FinishReason, SequenceStats


class _News(asyncio.Future[None]):
    """What one task awaits until its request has news.

    The task goes on inside `arrived`, where a plain future would have it called one turn of the
    loop later: a turn is a system call more, at which Python's lock changes hands with the
    engine's thread.
    """

    _waiting: tuple[Callable[[_News], object], Context | None] | None = None

    def add_done_callback(
        self, fn: Callable[[_News], object], /, *, context: Context | None = None
    ) -> None:
        assert self._waiting is None
        self._waiting = fn, context

    def arrived(self) -> None:
        """There is news. Called by the event loop; nothing happens where the task has left."""
        if not self.done():
            self.set_result(None)
            self._go_on()

    def cancel(self, msg: Any = None) -> bool:
        cancelled = super().cancel(msg)
        if cancelled:
            self.get_loop().call_soon(self._go_on)
        return cancelled

    def _go_on(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            fn, context = waiting
            if context is None:
                fn(self)
            else:
                context.run(fn, self)


class Handle:
    """One request on its way.

    Events are kept until they are read; whoever reads one takes it, so a request has one reader.
    Every method may be called from any thread.
    """

    def __init__(self, reader: Reader, end: Callable[[], None]) -> None:
        """end: asks the engine to cancel the request; never waits."""
        self._reader, self._end = reader, end
        self._lock = threading.Lock()  # guards the waiters
        self._sleepers: list[threading.Event] = []
        self._futures: list[_News] = []

    @property
    def id(self) -> str:
        """The request's name, as in its events."""
        return self._reader.request.id

    @property
    def finish(self) -> FinishReason | None:
        """Why the text ended, or None while it is being written."""
        return self._reader.finish if self._reader.closed else None

    @property
    def stats(self) -> SequenceStats:
        """The counts so far; they stay as they are once `finish` is there."""
        return self._reader.stats

    def events(self) -> Events:
        """The request's events, for `for` and for `async for`; the last one has a finish."""
        return Events(self)

    def cancel(self) -> None:
        """End the request, wherever it stands; nothing happens to one that has ended.

        It takes effect before the next round: a last event says "cancelled".
        """
        self._end()

    def result(self, timeout: float | None = None) -> Completion:
        """Wait for the whole text. timeout: seconds, then TimeoutError (the request goes on).

        Raises the request's own error where it failed. Reads no events.
        """
        if not self.wait_closed(timeout):
            raise TimeoutError(f"request {self.id} is not finished after {timeout:g} s")
        if self._reader.error is not None:
            raise self._reader.error
        return self._reader.completion()

    # --- waiting and waking ---

    def wait_closed(self, timeout: float | None = None) -> bool:
        """Wait for the end of the text; whether it is there."""
        until = None if timeout is None else time.monotonic() + timeout
        while not self._reader.closed:
            left = None if until is None else until - time.monotonic()
            if left is not None and left <= 0:
                return False
            self.wait(lambda: self._reader.closed, left)
        return True

    def take(self) -> Event | None:
        """The next event, if there is one. Raises StopIteration after the last, or its error."""
        reader = self._reader
        closed = reader.closed  # before the events: what comes after it is seen next time
        if reader.events:
            return reader.events.popleft()
        if not closed:
            return None
        if reader.error is not None:
            raise reader.error
        raise StopIteration

    def wait(self, ready: Callable[[], bool], timeout: float | None = None) -> None:
        """Sleep until the next wake-up, unless `ready` already."""
        sleeper = threading.Event()
        with self._lock:
            self._sleepers.append(sleeper)
        # Only now: what happened before the sleeper was there woke nobody.
        try:
            if not ready():
                sleeper.wait(timeout)
        finally:
            with self._lock:
                if sleeper in self._sleepers:
                    self._sleepers.remove(sleeper)

    async def wait_async(self) -> None:
        """`wait` for an event, on the running event loop."""
        news = _News()
        with self._lock:
            self._futures.append(news)
        if self._reader.events or self._reader.closed:
            return  # the future is forgotten at the next wake-up
        await news

    def waiters(self) -> tuple[list[threading.Event], list[_News]]:
        """Whom to wake; they are waiters no more."""
        with self._lock:
            sleepers, self._sleepers = self._sleepers, []
            futures, self._futures = self._futures, []
        return sleepers, futures


class Events:
    """A request's events as a synchronous and an asynchronous iterator."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle

    def __iter__(self) -> Events:
        return self

    def __next__(self) -> Event:
        reader = self._handle._reader
        while (event := self._handle.take()) is None:
            self._handle.wait(lambda: bool(reader.events) or reader.closed)
        return event

    def __aiter__(self) -> Events:
        return self

    async def __anext__(self) -> Event:
        try:
            while (event := self._handle.take()) is None:
                await self._handle.wait_async()
        except StopIteration:
            raise StopAsyncIteration from None
        return event


def wake(handles: Iterable[Handle]) -> None:
    """Wake everybody who waits for one of these, each event loop once."""
    loops: dict[asyncio.AbstractEventLoop, list[_News]] = {}
    for handle in handles:
        sleepers, futures = handle.waiters()
        for sleeper in sleepers:
            sleeper.set()
        for future in futures:
            loops.setdefault(future.get_loop(), []).append(future)
    for loop, waiting in loops.items():
        with contextlib.suppress(RuntimeError):  # closed: nobody waits there any more
            loop.call_soon_threadsafe(_resolve, waiting)


def _resolve(futures: list[_News]) -> None:
    for future in futures:
        future.arrived()

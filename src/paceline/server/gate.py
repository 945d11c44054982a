"""Who may come in: a bounded queue, the drain before a stop, and what happened to the engine.

Counts texts, not requests; knows neither HTTP nor the engine. Belongs to the event loop's thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from paceline.server.errors import ApiError, busy, refused

_LONGEST_WAIT = 60  # seconds that a client is told to stay away, at most
_MEMORY = 0.9  # of the running mean of how long a text takes


class Gate:
    """Lets texts in while there is room, and knows when the last has left."""

    def __init__(self, slots: int, queue: int, ended: Callable[[], Exception | None]) -> None:
        """slots: texts written at once; queue: texts that may wait besides; ended: what
        ended the engine for good, or None."""
        self._slots, self._capacity = slots, slots + queue
        self._ended = ended
        self._seconds = 1.0  # that a text takes, about
        self._empty = asyncio.Event()
        self._empty.set()
        self.inside = 0
        self.draining = False
        self.refused = {"full": 0, "draining": 0}

    @property
    def broken(self) -> Exception | None:
        """What ended the engine for good, or None."""
        return self._ended()

    @property
    def ready(self) -> bool:
        """Whether requests are taken."""
        return not self.draining and self.broken is None

    def enter(self, texts: int) -> None:
        """Take `texts` in. Raises ApiError: 400, 429 or 503, and nothing is taken."""
        if not self.ready:
            self.refused["draining"] += 1
            raise busy(503, "the server is stopping and takes no requests", 5, "unavailable")
        if texts > self._capacity:
            raise refused(
                f"the request asks for {texts} texts; this server takes at most {self._capacity} "
                "at once",
                code="invalid_value",
            )
        if self.inside + texts > self._capacity:
            self.refused["full"] += 1
            raise self._full()
        self.inside += texts
        self._empty.clear()

    def leave(self, texts: int, seconds: float | None = None) -> None:
        """`texts` that came in are done; seconds: how long they took, if all ended."""
        self.inside -= texts
        if seconds is not None:
            self._seconds = _MEMORY * self._seconds + (1 - _MEMORY) * seconds
        if not self.inside:
            self._empty.set()

    async def emptied(self) -> None:
        """Wait until nobody is inside."""
        await self._empty.wait()

    def _full(self) -> ApiError:
        waiting = max(1, self.inside - self._slots)
        seconds = min(_LONGEST_WAIT, 1 + int(self._seconds * waiting / self._slots))
        message = f"{self.inside} texts are being written or wait; come again in {seconds} s"
        return busy(429, message, seconds, "rate_limit_exceeded")

"""The server's load over the last minutes: a sample a second, for the page to draw.

Counts what the server hands out as it comes, where the engine's own counts are of finished texts.
Belongs to the event loop's thread.
"""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, fields

from paceline import EngineStats, Event

SECONDS = 1.0  # between two samples
KEPT = 300


@dataclass(slots=True)
class Counts:
    """What rounds brought since the last sample; a round counts once for each text in it."""

    tokens: int = 0
    rounds: int = 0
    k: int = 0
    evaluated: int = 0
    accepted: int = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """One second. running, waiting: texts; acceptance: accepted / evaluated; k: draft tokens chosen
    for a round, on average; both None where there was no such round."""

    running: int
    waiting: int
    tokens_per_second: float
    acceptance: float | None
    k: float | None
    pages_used: int
    pages_cached: int


@dataclass(slots=True)
class Load:
    """The last samples. stats: the engine's, asked once a sample."""

    stats: Callable[[], EngineStats]
    clock: Callable[[], float] = time.monotonic
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    count: int = 0
    _samples: deque[Sample] = field(default_factory=lambda: deque(maxlen=KEPT))
    _counts: Counts = field(default_factory=Counts)
    _at: float = 0.0

    def __post_init__(self) -> None:
        self._at = self.clock()

    def saw(self, event: Event) -> None:
        """Count what a text's round brought."""
        counts = self._counts
        counts.tokens += len(event.token_ids)
        if event.round is not None:
            counts.rounds += 1
            counts.k += event.round.k
            counts.evaluated += event.round.evaluated
            counts.accepted += event.round.accepted

    def sample(self) -> None:
        """Close a second."""
        stats, counts, now = self.stats(), self._counts, self.clock()
        seconds, self._at, self._counts = now - self._at, now, Counts()
        self.count += 1
        self._samples.append(
            Sample(
                running=stats.running,
                waiting=stats.waiting,
                tokens_per_second=round(counts.tokens / seconds, 1) if seconds > 0 else 0.0,
                acceptance=_share(counts.accepted, counts.evaluated),
                k=_share(counts.k, counts.rounds),
                pages_used=stats.pages_used,
                pages_cached=stats.pages_cached,
            )
        )

    def told(self, after: int = 0) -> dict[str, object]:
        """The samples behind number `after`, a column each, the oldest first. id: of this server's
        life; count: the number of the last sample, to ask `after` next time. A number that is not
        known here tells everything."""
        kept = list(self._samples)
        new = self.count - after if 0 < after <= self.count else len(kept)
        kept = kept[max(0, len(kept) - new) :]
        stats = self.stats()
        return {
            "object": "load",
            "id": self.id,
            "count": self.count,
            "interval": SECONDS,
            "kept": KEPT,
            "pages": stats.pages,
            "speculation": stats.speculation,
            "samples": {f.name: [getattr(s, f.name) for s in kept] for f in fields(Sample)},
        }


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None

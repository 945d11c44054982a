"""One request's way through the engine, and lines of those who wait. Host only: no torch."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from itertools import takewhile

from paceline.types import Request, SequenceStats


class Status(Enum):
    """Where a sequence stands. LEAVING: it has ended, and rounds in flight still see its pages."""

    WAITING = "waiting"
    PREFILL = "prefill"
    RUNNING = "running"
    LEAVING = "leaving"
    DONE = "done"


@dataclass(slots=True, eq=False)
class Sequence:
    """One request's way. Only the scheduler and its paging write, but for `observed`, `stale`,
    `stats` and, in PREFILL, `prefilled`, which are the loop's.

    slot: the one it holds, or held last. epoch: no two admissions have the same. arrival: its place
    in line, kept for good. tokens: the prompt, and what has been settled. limit: the longest that
    its text can be; ceiling: the most positions that its rounds touch. prefilled, observed:
    positions that the target's and the drafter's cache hold. stale: the draft that waits for it was
    made by a drafter that had not seen all of it. hit: positions that the prefix index
    spared it. sound: positions that a finite verdict was drawn from. looked: the index's inserts
    when this text was last looked up. grown: per round in flight, the tokens it commits at most.
    keep: its pages are to be trusted.
    """

    request: Request
    k: int
    status: Status = Status.WAITING
    slot: int = 0
    epoch: int = 0
    arrival: int = 0
    tokens: list[int] = field(init=False)
    pages: list[int] = field(default_factory=list)
    limit: int = 0
    ceiling: int = 0
    prefilled: int = 0
    observed: int = 0
    stale: bool = False
    hit: int = 0
    sound: int = 0
    looked: int = 0
    grown: list[int] = field(default_factory=list)
    keep: bool = True
    preemptions: int = 0
    stats: SequenceStats = field(default_factory=SequenceStats)

    def __post_init__(self) -> None:
        self.tokens = list(self.request.prompt)

    @property
    def in_flight(self) -> int:
        """Rounds launched with it that have not been settled."""
        return len(self.grown)

    @property
    def bound(self) -> int:
        """The longest that its text can be when the rounds in flight have ended."""
        return min(len(self.tokens) + sum(self.grown), self.limit)

    @property
    def rank(self) -> tuple[int, int]:
        """The greatest goes first: by priority, then by arrival."""
        return self.request.priority, -self.arrival

    def end(self, reach: int) -> int:
        """The positions, at most, of a round that goes `reach` past the text in front of it."""
        return min(self.bound + reach, self.ceiling)


class Line:
    """Sequences in the order of a key that does not change, the greatest first. The first is found
    at once; to put one in or take one out anywhere costs O(log n) comparisons."""

    def __init__(self, key: Callable[[Sequence], tuple[float, int]]) -> None:
        self._key = key
        self._items: list[Sequence] = []  # the first stands last: where a list is cheap to change

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Sequence]:
        return reversed(self._items)

    @property
    def first(self) -> Sequence | None:
        return self._items[-1] if self._items else None

    def add(self, sequence: Sequence) -> None:
        insort(self._items, sequence, key=self._key)

    def remove(self, sequence: Sequence) -> None:
        place = bisect_left(self._items, self._key(sequence), key=self._key)
        assert self._items[place] is sequence
        del self._items[place]

    def while_true(self, test: Callable[[Sequence], bool]) -> list[Sequence]:
        """Those from the front for which `test` holds."""
        return list(takewhile(test, self))

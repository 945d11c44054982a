"""Bringing a drafter that rested up to date with several texts: in which passes, and what they
take. Pure: no torch, no device, no clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

SIDE = 16  # positions of each text in a pass over several
TOGETHER = 16  # texts of such a pass at most, so that it is no wider than a prompt's widest
FRESH = 1  # newest tokens that a draft's first pass takes, beside the one that it proposed last
NEAR = 4 * SIDE  # positions that a text may lie behind and still be read beside others


class Span(NamedTuple):
    """Committed positions start to stop (exclusive) of a slot."""

    slot: int
    start: int
    stop: int


def cut(spans: Iterable[Span]) -> Iterator[Sequence[Span]]:
    """The passes that show a drafter `spans`, of slots that all differ: of several texts, `SIDE`
    positions of each; or all of one, where it lies further behind or there is no other."""
    near = list[Span]()
    for span in spans:
        if span.stop - span.start > NEAR:
            yield (span,)
        elif span.start < span.stop:
            near.append(span)
    if len(near) == 1:
        yield near
        return
    while near:
        for first in range(0, len(near), TOGETHER):
            group = near[first : first + TOGETHER]
            yield [Span(slot, start, min(start + SIDE, stop)) for slot, start, stop in group]
        near = [Span(slot, start + SIDE, stop) for slot, start, stop in near if start + SIDE < stop]


class CatchUp(NamedTuple):
    """Seconds that a pass takes, however much it reads, and each of its tokens besides."""

    row: float = 0.0
    token: float = 0.0

    def seconds(self, behind: Iterable[int]) -> float:
        """To bring a drafter up to date with texts that lie so many tokens behind."""
        passes = cut(Span(slot, 0, tokens) for slot, tokens in enumerate(behind))
        return sum(self.row + self.token * sum(e - b for _, b, e in each) for each in passes)


NO_CATCH_UP = CatchUp()

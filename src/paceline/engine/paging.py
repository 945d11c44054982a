"""Which pages a sequence holds, of its own and of others with the same text. Host only: no torch.

Gives, shares and takes back; who comes, runs and goes is the scheduler's to say, and what is there
to give the allocator's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

from paceline.engine.sequence import Sequence
from paceline.kv.pages import PageAllocator
from paceline.kv.prefix import Hit, PrefixIndex


@dataclass(frozen=True, slots=True)
class Grant:
    """What to write into a slot's row of the page table: `pages`, from column `first` on."""

    slot: int
    first: int
    pages: tuple[int, ...]


class Paging:
    """The scheduler's hand on the pages."""

    def __init__(
        self,
        pages: int,
        page_size: int,
        *,
        prefix: bool,
        catch_up: Literal["none", "tokens", "observe"],
        shift: int,
    ) -> None:
        """As in `Scheduler`."""
        self.index = PrefixIndex(page_size, shift)
        self.pages = PageAllocator(pages, self.index)
        self._page_size = page_size
        self._prefix, self._catch_up = prefix, catch_up

    def pages_for(self, positions: int) -> int:
        return -(-positions // self._page_size)

    def short(self, sequence: Sequence, reach: int) -> int:
        """Pages that `sequence` lacks for a round of that reach."""
        return max(0, self.pages_for(sequence.end(reach)) - len(sequence.pages))

    def look_up(self, sequence: Sequence) -> Hit:
        """What can be used of what the index knows of a text, but for its last token: that is the
        first window's root."""
        if not self._prefix:
            return Hit([], 0)
        hit = self.index.match(sequence.tokens, len(sequence.tokens) - 1)
        if self._catch_up == "observe":  # what it has not seen it never will
            return Hit(hit.pages[: hit.observed // self._page_size], hit.observed)
        return hit

    def give(self, sequence: Sequence, hit: Hit, reach: int) -> None:
        """Pages for all of a text and a first round of that reach, those of `hit` in front."""
        self.pages.share(hit.pages)
        fresh = self.pages_for(sequence.end(reach)) - len(hit.pages)
        sequence.pages = hit.pages + self.pages.take(fresh)
        sequence.prefilled = sequence.hit = len(hit.pages) * self._page_size
        sequence.observed, sequence.looked = hit.observed, self.index.inserts
        self.index.asked += len(sequence.tokens)
        self.index.hits += sequence.hit

    def rematch(self, sequence: Sequence) -> Grant | None:
        """Take over what others have read of the same text since it was last looked up."""
        if sequence.looked == self.index.inserts:
            return None
        hit, sequence.looked = self.look_up(sequence), self.index.inserts
        end = len(hit.pages) * self._page_size
        gained = end - sequence.prefilled
        if gained <= 0:
            return None
        self.adopt(sequence, hit)
        sequence.prefilled = end
        sequence.hit += gained
        self.index.hits += gained
        return Grant(sequence.slot, 0, tuple(hit.pages))

    def extend(self, rows: Iterable[Sequence], reach: int) -> list[Grant]:
        """Give `rows` the pages that they lack for a round of that reach."""
        grants = []
        for sequence in rows:
            short = self.short(sequence, reach)
            if short:
                grants.append(
                    Grant(sequence.slot, len(sequence.pages), tuple(self.pages.take(short)))
                )
                sequence.pages += grants[-1].pages
        return grants

    def adopt(self, sequence: Sequence, hit: Hit) -> None:
        """Hold the index's pages in place of one's own that hold, or were to hold, the same."""
        mine, end = sequence.pages[: len(hit.pages)], len(hit.pages) * self._page_size
        pairs = enumerate(zip(mine, hit.pages, strict=True))
        first = next((column for column, (a, b) in pairs if a != b), None)
        if first is None:
            return
        self.pages.share(hit.pages)
        self.pages.drop(mine)
        sequence.pages[: len(mine)] = hit.pages
        # What is known of one's own pages is not known of those that took their place.
        same = first * self._page_size
        sequence.sound = min(sequence.sound, same)
        if hit.observed == end:
            sequence.observed = max(sequence.observed, end)
        else:
            sequence.observed = max(hit.observed, min(sequence.observed, same))

    def insert(self, sequence: Sequence) -> None:
        """Make its full pages known. A page that the index has forgotten while others hold it ends
        them: they may not hold those that now stand in front of it."""
        if not self._prefix:
            return
        end = sequence.prefilled
        if self._catch_up == "observe":  # nobody could use the others
            end = min(end, sequence.observed)
        full = sequence.pages[: end // self._page_size]
        known = takewhile(lambda p: p in self.index or self.pages.holders(p) == 1, full)
        self.index.insert(sequence.tokens, list(known), sequence.observed, sequence.sound)

    def take_back(self, sequence: Sequence) -> None:
        """Take back all its pages. Full pages of what was settled stay known; of a text that
        failed those are forgotten that it may have spoiled, or have been spoiled by."""
        if sequence.keep:
            self.adopt(sequence, self.index.match(sequence.tokens, sequence.prefilled))
            self.insert(sequence)
        else:
            self.pages.discard(self.index.distrust(sequence.pages))
        self.pages.drop(sequence.pages)
        sequence.pages = []
        sequence.prefilled = sequence.observed = sequence.hit = sequence.sound = 0

    def check(self, held: Iterable[Sequence]) -> None:
        """Assert that every page is where it belongs; held: every sequence with pages. Slow."""
        held = list(held)
        self.pages.check([s.pages for s in held])
        texts: dict[int, tuple[int, ...]] = {}
        for sequence in held:
            assert self.pages_for(sequence.bound) <= len(sequence.pages)
            assert len(sequence.pages) <= self.pages_for(sequence.ceiling)
            for column, page in enumerate(sequence.pages):
                end = (column + 1) * self._page_size
                if end > sequence.prefilled:
                    assert self.pages.holders(page) == 1, "shared before it was full"
                text = tuple(sequence.tokens[:end])
                assert texts.setdefault(page, text) == text, "one page, two texts"

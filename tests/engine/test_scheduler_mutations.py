"""Bugs put into the scheduler on purpose: the fake device's random traffic finds every one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Items
from typing import Any

import pytest
from tests.engine.fake import crowd, play

from paceline.engine.paging import Paging
from paceline.engine.scheduling import Scheduler
from paceline.engine.sequence import Line, Sequence, Status
from paceline.kv.pages import PageAllocator
from paceline.kv.prefix import Hit, PrefixIndex

Patch = Callable[[pytest.MonkeyPatch], None]


def given_away_early(patch: pytest.MonkeyPatch) -> None:
    """A sequence's pages are free with the last round but one that saw them."""
    settled = Scheduler.settled

    def early(self: Scheduler, sequence: Sequence, tokens: Iterable[int]) -> None:
        if sequence.status is Status.LEAVING and sequence.in_flight == 2:
            sequence.grown.pop()
        if sequence.in_flight:
            settled(self, sequence, tokens)

    finish = Scheduler.finish

    def at_once(self: Scheduler, sequence: Sequence, keep: bool = True) -> None:
        if sequence.in_flight:
            sequence.grown.pop()
        finish(self, sequence, keep)

    patch.setattr(Scheduler, "settled", early)
    patch.setattr(Scheduler, "finish", at_once)


def resumed_half_way(patch: pytest.MonkeyPatch) -> None:
    """A preempted sequence resumes as if its caches still held what they held."""
    release, admit = Scheduler._release, Scheduler.admit
    had: dict[int, int] = {}

    def remember(self: Scheduler, sequence: Sequence) -> None:
        had[id(sequence)] = sequence.prefilled
        release(self, sequence)

    def keep(self: Scheduler) -> list[Sequence]:
        admitted = admit(self)
        for sequence in admitted:
            if sequence.preemptions:
                sequence.prefilled = had[id(sequence)]
        return admitted

    patch.setattr(Scheduler, "_release", remember)
    patch.setattr(Scheduler, "admit", keep)


def last_page_shared(patch: pytest.MonkeyPatch) -> None:
    """A hit takes the page in which two texts part, as far as they agree."""
    match = PrefixIndex.match

    def further(self: PrefixIndex, tokens: Items[int], most: int) -> Hit:
        hit = match(self, tokens, most)
        node = self._nodes[hit.pages[-1]] if hit.pages else self._root
        end = len(hit.pages) * self.page_size
        for key, child in node.children.items():
            if key[0] == tokens[end] and end + self.page_size <= most:
                return Hit([*hit.pages, child.page], hit.observed)
        return hit

    patch.setattr(PrefixIndex, "match", further)


def page_known_too_soon(patch: pytest.MonkeyPatch) -> None:
    """A page is put into the index with its last position still to come."""
    insert = Paging.insert

    def sooner(self: Paging, sequence: Sequence) -> None:
        prefilled = sequence.prefilled
        sequence.prefilled = len(sequence.tokens)
        insert(self, sequence)
        sequence.prefilled = prefilled

    patch.setattr(Paging, "insert", sooner)


def hit_of_the_whole_prompt(patch: pytest.MonkeyPatch) -> None:
    """The last token of a prompt may be hit as well, and no root is left."""
    look_up = PrefixIndex.match

    def whole(self: PrefixIndex, tokens: Items[int], most: int) -> Hit:
        return look_up(self, tokens, len(tokens))

    patch.setattr(PrefixIndex, "match", whole)


def hit_counted_one_more(patch: pytest.MonkeyPatch) -> None:
    """A hit is taken to reach one position into the next page."""
    admit = Scheduler.admit

    def more(self: Scheduler) -> list[Sequence]:
        admitted = admit(self)
        for sequence in admitted:
            if 0 < sequence.hit < len(sequence.tokens) - 1:
                sequence.prefilled += 1
        return admitted

    patch.setattr(Scheduler, "admit", more)


def holder_forgotten(patch: pytest.MonkeyPatch) -> None:
    """Whoever leaves keeps its last page."""
    drop = PageAllocator.drop

    def fewer(self: PageAllocator, pages: Items[int]) -> None:
        drop(self, pages[:-1] if len(pages) > 6 else pages)

    patch.setattr(PageAllocator, "drop", fewer)


def holder_not_counted(patch: pytest.MonkeyPatch) -> None:
    """A hit on pages that somebody holds counts as no holder."""

    def only_cached(self: PageAllocator, pages: Iterable[int]) -> None:
        for page in pages:
            if self._holders[page] == 0:
                del self._cached[page]
                self._holders[page] = 1

    patch.setattr(PageAllocator, "share", only_cached)


def beginning_given_back_first(patch: pytest.MonkeyPatch) -> None:
    """Pages are dropped from the front, so that a text's beginning is evicted before its end."""
    drop = PageAllocator.drop

    def forwards(self: PageAllocator, pages: Items[int]) -> None:
        for page in pages:
            drop(self, [page])

    patch.setattr(PageAllocator, "drop", forwards)


def known_after_eviction(patch: pytest.MonkeyPatch) -> None:
    """The index still knows a page that was given to somebody else."""
    patch.setattr(PrefixIndex, "evict", lambda self, page: None)


def parent_ignored(patch: pytest.MonkeyPatch) -> None:
    """A page is known by its own tokens, whatever stands in front of it."""
    match = PrefixIndex.match

    def anywhere(self: PrefixIndex, tokens: Items[int], most: int) -> Hit:
        hit = match(self, tokens, most)
        end = (len(hit.pages) + 1) * self.page_size
        for page, node in self._nodes.items():
            if end <= most and node.key == self._key(tokens, end):
                return Hit([*hit.pages, page], hit.observed)
        return hit

    patch.setattr(PrefixIndex, "match", anywhere)


def below_anothers_page(patch: pytest.MonkeyPatch) -> None:
    """Pages are put into the index below pages that their holder does not hold."""
    insert = PrefixIndex.insert

    def anyway(
        self: PrefixIndex, tokens: Items[int], pages: Items[int], observed: int = 0, sound: int = 0
    ) -> None:
        theirs = self.match(tokens, len(pages) * self.page_size).pages
        insert(self, tokens, [*theirs, *pages[len(theirs) :]], 0, 0)

    patch.setattr(PrefixIndex, "insert", anyway)
    patch.setattr(Paging, "adopt", lambda self, sequence, hit: None)


def failure_not_told(patch: pytest.MonkeyPatch) -> None:
    """What a failed text computed is kept for others, and taken to be sound."""
    finish = Scheduler.finish

    def keep_all(self: Scheduler, sequence: Sequence, keep: bool = True) -> None:
        if not keep:
            sequence.sound = sequence.prefilled
        finish(self, sequence)

    patch.setattr(Scheduler, "finish", keep_all)


def drafter_always_valid(patch: pytest.MonkeyPatch) -> None:
    """Every page is taken to be valid for the drafter."""
    match = PrefixIndex.match

    def valid(self: PrefixIndex, tokens: Items[int], most: int) -> Hit:
        hit = match(self, tokens, most)
        return Hit(hit.pages, len(hit.pages) * self.page_size)

    patch.setattr(PrefixIndex, "match", valid)


def shift_ignored(patch: pytest.MonkeyPatch) -> None:
    """A page's last position in the drafter's cache depends on a token that it is not known by."""
    init = PrefixIndex.__init__
    patch.setattr(PrefixIndex, "__init__", lambda self, size, shift=0: init(self, size, 0))


def flight_not_counted(patch: pytest.MonkeyPatch) -> None:
    """Pages are reserved as if the rounds in flight committed nothing."""
    patch.setattr(Sequence, "bound", property(lambda self: len(self.tokens)))


def window_not_counted(patch: pytest.MonkeyPatch) -> None:
    """Pages are reserved for one position less than a round and its draft touch."""
    end = Sequence.end
    patch.setattr(Sequence, "end", lambda self, reach: end(self, reach) - 1)


def first_thrown_out(patch: pytest.MonkeyPatch) -> None:
    """Who came first gives way."""

    def best(*values: Any, key: Any = None) -> Any:
        return min(*values) if key is None else max(*values, key=key)

    patch.setattr("paceline.engine.scheduling.min", best, raising=False)


def place_lost(patch: pytest.MonkeyPatch) -> None:
    """The preempted go to the end of the line."""
    make_room = Scheduler.make_room

    def last(self: Scheduler, rows: Iterable[Sequence], reach: int) -> list[Sequence]:
        victims = make_room(self, rows, reach)
        for victim in victims:
            self._waiting.remove(victim)
            self._arrivals += 1
            victim.arrival = self._arrivals
            self._waiting.add(victim)
        return victims

    patch.setattr(Scheduler, "make_room", last)


def small_ones_first(patch: pytest.MonkeyPatch) -> None:
    """Who needs the fewest pages is let in first."""
    patch.setattr(
        Line, "first", property(lambda self: min(self, key=lambda s: len(s.tokens), default=None))
    )


def let_in_and_thrown_out(patch: pytest.MonkeyPatch) -> None:
    """Whoever fits is let in, though the others are about to want those pages."""

    def greedy(self: Scheduler, sequence: Sequence) -> Hit | None:
        hit = self._paging.look_up(sequence)
        fresh = self._paging.pages_for(sequence.end(self._reach)) - len(hit.pages)
        return hit if fresh + self.pages.unheld(hit.pages) <= self.pages.available else None

    patch.setattr(Scheduler, "_offer", greedy)


def forgotten_when_cancelled(patch: pytest.MonkeyPatch) -> None:
    """A sequence that is cancelled while rounds are in flight is never freed."""
    settled = Scheduler.settled

    def stuck(self: Scheduler, sequence: Sequence, tokens: Iterable[int]) -> None:
        if sequence.status is Status.LEAVING and sequence.in_flight == 1:
            return
        settled(self, sequence, tokens)

    patch.setattr(Scheduler, "settled", stuck)


def token_lost(patch: pytest.MonkeyPatch) -> None:
    """A preempted sequence forgets its last token."""
    make_room = Scheduler.make_room

    def shorter(self: Scheduler, rows: Iterable[Sequence], reach: int) -> list[Sequence]:
        victims = make_room(self, rows, reach)
        for victim in victims:
            del victim.tokens[max(len(victim.request.prompt), len(victim.tokens) - 1) :]
        return victims

    patch.setattr(Scheduler, "make_room", shorter)


BUGS: tuple[Patch, ...] = (
    given_away_early,
    resumed_half_way,
    last_page_shared,
    page_known_too_soon,
    hit_of_the_whole_prompt,
    hit_counted_one_more,
    holder_forgotten,
    holder_not_counted,
    beginning_given_back_first,
    known_after_eviction,
    parent_ignored,
    below_anothers_page,
    failure_not_told,
    drafter_always_valid,
    shift_ignored,
    flight_not_counted,
    window_not_counted,
    first_thrown_out,
    place_lost,
    small_ones_first,
    let_in_and_thrown_out,
    forgotten_when_cancelled,
    token_lost,
)


@pytest.mark.parametrize("bug", BUGS, ids=[bug.__name__ for bug in BUGS])
def test_a_bug_is_found(bug: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    bug(monkeypatch)
    with pytest.raises(AssertionError):
        traffic()


def traffic() -> None:
    thrown = 0
    for seed in range(60):
        thrown += crowd(seed).scheduler.preemptions
        play(seed)
    assert thrown < 200, "pages are handed to and fro"


def test_without_a_bug_nothing_is_found() -> None:
    traffic()

"""Who waits, who runs, who holds which slot and pages. Host only: no torch, no device, no clock.

Higher priorities first, then first come, first served, and nobody overtakes. Where pages run out
the last in that order gives its own back and waits again; the first of those that hold a slot is
never asked to, so there is always progress. Slot 0 and page 0 are scratch and never given out.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

from paceline.engine.sequence import Line, Sequence, Status
from paceline.errors import RequestError
from paceline.kv.pages import PageAllocator
from paceline.kv.prefix import Hit, PrefixIndex
from paceline.types import Request


@dataclass(frozen=True, slots=True)
class Grant:
    """What to write into a slot's row of the page table: `pages`, from column `first` on."""

    slot: int
    first: int
    pages: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Counts:
    """How many sequences and pages stand where. The last four are totals, the last three tokens,
    tokens and pages: looked up in the prefix index, found there, and evicted from it."""

    waiting: int
    prefilling: int
    running: int
    leaving: int
    pages_used: int
    pages_cached: int
    pages_unused: int
    preemptions: int
    prefix_asked: int
    prefix_hits: int
    prefix_evictions: int


class Scheduler:
    """Gives out slots and pages; every change of a sequence's status is made here."""

    def __init__(
        self,
        *,
        slots: int,
        pages: int,
        page_size: int,
        max_length: int,
        reach: int,
        lookahead: int = 0,
        prefix: bool = True,
        catch_up: Literal["none", "tokens", "observe"] = "none",
        shift: int = 0,
    ) -> None:
        """slots, pages: how many there are, slot 0 and page 0 included. reach: the most that
        `reserve` is ever asked for, the greatest window and the draft behind it. prefix: whether
        pages are kept for later requests. lookahead, catch_up, shift: the drafter's `Needs`."""
        self.index = PrefixIndex(page_size, shift)
        self.pages = PageAllocator(pages, self.index)
        self.preemptions = 0
        self._page_size, self._max_length = page_size, max_length
        self._reach, self._lookahead = reach, lookahead
        self._prefix, self._catch_up = prefix, catch_up
        self._slots = slots
        self._free = list(range(1, slots))
        self._held: dict[int, Sequence] = {}
        self._waiting = Line(lambda s: s.rank)
        self._deadlines = Line(lambda s: (-_deadline(s), -s.arrival))
        self._arrivals = self._admissions = 0
        self._blocked: tuple[Sequence, int, int] | None = None

    # --- who comes and who goes ---------------------------------------------------------------

    def extent(self, request: Request) -> tuple[int, int]:
        """The longest that its text can be, and the most positions that its rounds touch. Raises
        RequestError where it could never fit. May be called from any thread."""
        assert 0 < len(request.prompt) < self._max_length
        limit = min(len(request.prompt) + request.params.max_tokens, self._max_length)
        ceiling = min(limit + self._lookahead, self._max_length)
        room = self.pages.total * self._page_size
        if ceiling > room:
            most = room - self._lookahead - len(request.prompt)
            raise RequestError(
                f"the request may need {ceiling} positions of the cache, which holds {room}: "
                + (f"ask for max_tokens of at most {most}" if most > 0 else "shorten the prompt")
                + ", or open the engine with more cache_tokens"
            )
        return limit, ceiling

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence. Raises RequestError where it could never fit."""
        request = sequence.request
        assert sequence.arrival == 0
        sequence.limit, sequence.ceiling = self.extent(request)
        self._arrivals += 1
        sequence.arrival = self._arrivals
        self._waiting.add(sequence)
        if request.deadline is not None:
            self._deadlines.add(sequence)

    def admit(self) -> list[Sequence]:
        """Give slots, and pages for all of their tokens and a first round, to those who are first
        in line. Returns them in that order, in PREFILL. What their pages hold behind the prefix hit
        is anyone's."""
        admitted = []
        while self._free and (sequence := self._waiting.first) is not None:
            hit = self._offer(sequence)
            if hit is None:
                break
            self._waiting.remove(sequence)
            self._admissions += 1
            sequence.status, sequence.epoch = Status.PREFILL, self._admissions
            sequence.slot = heapq.heappop(self._free)
            self._held[sequence.slot] = sequence
            self.pages.share(hit.pages)
            fresh = self._pages_for(sequence.end(self._reach)) - len(hit.pages)
            sequence.pages = hit.pages + self.pages.take(fresh)
            sequence.prefilled = sequence.hit = len(hit.pages) * self._page_size
            sequence.observed, sequence.looked = hit.observed, self.index.inserts
            self.index.asked += len(sequence.tokens)
            self.index.hits += sequence.hit
            admitted.append(sequence)
        return admitted

    def rematch(self, sequence: Sequence) -> Grant | None:
        """Before a chunk of a prompt is read: take over what others have read of the same text
        since it was admitted. Returns what changes in its page table, if anything does."""
        assert sequence.status is Status.PREFILL
        if sequence.looked == self.index.inserts:
            return None
        hit, sequence.looked = self._look_up(sequence), self.index.inserts
        end = len(hit.pages) * self._page_size
        gained = end - sequence.prefilled
        if gained <= 0:
            return None
        self._adopt(sequence, hit)
        sequence.prefilled = end
        sequence.hit += gained
        self.index.hits += gained
        return Grant(sequence.slot, 0, tuple(hit.pages))

    def start(self, sequence: Sequence) -> None:
        """All of a text but its last token has been read: the sequence joins the rounds, and
        others may use its pages."""
        assert sequence.status is Status.PREFILL
        assert sequence.prefilled == len(sequence.tokens) - 1
        sequence.status = Status.RUNNING
        self._insert(sequence)

    def finish(self, sequence: Sequence, keep: bool = True) -> None:
        """A sequence has ended, or is wanted no longer, wherever it stands. Its slot and pages are
        free once no round in flight sees them: now, or with `settled`. keep: False where what its
        pages hold is not to be trusted; nobody is given them by the prefix index then."""
        sequence.keep = sequence.keep and keep
        if sequence.status in (Status.LEAVING, Status.DONE):
            return
        if sequence.request.deadline is not None:
            self._deadlines.remove(sequence)
        if sequence.status is Status.WAITING:
            self._waiting.remove(sequence)
            sequence.status = Status.DONE
        elif sequence.in_flight:
            sequence.status = Status.LEAVING
        else:
            self._release(sequence)
            sequence.status = Status.DONE

    def expire(self, now: float) -> list[Sequence]:
        """Sequences whose deadline has passed, the earliest first. The caller finishes them."""
        return self._deadlines.while_true(lambda s: _deadline(s) <= now)

    # --- rounds -------------------------------------------------------------------------------

    def missing(self, rows: Iterable[Sequence], reach: int) -> int:
        """Pages short for a round that goes `reach` past the text of each of `rows`."""
        assert reach <= self._reach, "admission counted on less"
        return max(0, sum(self._short(s, reach) for s in rows) - self.pages.available)

    def reserve(self, rows: Iterable[Sequence], reach: int) -> list[Grant]:
        """Give `rows` the pages for such a round. None may be missing. What the new pages hold is
        anyone's."""
        rows = list(rows)
        assert not self.missing(rows, reach), "settle and make room first"
        grants = []
        for sequence in rows:
            short = self._short(sequence, reach)
            if short:
                grants.append(
                    Grant(sequence.slot, len(sequence.pages), tuple(self.pages.take(short)))
                )
                sequence.pages += grants[-1].pages
        return grants

    def make_room(self, rows: Iterable[Sequence], reach: int) -> list[Sequence]:
        """Preempt, the last in line first, until nothing is missing for those of `rows` that still
        run. Nothing may be in flight. Returns the preempted: they wait again, with their place in
        line and all their tokens."""
        assert not any(s.in_flight for s in self._held.values()), "settle first"
        rows, victims = list(rows), []
        while self.missing(rows, reach):
            victim = min(self._held.values(), key=lambda s: s.rank)
            self._release(victim)
            victim.status = Status.WAITING
            victim.preemptions += 1
            self.preemptions += 1
            self._waiting.add(victim)
            victims.append(victim)
            rows = [s for s in rows if s is not victim]
        return victims

    def launched(self, rows: Iterable[Sequence], grow: int) -> None:
        """A round is on its way that commits `grow` tokens a row at most."""
        for sequence in rows:
            assert sequence.status is Status.RUNNING
            sequence.grown.append(grow)
            assert self._pages_for(sequence.bound) <= len(sequence.pages), "reserve first"

    def settled(self, sequence: Sequence, tokens: Iterable[int]) -> None:
        """A round that `sequence` was in has been read, the oldest in flight first, or has failed.
        tokens: what it committed. They are left out where the sequence had ended before."""
        grow = sequence.grown.pop(0)
        if sequence.status is Status.RUNNING:
            before = len(sequence.tokens)
            sequence.tokens.extend(tokens)
            assert len(sequence.tokens) <= min(before + grow, sequence.limit)
            if len(sequence.tokens) > before:
                sequence.prefilled = sequence.sound = len(sequence.tokens) - 1
        else:
            assert sequence.status is Status.LEAVING
            if not sequence.in_flight:
                self._release(sequence)
                sequence.status = Status.DONE

    # --- what can be seen ---------------------------------------------------------------------

    @property
    def prefilling(self) -> list[Sequence]:
        """Sequences whose prompt is being read, in the order they are to be read."""
        return sorted(self._with(Status.PREFILL), key=lambda s: s.rank, reverse=True)

    @property
    def running(self) -> list[Sequence]:
        """Sequences in the rounds, by slot."""
        return sorted(self._with(Status.RUNNING), key=lambda s: s.slot)

    @property
    def waiting(self) -> int:
        """How many wait for a slot and pages."""
        return len(self._waiting)

    @property
    def idle(self) -> bool:
        """Whether nobody waits and nobody holds a slot."""
        return not self._waiting and not self._held

    def counts(self) -> Counts:
        """How many sequences and pages stand where. May be called from any thread."""
        return Counts(
            waiting=len(self._waiting),
            prefilling=len(self._with(Status.PREFILL)),
            running=len(self._with(Status.RUNNING)),
            leaving=len(self._with(Status.LEAVING)),
            pages_used=self.pages.used,
            pages_cached=self.pages.cached,
            pages_unused=self.pages.unused,
            preemptions=self.preemptions,
            prefix_asked=self.index.asked,
            prefix_hits=self.index.hits,
            prefix_evictions=self.index.evictions,
        )

    def check(self) -> None:
        """Assert that every slot and page is where it belongs. Slow."""
        held = list(self._held.values())
        assert sorted([*self._free, *self._held]) == list(range(1, self._slots))
        self.pages.check([s.pages for s in held])
        texts: dict[int, tuple[int, ...]] = {}
        for sequence in held:
            assert self._held[sequence.slot] is sequence
            assert sequence.status in (Status.PREFILL, Status.RUNNING, Status.LEAVING)
            assert sequence.status is not Status.PREFILL or not sequence.in_flight
            assert sequence.status is not Status.LEAVING or sequence.in_flight
            length = len(sequence.tokens)
            assert 0 <= sequence.sound <= sequence.prefilled < length <= sequence.limit
            assert 0 <= sequence.observed <= length
            assert self._pages_for(sequence.bound) <= len(sequence.pages)
            assert len(sequence.pages) <= self._pages_for(sequence.ceiling)
            for column, page in enumerate(sequence.pages):
                end = (column + 1) * self._page_size
                if end > sequence.prefilled:
                    assert self.pages.holders(page) == 1, "shared before it was full"
                text = tuple(sequence.tokens[:end])
                assert texts.setdefault(page, text) == text, "one page, two texts"
        for sequence in self._waiting:
            assert sequence.status is Status.WAITING
            assert not sequence.pages
            assert not sequence.in_flight

    # --- the inside ---------------------------------------------------------------------------

    def _offer(self, sequence: Sequence) -> Hit | None:
        """The prefix hit that the first in line can be admitted with now; None if it must wait.

        Where others hold pages, so many more must be left that none of them, and it neither, runs
        short within the next page of its text: who is let in on their account is thrown out again.
        """
        ahead = self._reach + max(self._reach, self._page_size)
        others = [s for s in self._held.values() if s.status is not Status.LEAVING]
        room = self.pages.available - sum(self._short(s, ahead) for s in others)
        if self._blocked is not None:  # nothing is looked up again before something has changed
            who, least, inserts = self._blocked
            if who is sequence and room <= least and self.index.inserts == inserts:
                return None
        hit = self._look_up(sequence)
        fresh = self._pages_for(sequence.end(ahead if others else self._reach)) - len(hit.pages)
        fits = fresh + self.pages.unheld(hit.pages) <= room
        self._blocked = None if fits else (sequence, room, self.index.inserts)
        return hit if fits else None

    def _look_up(self, sequence: Sequence) -> Hit:
        """What can be used of what the index knows of a text, but for its last token: that is the
        first window's root."""
        if not self._prefix:
            return Hit([], 0)
        hit = self.index.match(sequence.tokens, len(sequence.tokens) - 1)
        if self._catch_up == "observe":  # what it has not seen it never will
            return Hit(hit.pages[: hit.observed // self._page_size], hit.observed)
        return hit

    def _adopt(self, sequence: Sequence, hit: Hit) -> None:
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

    def _insert(self, sequence: Sequence) -> None:
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

    def _release(self, sequence: Sequence) -> None:
        """Take back slot and pages. Full pages of what was settled stay known; of a text that
        failed those are forgotten that it may have spoiled, or have been spoiled by."""
        if sequence.keep:
            self._adopt(sequence, self.index.match(sequence.tokens, sequence.prefilled))
            self._insert(sequence)
        else:
            self.pages.discard(self.index.distrust(sequence.pages))
        self.pages.drop(sequence.pages)
        del self._held[sequence.slot]
        heapq.heappush(self._free, sequence.slot)
        sequence.pages = []
        sequence.prefilled = sequence.observed = sequence.hit = sequence.sound = 0

    def _short(self, sequence: Sequence, reach: int) -> int:
        """Pages that `sequence` lacks for a round of that reach."""
        return max(0, self._pages_for(sequence.end(reach)) - len(sequence.pages))

    def _pages_for(self, positions: int) -> int:
        return -(-positions // self._page_size)

    def _with(self, status: Status) -> list[Sequence]:
        return [s for s in list(self._held.values()) if s.status is status]


def _deadline(sequence: Sequence) -> float:
    deadline = sequence.request.deadline
    assert deadline is not None
    return deadline

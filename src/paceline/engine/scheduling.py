"""Who waits, who runs, who holds which slot. Host only: no torch, no device, no clock.

Higher priorities first, then first come, first served, and nobody overtakes. Where pages run out
the last in that order gives its own back and waits again; the first of those that hold a slot is
never asked to, so there is always progress. Slot 0 and page 0 are scratch and never given out.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from paceline.engine.paging import Grant, Paging
from paceline.engine.sequence import Line, Sequence, Status
from paceline.errors import RequestError
from paceline.kv.prefix import Hit
from paceline.types import Request


@dataclass(frozen=True, slots=True)
class Counts:
    """How many sequences and pages stand where. The last three are totals, the last two
    tokens: looked up in the prefix index, and found there."""

    waiting: int
    prefilling: int
    running: int
    pages_used: int
    pages_cached: int
    preemptions: int
    prefix_asked: int
    prefix_hits: int


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
        pages are kept for later requests. lookahead: positions behind a text's end that a draft may
        write; catch_up, shift: the drafter's `Needs`."""
        self._paging = Paging(pages, page_size, prefix=prefix, catch_up=catch_up, shift=shift)
        self.index, self.pages = self._paging.index, self._paging.pages
        self.preemptions = 0
        self._page_size, self._max_length = page_size, max_length
        self._reach, self._lookahead = reach, lookahead
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
        most = self.room(len(request.prompt))
        if limit - len(request.prompt) > most:
            raise RequestError(
                f"the request may need {ceiling} positions of the cache, which holds "
                f"{self._positions}: "
                + (f"ask for max_tokens of at most {most}" if most > 0 else "shorten the prompt")
                + ", or open the engine with more cache_tokens"
            )
        return limit, ceiling

    def room(self, prompt: int) -> int:
        """The most tokens that can ever be written behind a prompt of so many: none where it is
        below 1. May be called from any thread."""
        if self._max_length <= self._positions:
            return self._max_length - prompt
        return self._positions - self._lookahead - prompt

    @property
    def _positions(self) -> int:
        return self.pages.total * self._page_size

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
            self._paging.give(sequence, hit, self._reach)
            admitted.append(sequence)
        return admitted

    def rematch(self, sequence: Sequence) -> Grant | None:
        """Before a chunk of a prompt is read: take over what others have read of the same text
        since it was admitted. Returns what changes in its page table, if anything does."""
        assert sequence.status is Status.PREFILL
        return self._paging.rematch(sequence)

    def start(self, sequence: Sequence) -> None:
        """All of a text but its last token has been read: the sequence joins the rounds, and
        others may use its pages."""
        assert sequence.status is Status.PREFILL
        assert sequence.prefilled == len(sequence.tokens) - 1
        sequence.status = Status.RUNNING
        self._paging.insert(sequence)

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
        return max(0, sum(self._paging.short(s, reach) for s in rows) - self.pages.available)

    def reserve(self, rows: Iterable[Sequence], reach: int) -> list[Grant]:
        """Give `rows` the pages for such a round. None may be missing. What the new pages hold is
        anyone's."""
        rows = list(rows)
        assert not self.missing(rows, reach), "settle and make room first"
        return self._paging.extend(rows, reach)

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
            enough = self._paging.pages_for(sequence.bound) <= len(sequence.pages)
            assert enough, "reserve first"

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
            pages_used=self.pages.used,
            pages_cached=self.pages.cached,
            preemptions=self.preemptions,
            prefix_asked=self.index.asked,
            prefix_hits=self.index.hits,
        )

    def check(self) -> None:
        """Assert that every slot and page is where it belongs. Slow."""
        held = list(self._held.values())
        assert sorted([*self._free, *self._held]) == list(range(1, self._slots))
        self._paging.check(held)
        for sequence in held:
            assert self._held[sequence.slot] is sequence
            assert sequence.status in (Status.PREFILL, Status.RUNNING, Status.LEAVING)
            assert sequence.status is not Status.PREFILL or not sequence.in_flight
            assert sequence.status is not Status.LEAVING or sequence.in_flight
            length = len(sequence.tokens)
            assert 0 <= sequence.sound <= sequence.prefilled < length <= sequence.limit
            assert 0 <= sequence.observed <= length
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
        room = self.pages.available - sum(self._paging.short(s, ahead) for s in others)
        if self._blocked is not None:  # nothing is looked up again before something has changed
            who, least, inserts = self._blocked
            if who is sequence and room <= least and self.index.inserts == inserts:
                return None
        hit = self._paging.look_up(sequence)
        end = sequence.end(ahead if others else self._reach)
        fresh = self._paging.pages_for(end) - len(hit.pages)
        fits = fresh + self.pages.unheld(hit.pages) <= room
        self._blocked = None if fits else (sequence, room, self.index.inserts)
        return hit if fits else None

    def _release(self, sequence: Sequence) -> None:
        """Take back slot and pages."""
        self._paging.take_back(sequence)
        del self._held[sequence.slot]
        heapq.heappush(self._free, sequence.slot)

    def _with(self, status: Status) -> list[Sequence]:
        return [s for s in list(self._held.values()) if s.status is status]


def _deadline(sequence: Sequence) -> float:
    deadline = sequence.request.deadline
    assert deadline is not None
    return deadline

"""Reading prompts beside running texts: how much a step reads, and who reads it.

A text may be read in any pieces; what a step may take is bounded by tokens, and where the user
bounds the gap between a running text's tokens, by seconds: what the last rounds took from one to
the next, and what the passes of a chunk will hardly pass (`engine.paces`). Draws nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from paceline.engine.catch_up import Span
from paceline.engine.landing import Marks
from paceline.engine.paces import Cut, Estimate, Paces
from paceline.engine.readings import Readings, pieces
from paceline.engine.round import Machine
from paceline.engine.scheduling import Scheduler
from paceline.engine.sequence import Sequence

log = logging.getLogger(__name__)

_STEP = 64  # what a step reads is made of so many tokens
_STRIDE = 256  # and from twice as many on of so many, so that few sizes are met for the first time
_LEAST = 16  # tokens that it reads whatever the bound, so that every prompt is read some day
_KEPT = 0.95  # of the bound that is given out: a caller has still to be woken


@dataclass(frozen=True, slots=True)
class Read:
    """What was given to the device in front of a round. cut: its passes, none where a drafter was
    brought up to date; shown: to the drafter as well. wall: seconds that the host took for it;
    beside: whether texts ran; planned: whether whoever chooses K has reckoned with it."""

    cut: Cut
    shown: bool
    marks: Marks
    wall: float
    beside: bool
    planned: bool = False


@dataclass(slots=True)
class Feeder:
    """Reads prompts in chunks. chunk: tokens a step at most; paces: what reading takes; max_gap:
    seconds between two rounds of running texts, at most, or None."""

    machine: Machine
    readings: Readings
    scheduler: Scheduler
    chunk: int
    paces: Paces
    max_gap: float | None = None
    _reads: list[Read] = field(default_factory=list)
    _rest: Estimate | None = None  # from a round to the next, beside what is read in between
    _told: bool = False

    def step_tokens(self, sequence: Sequence, left: int, drafting: bool, busy: float | None) -> int:
        """How many tokens of `sequence` may be read now. left: tokens of the step's budget;
        drafting: as for `read`; busy: seconds that a round of the running texts takes, or None
        where none runs."""
        start = sequence.prefilled
        most = min(left, len(sequence.tokens) - 1 - start)
        return self._fit(start, most, self._shown(sequence, drafting), busy)

    def _fit(self, start: int, most: int, shown: bool, busy: float | None) -> int:
        """How many of `most` tokens from `start` on a step may read."""
        if busy is None or self.max_gap is None or not most:  # a prefix hit may be all of a prompt
            return most
        if not self.paces.known:
            return min(most, _LEAST)
        rest = max(busy, (self._rest or Estimate(busy)).safe)
        room, tokens = _KEPT * self.max_gap - rest, most
        while tokens > _LEAST and self.paces.safe(self._cut(start, start + tokens), shown) > room:
            step = _STRIDE if tokens > 2 * _STRIDE else _STEP
            tokens = max(_LEAST, (tokens - 1) // step * step)
        expected = self.paces.seconds(self._cut(start, start + tokens), shown)
        if not self._told and expected > self.max_gap - busy:
            self._told = True
            log.warning(
                "max_gap of %.0f ms cannot be kept: a round takes %.1f ms and reading %d tokens "
                "of a prompt %.1f ms",
                1e3 * self.max_gap,
                1e3 * busy,
                tokens,
                1e3 * expected,
            )
        return tokens

    def _shown(self, sequence: Sequence, drafting: bool) -> bool:
        """Whether the drafter is shown what is read: where it has seen all that is before it."""
        if self.machine.drafter.needs.catch_up != "tokens":
            return True
        return drafting and sequence.observed >= sequence.prefilled

    def _cut(self, start: int, stop: int) -> Cut:
        return list(pieces(start, stop, self.readings.widths))

    def read(
        self, sequence: Sequence, tokens: int, drafting: bool, busy: float | None = None
    ) -> None:
        """Read the next `tokens` tokens. drafting: bring the drafter's cache along; else it is
        brought up to date when it is wanted. busy: as for `step_tokens`; where a prefix was found
        that the drafter has not seen, a step under `max_gap` shows it what fits, and reads
        nothing until the next."""
        slot, beside, start = sequence.slot, busy is not None, sequence.prefilled
        shown = self._shown(sequence, drafting)
        if drafting and not shown:
            behind, seen = start - sequence.observed, sequence.observed
            # A pass of the drafter alone takes less than one of both.
            stop = seen + self._fit(seen, behind, True, busy)
            self.bring_up({sequence: stop}, beside, planned=False)
            if beside and self.max_gap is not None:
                return
            shown = True
        stop = start + tokens
        began, marks = time.perf_counter(), self._begin()
        self.readings.read(slot, start, stop, shown)
        self._end(marks, began, self._cut(start, stop), shown, beside)
        sequence.prefilled = stop
        if shown:
            sequence.observed = max(sequence.observed, stop)

    def bring_up(
        self, stops: Mapping[Sequence, int], beside: bool = True, planned: bool = True
    ) -> None:
        """Show the drafter what it has not seen of these sequences' tokens, up to the position
        (exclusive) that each is given with. beside, planned: see `Read`."""
        if all(sequence.observed >= stop for sequence, stop in stops.items()):
            return
        began, marks = time.perf_counter(), self._begin()
        while behind := [s for s, stop in stops.items() if s.observed < stop]:
            ends = [min(s.observed + self.chunk, stops[s]) for s in behind]
            spans = [Span(s.slot, s.observed, e) for s, e in zip(behind, ends, strict=True)]
            self.readings.catch_up(spans)
            for sequence, end in zip(behind, ends, strict=True):
                sequence.observed = end
        self._end(marks, began, (), False, beside, planned)

    def _begin(self) -> Marks:
        marks = Marks(self.machine.slots.limits.device)
        marks.begin()
        return marks

    def _end(
        self,
        marks: Marks,
        began: float,
        cut: Cut,
        shown: bool,
        beside: bool,
        planned: bool = False,
    ) -> None:
        marks.middle()
        self._reads.append(Read(cut, shown, marks, time.perf_counter() - began, beside, planned))

    def take(self) -> Seq[Read]:
        """What was read since this was last asked, for `learn`: a round is launched behind it."""
        reads, self._reads = self._reads, []
        return reads

    def hosted(self, reads: Iterable[Read]) -> float:
        """Seconds that the host was busy with them while the device had work of its own."""
        if self.machine.slots.limits.device.type == "cpu":
            return 0.0
        return sum(read.wall for read in reads)

    def learn(self, reads: Seq[Read], elapsed: float | None) -> float:
        """A round has settled, so many seconds after the one before it (None: that says nothing),
        and so have `reads`, which were made in front of it. Returns the seconds of them that nobody
        had planned: what prompts took."""
        spent = prompts = 0.0
        for read in reads:
            seconds = read.marks.wait() or read.wall
            spent += seconds
            if read.cut:
                self.paces.hear(read.cut, read.shown, seconds)
            if not read.planned:
                prompts += seconds
        rest = 0.0 if elapsed is None else elapsed - spent
        if rest > 0 and all(read.beside for read in reads):
            if self._rest is None:
                self._rest = Estimate(rest)
            else:
                self._rest.hear(rest / self._rest.seconds)
        return prompts

"""Reading prompts beside running texts: how much a step reads, and who reads it.

A text may be read in any pieces; what a step may take is bounded by tokens, and where the user
bounds the gap between a running text's tokens, by seconds. Draws nothing.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from paceline.engine.catch_up import Span
from paceline.engine.landing import Marks
from paceline.engine.readings import Readings, pieces
from paceline.engine.round import Machine
from paceline.engine.scheduling import Scheduler
from paceline.engine.sequence import Sequence

log = logging.getLogger(__name__)

_STEP = 64  # what a step reads is made of so many tokens
_LEAST = 16  # tokens that it reads whatever the bound, so that every prompt is read some day
_FIXED = 64  # tokens' worth of time that a pass takes beside its tokens
_SAFETY = 0.85  # of the seconds that are left, what a prompt is given
_FIRST = 2  # times what is expected of a chunk of a kind that was never read, that it may take
_GAIN = 0.3  # how fast the measured paces follow


@dataclass(slots=True)
class Feeder:
    """Reads prompts in chunks. chunk: tokens a step at most; max_gap: seconds between two rounds
    of running texts, at most, or None. paces: seconds that a pass takes, by the width it is
    recorded with; under 0 seconds a token, of those that are not."""

    machine: Machine
    readings: Readings
    scheduler: Scheduler
    chunk: int
    max_gap: float | None = None
    paces: dict[int, float] = field(default_factory=dict)
    _marks: deque[tuple[int, int, Marks, float]] = field(default_factory=deque)
    _told: bool = False

    def step_tokens(self, sequence: Sequence, left: int, busy: float | None) -> int:
        """How many tokens of `sequence` may be read now. left: tokens of the step's budget; busy:
        seconds that a round of the running texts takes, or None where none runs."""
        start = sequence.prefilled
        return self._fit(start, min(left, len(sequence.tokens) - 1 - start), busy)

    def _fit(self, start: int, most: int, busy: float | None) -> int:
        """How many of `most` tokens from `start` on a step may read."""
        if busy is None or self.max_gap is None:
            return most
        if not self.paces:
            return min(most, _LEAST)
        room, tokens = _SAFETY * (self.max_gap - busy), most
        while tokens > _LEAST and self.seconds(start, start + tokens) > room:
            tokens = max(_LEAST, (tokens - 1) // _STEP * _STEP)
        expected = self.seconds(start, start + tokens)
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

    def seconds(self, start: int, stop: int) -> float:
        """What reading positions start to stop (exclusive) should take; 0 where nothing is known.
        Attention grows with the text, and everything else does not."""
        half = self.machine.target.half_context
        return sum(
            self._pace(width or end - begin, width) * (1 + (begin + end) / 2 / half)
            for begin, end, width in pieces(start, stop, self.readings.widths)
        )

    def _pace(self, tokens: int, width: int) -> float:
        """Seconds of a pass at the begin of a text; one that was never seen as the nearest that
        was."""
        if width in self.paces:
            return self.paces[width] * (1 if width else tokens + _FIXED)
        if not self.paces:
            return 0.0
        near = min(self.paces, key=lambda other: abs(other - tokens))
        # The first chunk that is not recorded is slow besides: whatever it needs is made for it.
        caution = 1 if width else _FIRST
        return caution * self.paces[near] * (tokens + _FIXED) / (near + _FIXED if near else 1)

    def read(
        self, sequence: Sequence, tokens: int, drafting: bool, busy: float | None = None
    ) -> None:
        """Read the next `tokens` tokens. drafting: bring the drafter's cache along; else it is
        brought up to date when it is wanted. busy: as for `step_tokens`; where a prefix was found
        that the drafter has not seen, a step under `max_gap` shows it what fits, and reads
        nothing until it is there."""
        machine, slot = self.machine, sequence.slot
        start, stop = sequence.prefilled, sequence.prefilled + tokens
        follows = machine.drafter.needs.catch_up != "tokens"
        if drafting and not follows and sequence.observed < start:  # no part of the paces
            behind, seen = start - sequence.observed, sequence.observed
            # A pass of the drafter alone takes less than one of both.
            self.bring_up({sequence: seen + self._fit(seen, behind, busy)})
            if sequence.observed < start:
                return
        began, marks = time.perf_counter(), Marks(machine.slots.limits.device)
        marks.begin()
        shown = follows or (drafting and sequence.observed >= start)
        self.readings.read(slot, start, stop, shown)
        marks.middle()
        marks.end()
        self._marks.append((start, stop, marks, time.perf_counter() - began))
        sequence.prefilled = stop
        if shown:
            sequence.observed = max(sequence.observed, stop)

    def bring_up(self, stops: Mapping[Sequence, int]) -> None:
        """Show the drafter what it has not seen of these sequences' tokens, up to the position
        (exclusive) that each is given with."""
        while behind := [s for s, stop in stops.items() if s.observed < stop]:
            ends = [min(s.observed + self.chunk, stops[s]) for s in behind]
            spans = [Span(s.slot, s.observed, e) for s, e in zip(behind, ends, strict=True)]
            self.readings.catch_up(spans)
            for sequence, end in zip(behind, ends, strict=True):
                sequence.observed = end

    def learn(self) -> float:
        """A round has settled: so has what was read in front of it, but not behind, which nobody
        is to wait for. Returns the seconds that this reading took."""
        took = 0.0
        while self._marks and self._marks[0][2].passed:
            start, stop, marks, wall = self._marks.popleft()
            seconds = marks.wait() or wall
            self._hear(start, stop, seconds)
            took += seconds
        return took

    def _hear(self, start: int, stop: int, seconds: float) -> None:
        """Reading positions start to stop (exclusive) took so long: every width of its passes that
        is known moves by the same share, and one that is not has its part of the time."""
        half, expected = self.machine.target.half_context, self.seconds(start, stop)
        cut = list(pieces(start, stop, self.readings.widths))
        whole = sum((width or end - begin) + _FIXED for begin, end, width in cut)
        known = dict(self.paces)
        for begin, end, width in cut:
            if width in known:
                if expected > 0:
                    self.paces[width] = known[width] * (1 + _GAIN * (seconds / expected - 1))
                continue
            part = seconds / whole / (1 + (begin + end) / 2 / half)  # of one token
            self.paces[width] = part * (width + _FIXED) if width else part

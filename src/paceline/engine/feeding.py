"""Reading prompts beside running texts: how much a step reads, and who reads it.

A text may be read in any pieces; what a step may take is bounded by tokens, and where the user
bounds the gap between a running text's tokens, by seconds. Draws nothing.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import dataclass, field

from paceline.engine.landing import Marks
from paceline.engine.readings import Readings
from paceline.engine.round import Machine
from paceline.engine.scheduling import Scheduler
from paceline.engine.sequence import Sequence

log = logging.getLogger(__name__)

_LEAST = 64  # tokens a step reads whatever the bound, so that every prompt is read some day
_FIXED = 64  # tokens' worth of time that a pass takes beside its tokens
_SAFETY = 0.85  # of the seconds that are left, what a prompt is given
_GAIN = 0.3  # how fast the measured pace follows


@dataclass(slots=True)
class Feeder:
    """Reads prompts in chunks. chunk: tokens a step at most; max_gap: seconds between two rounds
    of running texts, at most, or None."""

    machine: Machine
    readings: Readings
    scheduler: Scheduler
    chunk: int
    max_gap: float | None = None
    pace: float | None = None  # seconds a unit of `_work`
    _marks: deque[tuple[float, Marks, float]] = field(default_factory=deque)
    _told: bool = False

    def step_tokens(self, sequence: Sequence, left: int, busy: float | None) -> int:
        """How many tokens of `sequence` may be read now. left: tokens of the step's budget; busy:
        seconds that a round of the running texts takes, or None where none runs."""
        last = len(sequence.tokens) - 1
        most = min(left, last - sequence.prefilled)
        if busy is None or self.max_gap is None:
            return most
        room = _SAFETY * (self.max_gap - busy)
        if self.pace is None:
            return min(most, _LEAST)
        tokens, start = most, sequence.prefilled
        while tokens > _LEAST and self._work(tokens, start) * self.pace > room:
            tokens -= _LEAST
        if not self._told and self._work(tokens, start) * self.pace > self.max_gap - busy:
            self._told = True
            log.warning(
                "max_gap of %.0f ms cannot be kept: a round takes %.1f ms and reading %d tokens "
                "of a prompt %.1f ms",
                1e3 * self.max_gap,
                1e3 * busy,
                tokens,
                1e3 * self._work(tokens, start) * self.pace,
            )
        return tokens

    def read(self, sequence: Sequence, tokens: int, drafting: bool) -> None:
        """Read the next `tokens` tokens. drafting: bring the drafter's cache along; else it is
        brought up to date when it is wanted."""
        machine, slot = self.machine, sequence.slot
        start, stop = sequence.prefilled, sequence.prefilled + tokens
        follows = machine.drafter.needs.catch_up != "tokens"
        if drafting and not follows and sequence.observed < start:
            self.bring_up(sequence, start)  # no part of the pace: a prefix hit may be long
        began, marks = time.perf_counter(), Marks(machine.slots.limits.device)
        marks.begin()
        shown = follows or (drafting and sequence.observed >= start)
        self.readings.read(slot, start, stop, shown)
        marks.middle()
        marks.end()
        self._marks.append((self._work(tokens, start), marks, time.perf_counter() - began))
        sequence.prefilled = stop
        if shown:
            sequence.observed = max(sequence.observed, stop)

    def bring_up(self, sequence: Sequence, stop: int) -> int:
        """Show the drafter the committed tokens up to position `stop` that it has not seen; how
        many they were."""
        count = stop - sequence.observed
        while sequence.observed < stop:
            end = min(sequence.observed + self.chunk, stop)
            self.readings.catch_up(sequence.slot, sequence.observed, end)
            sequence.observed = end
        return max(count, 0)

    def learn(self) -> None:
        """A round has settled: so has what was read in front of it, but not behind, which nobody
        is to wait for."""
        while self._marks and self._marks[0][1].passed:
            work, marks, wall = self._marks.popleft()
            seconds = (marks.wait() or wall) / work
            self.pace = seconds if self.pace is None else self.pace + _GAIN * (seconds - self.pace)

    def _work(self, tokens: int, start: int) -> float:
        """What reading `tokens` at `start` takes, in tokens at 0: attention grows with the text."""
        return (tokens + _FIXED) * (1 + (start + tokens / 2) / self.machine.target.half_context)

"""Reading beside running texts: how much a step reads of prompts, of texts that are scored, and of
what a drafter has not seen.

A text may be read in any pieces; what a step may take is bounded by tokens, and where the user
bounds the gap between a running text's tokens, by seconds: what the last rounds took from one to
the next, and what the passes of a chunk will hardly pass (`engine.paces`). Draws nothing.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from paceline.engine import scoring
from paceline.engine.catch_up import Span, cut
from paceline.engine.fitting import STEP, fit, fitting, lagging, spans, total
from paceline.engine.landing import Marks
from paceline.engine.paces import Cut, Estimate, Paces
from paceline.engine.readings import Readings, pieces
from paceline.engine.round import Machine
from paceline.engine.scheduling import Scheduler
from paceline.engine.scoring import Scorer
from paceline.engine.sequence import Sequence
from paceline.types import TokenLogprob

log = logging.getLogger(__name__)

_KEPT = 0.95  # of the bound that is given out: a caller has still to be woken
_MANY = 64  # reads that are remembered where no round comes behind them


@dataclass(frozen=True, slots=True)
class Read:
    """What was given to the device in front of a round. cut: its passes; paces: what they teach;
    shown: to the drafter as well. wall: seconds that the host took for it; safe: that the device
    will hardly take longer than; beside: whether texts ran; planned: whether whoever chooses K has
    reckoned with it."""

    cut: Cut
    paces: Paces
    shown: bool
    marks: Marks
    wall: float
    safe: float
    beside: bool
    planned: bool = False


@dataclass(slots=True)
class Feeder:
    """Reads prompts in chunks. chunk: tokens a step at most; paces: what reading takes; max_gap:
    seconds between two rounds of running texts, at most, or None. Where a method is given `busy`,
    it is the seconds that a round of the running texts takes, or None where none runs."""

    machine: Machine
    readings: Readings
    scheduler: Scheduler
    chunk: int
    paces: Paces
    max_gap: float | None = None
    _showing: Paces = field(init=False)  # of passes of the drafter alone
    _scoring: Paces = field(init=False)
    _reads: deque[Read] = field(default_factory=lambda: deque(maxlen=_MANY))
    _waited: bool = False  # what a drafter is to be shown has waited for a step once
    _rest: Estimate | None = None  # from a round to the next, beside what is read in between
    _told: bool = False

    def __post_init__(self) -> None:
        self._showing, self._scoring = Paces(self.paces.half), Paces(self.paces.half)

    # --- how much ---

    def _room(self, busy: float | None) -> float:
        """Seconds that may still be read in front of the next round."""
        if busy is None or self.max_gap is None:
            return math.inf
        rest = max(busy, (self._rest or Estimate(busy)).safe)
        given = sum(read.safe for read in self._reads if read.beside)
        return _KEPT * self.max_gap - rest - given

    def step_tokens(self, sequence: Sequence, left: int, drafting: bool, busy: float | None) -> int:
        """How many tokens of `sequence` may be read now. left: tokens of the step's budget;
        drafting: as for `read`."""
        start, room = sequence.prefilled, self._room(busy)
        most = min(left, len(sequence.tokens) - 1 - start)
        if room == math.inf or not most:  # a prefix hit may be all of a prompt
            return most
        assert busy is not None
        assert self.max_gap is not None
        shown = self._shown(sequence, drafting)

        def safe(n: int) -> float:
            return self.paces.safe(self._cut(start, start + n), shown)

        tokens = fit(safe, most, room)
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

    # --- prompts ---

    def read(
        self, sequence: Sequence, tokens: int, drafting: bool, busy: float | None = None
    ) -> None:
        """Read the next `tokens` tokens. drafting: bring the drafter's cache along; else it is
        brought up to date when it is wanted. Where a prefix was found that the drafter has not
        seen, a step under `max_gap` shows it what fits, and reads nothing until the next."""
        slot, start = sequence.slot, sequence.prefilled
        shown = self._shown(sequence, drafting)
        if drafting and not shown:
            self.bring_up({sequence: start}, busy, planned=False)
            if self._room(busy) < math.inf:
                return
            shown = True
        stop = start + tokens
        began, marks = time.perf_counter(), self._begin()
        self.readings.read(slot, start, stop, shown)
        self._end(marks, began, self._cut(start, stop), self.paces, shown, busy)
        sequence.prefilled = stop
        if shown:
            sequence.observed = max(sequence.observed, stop)

    # --- a drafter that has not seen all ---

    def bring_up(
        self, stops: Mapping[Sequence, int], busy: float | None = None, planned: bool = True
    ) -> bool:
        """Show the drafter what it has not seen of these sequences' tokens, up to the position
        (exclusive) that each is given with; under `max_gap` what fits, and where that is next to
        nothing, more than these texts grow meanwhile. Returns whether it has seen all now. planned:
        see `Read`; it can wait once for a step in which nothing else is read."""
        behind = lagging(stops)
        if not behind:
            return True
        room = self._room(busy)
        bounded = room < math.inf
        layers = [spans(behind, self.chunk)]
        if bounded:
            waits = planned and not self._waited and any(read.beside for read in self._reads)
            layers = fitting(behind, room, self._to_show, waits)
            self._waited = not layers
        began, marks, passes = time.perf_counter(), self._begin(), list[tuple[int, int, int]]()
        while layers:
            layer = layers.pop(0)
            if self.max_gap is not None:
                passes += self._passes(layer)
            self.readings.catch_up(layer)
            shown = {span.slot: span.stop for span in layer}
            for sequence in behind:
                sequence.observed = shown.get(sequence.slot, sequence.observed)
            behind = lagging(stops)
            if behind and not bounded:
                layers = [spans(behind, self.chunk)]
        if passes or not bounded:
            self._end(marks, began, passes, self._showing, True, busy, planned and not behind)
        return not behind

    def _to_show(self, group: Seq[Span]) -> float:
        """Seconds that the drafter will hardly need for them. Less than with the target."""
        passes = self._passes(group)
        both = self.paces.safe(passes, True)
        return min(both, self._showing.safe(passes, True)) if self._showing.known else both

    def _passes(self, layer: Seq[Span]) -> list[tuple[int, int, int]]:
        """Those of `Readings.catch_up`; one over several texts is taken for one of as many tokens
        where these texts end on average."""
        found = list[tuple[int, int, int]]()
        for group in cut(layer):
            if len(group) == 1:
                found += self._cut(group[0].start, group[0].stop)
                continue
            tokens = total(group)
            start = sum(span.start for span in group) // len(group)
            width = next((w for w in self.readings.widths if w >= tokens), 0)
            found.append((start, start + tokens, width))
        return found

    # --- texts that are scored ---

    def score(self, scorer: Scorer, top: int, busy: float | None) -> Seq[TokenLogprob]:
        """The next tokens of a text that is scored: no more than half of what fits, so that a
        prompt can be read in front of the same round. top: see `Scorer.logprobs`."""
        target, start, room = self.machine.target, scorer.done, self._room(busy) / 2
        tokens = min(scoring.PIECE, scorer.left)
        if not tokens:
            return []
        if room < math.inf:
            tokens = self._to_score(start, tokens, room)
        began, marks = time.perf_counter(), self._begin()
        scores = scorer.logprobs(target, top, tokens)
        passes = [(start, start + tokens, 0)]
        if busy is not None:
            self._end(marks, began, passes, self._scoring, False, busy)
        else:  # nobody waits; the host has waited for the scores
            self._scoring.hear(passes, False, time.perf_counter() - began)
        return scores

    def _to_score(self, start: int, most: int, room: float) -> int:
        """How many of `most` tokens fit. What one pass takes says little of a wider one, which
        takes no longer than as many as it has tokens for: where four of the size that fits would
        take twice the room at most, which is what there is, the next size is tried once."""

        def safe(n: int) -> float:
            return self._scoring.safe([(start, start + n, 0)], False)

        tokens = fit(safe, most, room)
        wider = min(most, max(STEP, 2 * tokens))
        if self._scoring.met(tokens) and not self._scoring.met(wider) and 2 * safe(tokens) <= room:
            return wider
        return tokens

    # --- what it took ---

    def _begin(self) -> Marks:
        marks = Marks(self.machine.slots.limits.device)
        marks.begin()
        return marks

    def _end(
        self,
        marks: Marks,
        began: float,
        cut: Cut,
        paces: Paces,
        shown: bool,
        busy: float | None,
        planned: bool = False,
    ) -> None:
        marks.middle()
        wall, beside = time.perf_counter() - began, busy is not None
        safe = 0.0 if self.max_gap is None else paces.safe(cut, shown) if paces.known else wall
        self._reads.append(Read(cut, paces, shown, marks, wall, safe, beside, planned))

    def take(self) -> Seq[Read]:
        """What was read since this was last asked, for `learn`: a round is launched behind it."""
        reads = tuple(self._reads)
        self._reads.clear()
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
            read.paces.hear(read.cut, read.shown, seconds)
            if not read.planned:
                prompts += seconds
        rest = 0.0 if elapsed is None else elapsed - spent
        if rest > 0 and all(read.beside for read in reads):
            if self._rest is None:
                self._rest = Estimate(rest)
            else:
                self._rest.hear(rest / self._rest.seconds)
        return prompts

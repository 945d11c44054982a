"""Trying a resting drafter again: when, on how many rows, for how many rounds.

A drafter that does not pay is never tested, so nothing would be learned of traffic that changed.
A try costs seconds; it is due when the time since the last one makes that a small share. Host
only: no torch, no device, no clock.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from paceline.engine.acceptance import SURPRISE, Acceptance, Track
from paceline.engine.cost import CostTable

log = logging.getLogger(__name__)

_BUDGET = 0.005  # of a resting drafter's time, what trying it may cost
_BACK_OFF = 2  # after one in vain, or several, the next try is put off so many times longer
_HOPE = 8  # and comes so much sooner where the last one looked well
_EVIDENCE = 16  # tested drafts that a try is for
_ROUNDS = 6  # and the most rounds it has
_LOOK = 8  # rounds after which it is reckoned anew whether one is due


@dataclass(frozen=True, slots=True)
class Choice:
    """A draft length, and what is expected of a round of it, all rows together. spent: seconds
    with what such a round costs elsewhere, see `engine.beside`."""

    k: int
    tokens: float
    seconds: float
    spent: float

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.spent


@dataclass(slots=True)
class Trials:
    """The tries of one rest. left: rounds of the running try that still draft; vain: tries that
    changed nothing."""

    cost: CostTable
    acceptance: Acceptance
    left: int = 0
    vain: int = 0
    _k: int = 0
    _rounds: int = 0
    _idle: float = 0.0  # seconds since a draft was last tested
    _due: float = 0.0  # of them, after which one is due
    _hope: bool = False

    def tested(self) -> None:
        """A round has settled in which drafts were tested."""
        self._idle = 0.0

    def over(self) -> None:
        """The drafter rests no more."""
        self.left = self.vain = 0
        self._hope = False

    def describe(self, plain: Choice) -> str:
        """What comes next, in words."""
        vain = f"tried {self.vain} times in vain, " if self.vain > 1 else ""
        left = max(round((self._due - self._idle) / plain.seconds), _LOOK)
        return f"{vain}next try in about {left} rounds"

    def step(self, plain: Choice, other: Choice, pays: bool, tracks: Sequence[Track]) -> int:
        """Draft tokens to try the drafter with in this round, mostly 0; the rows it is tried on
        are marked. other: the best choice that drafts; pays: it seems better than plain."""
        if self.left:
            self.left -= 1
            if self.left:
                return self._k
            self.vain += 1
            self._idle = 0.0
            for track in tracks:
                track.tried = False
            return 0
        self._idle += plain.seconds
        self._rounds += 1
        if self._rounds % _LOOK:
            return 0
        if self.acceptance.surprise() > SURPRISE:
            self.vain, self._hope = 0, True
        price, count, rounds = self._cheapest(plain, other, tracks)
        self._due = price / _BUDGET * min(2**self.vain, _BACK_OFF)
        if pays or self._hope:  # make sure of it soon
            self._due /= _HOPE
        if self._idle < self._due:
            return 0
        log.debug("drafter tried: %d drafts, %d rows, %d rounds", other.k, count, rounds)
        self.left, self._k, self._hope = rounds, other.k, False
        for place, track in enumerate(sorted(tracks, key=_behind)):
            track.tried = place < count
        return other.k

    def put_off(self) -> None:
        """The round for which `step` was asked last drafts nothing: a try loses none by it."""
        if self.left:
            self.left += 1

    def lead_in(self, rows: int, plain: Choice, other: Choice) -> float:
        """Seconds that the first round of drafting takes before anything comes of it."""
        lead = self.cost.draft(rows, other.k) - self.cost.draft(rows, 0)
        return min(lead, other.seconds - plain.seconds)

    def _cheapest(
        self, plain: Choice, other: Choice, tracks: Sequence[Track]
    ) -> tuple[float, int, int]:
        """(Seconds it costs, rows, rounds) of a try: few rows that the drafter is nearly up to
        date with, for several rounds, or many for one."""
        rows, behind = len(tracks), sorted(track.behind for track in tracks)
        gain = (other.tokens - plain.tokens) / rows * plain.seconds / rows  # of a row, seconds
        found = []
        for rounds in range(1, _ROUNDS + 1):
            count = min(-(-_EVIDENCE // rounds), rows)
            if count * rounds < _EVIDENCE and rounds < _ROUNDS:
                continue
            lost = max(other.seconds - plain.seconds - count * gain, 0.02 * plain.seconds)
            price = self.lead_in(rows, plain, other) + rounds * lost
            found.append((price + self.cost.catching_up(behind[:count]), count, rounds))
        return min(found)


def _behind(track: Track) -> int:
    return track.behind

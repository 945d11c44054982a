"""What drafting and plain decoding cost beside the rounds that the table of costs knows. Prompts: a
drafter that drafts reads each of them as well. And what no clock of a round sees, a host that is
late, say: learned from the time that goes by, apart for plain rounds and for rounds with drafts.
What the target takes to read prompts is a text's own, however it is written, and left out.
Pure: no torch, no device, no clock.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

_TEXTS, _LENGTH = 1.0, 256.0  # what is taken to have been seen: so many texts, of so many tokens
_TOKENS = 8192  # written, after which what was seen of texts counts half
_DRAWN = 32.0  # rounds of one kind that weigh as much as what the other kind says of them
_FORGOTTEN = 1000.0  # rounds of the other kind after which half is forgotten
_ROUNDS = 500.0  # rounds of a kind after which its sums are halved
_MANY, _FEW = 64.0, 16.0  # rounds after which a kind is known, and of which it is not
_SHORTEST, _LONGEST = 0.5, 4.0  # times what a round should take: outside of it is an accident


@dataclass(slots=True)
class _Kind:
    """Rounds of one kind: how many, the seconds that they should have taken, and those more."""

    rounds: float = 0.0
    expected: float = 0.0
    more: float = 0.0

    @property
    def late(self) -> float:
        """Seconds more for each that was expected; 0 where nothing was seen."""
        return self.more / self.expected if self.rounds else 0.0

    def keep(self, share: float) -> None:
        """Forget the rest."""
        self.rounds, self.expected = self.rounds * share, self.expected * share
        self.more *= share

    def blend(self, prior: float) -> float:
        """The same, drawn to `prior` where little was seen."""
        return (self.rounds * self.late + _DRAWN * prior) / (self.rounds + _DRAWN)


@dataclass(slots=True)
class Beside:
    """See the module; one for an engine."""

    _plain: _Kind = field(default_factory=_Kind)
    _drafting: _Kind = field(default_factory=_Kind)
    _fed: float = 0.0  # seconds that a drafter takes for the prompts that were read
    _joined: float = 0.0  # texts that then joined the rounds
    _left: float = 0.0  # and those that left them,
    _written: float = 0.0  # in which so many tokens were written

    def fed(self, seconds: float) -> None:
        """A prompt is being read; a drafter that drafts would take so long for it, or takes it."""
        self._fed += seconds

    def moved(self, joined: int, left: int) -> None:
        """So many texts have joined the rounds, and left them, whatever for."""
        self._joined += joined
        self._left += left

    def wrote(self, tokens: int) -> None:
        """A round has settled."""
        self._written += tokens
        if self._written > _TOKENS:
            self._written, self._left = self._written / 2, self._left / 2
            self._fed, self._joined = self._fed / 2, self._joined / 2

    def saw(self, drafting: bool, expected: float, elapsed: float) -> None:
        """Such a round was to take `expected` seconds; `elapsed` went by since the one before it
        had settled, the reading of prompts left out."""
        if not 0 < expected < math.inf:
            return
        own, other = self._plain, self._drafting
        if drafting:
            own, other = other, own
        own.rounds += 1
        own.expected += expected
        own.more += min(max(elapsed, _SHORTEST * expected), _LONGEST * expected) - expected
        if own.rounds > _ROUNDS:
            own.keep(0.5)
        other.keep(0.5 ** (1 / _FORGOTTEN))

    @property
    def late(self) -> tuple[float, float]:
        """Seconds beside each second of plain rounds, and of rounds with drafts; under 0 where less
        goes by than the table says, as a prompt may be read while the device would have waited.
        What is not known of one kind is what the other says."""
        plain, drafting = self._plain, self._drafting
        return plain.blend(drafting.late), drafting.blend(plain.late)

    @property
    def reading(self) -> float:
        """Seconds that a drafter's reading of prompts costs for each token: of a text, shared out
        among the tokens that one is expected to have. Those that have not ended yet count with
        what they wrote so far, so that prompts read a moment ago are not charged to a few."""
        if not self._joined:
            return 0.0
        ends = (self._left + _TEXTS) / (self._written + _TEXTS * _LENGTH)  # a token
        return self._fed / self._joined * ends

    @property
    def lopsided(self) -> bool:
        """Whether many rounds with drafts were seen, and hardly a plain one for long."""
        return self._drafting.rounds >= _MANY and self._plain.rounds < _FEW

"""What a token costs beside the rounds that the table of costs knows: prompts read between them,
which a drafter that drafts reads as well, and a host that is late. Learned from the time that goes
by, apart for plain rounds and for rounds with drafts. Pure: no torch, no device, no clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field

_AHEAD = 128  # tokens that a running text is taken to have before it: its prompt is for them too
_TOKENS = 8192  # written, after which what prompts cost is halved
_DRAWN = 32.0  # rounds of one kind that weigh as much as what the other kind says of them
_FORGOTTEN = 1000.0  # rounds of the other kind after which half is forgotten
_ROUNDS = 500.0  # rounds of a kind after which its sums are halved
_MANY, _FEW = 64.0, 16.0  # rounds after which a kind is known, and of which it is not
_LONGEST = 30.0  # times what a round should take: what is longer is an accident


@dataclass(slots=True)
class _Kind:
    """Rounds of one kind: how many, their tokens, and the seconds that they took too long."""

    rounds: float = 0.0
    tokens: float = 0.0
    seconds: float = 0.0

    @property
    def mean(self) -> float:
        """Seconds a token; 0 where nothing was seen."""
        return self.seconds / self.tokens if self.tokens else 0.0

    def keep(self, share: float) -> None:
        """Forget the rest."""
        self.rounds, self.tokens = self.rounds * share, self.tokens * share
        self.seconds *= share

    def blend(self, prior: float) -> float:
        """Seconds a token, drawn to `prior` where little was seen."""
        if not self.tokens:
            return prior
        drawn = _DRAWN * self.tokens / self.rounds
        return (self.seconds + drawn * prior) / (self.tokens + drawn)


@dataclass(slots=True)
class Beside:
    """See the module; one for an engine."""

    _plain: _Kind = field(default_factory=_Kind)
    _drafting: _Kind = field(default_factory=_Kind)
    _fed: float = 0.0  # seconds that a drafter takes for the prompts that were read
    _written: float = 0.0  # tokens meanwhile

    def fed(self, seconds: float) -> None:
        """A prompt is being read; a drafter that drafts would take so long for it, or takes it."""
        self._fed += seconds

    def wrote(self, tokens: int) -> None:
        """A round has settled."""
        self._written += tokens
        if self._written > _TOKENS:
            self._written, self._fed = self._written / 2, self._fed / 2

    def saw(self, drafting: bool, tokens: int, expected: float, elapsed: float) -> None:
        """Such a round of so many tokens was to take `expected` seconds; `elapsed` went by since
        the one before it had settled, whatever else was done. One of no tokens, whose texts had
        all ended, says nothing."""
        if not tokens:
            return
        own, other = self._plain, self._drafting
        if drafting:
            own, other = other, own
        own.rounds += 1
        own.tokens += tokens
        own.seconds += min(elapsed, _LONGEST * expected) - expected
        if own.rounds > _ROUNDS:
            own.keep(0.5)
        other.keep(0.5 ** (1 / _FORGOTTEN))

    def both(self, rows: int) -> tuple[float, float]:
        """Seconds a token beside plain rounds, and beside rounds with drafts. What is not known of
        one kind is what the other says, and the drafter's share of the prompts."""
        reading = self._fed / (self._written + _AHEAD * rows)
        plain = self._plain.blend(max(self._drafting.mean - reading, 0.0))
        drafting = self._drafting.blend(max(self._plain.mean, 0.0) + reading)
        # Rounds that take less than the table says are the table's to learn.
        return max(plain, 0.0), max(drafting, 0.0)

    @property
    def lopsided(self) -> bool:
        """Whether many rounds with drafts were seen, and hardly a plain one for long."""
        return self._drafting.rounds >= _MANY and self._plain.rounds < _FEW

"""How many drafts stand, from counts of tested ones, and how sure that is. Pure numbers."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_WEIGHT = 2.0  # tests' worth of what the position before says
_FEW = 8  # texts under which there is nothing to draw texts from
_TESTS = 8  # tested drafts under which a text says nothing of its own
_FARTHEST, _STEPS = 3.0, 12  # logits that a text may differ; Newton's steps to find them
_LEAST = 1e-3  # information that a text has at least


@dataclass(frozen=True, slots=True)
class Counts:
    """Draft tokens tested and accepted by position, of one text or of many together."""

    evaluated: tuple[int, ...]
    accepted: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.evaluated) != len(self.accepted):
            raise ValueError("accepted and evaluated have a count for each position")
        for accepted, evaluated in zip(self.accepted, self.evaluated, strict=True):
            if not 0 <= accepted <= evaluated:
                raise ValueError(f"{accepted} accepted of {evaluated} tested")


def counted(rounds: int, evaluated: Sequence[int], accepted: Sequence[int]) -> Counts:
    """A text's counts. A round in which a drafter had nothing to propose (an n-gram that was never
    seen) is one in which its first token failed; but for two, the text's first round, which may
    have no draft yet, and its last, which may have no room for one."""
    evaluated = list(evaluated) or [0]
    accepted = list(accepted) or [0]
    evaluated[0] += max(0, rounds - evaluated[0] - 2)
    if not evaluated[0]:
        return Counts((), ())
    return Counts(tuple(evaluated), tuple(accepted))


@dataclass(frozen=True, slots=True)
class Acceptance:
    """What is known of a drafter on some traffic. texts: counts of each text, or of whatever was
    counted together; an interval is from drawing texts where there are enough of them."""

    texts: tuple[Counts, ...]

    @property
    def total(self) -> Counts:
        """All texts' counts together."""
        return _sum(self.texts)

    @property
    def rate(self) -> float | None:
        """Accepted of all that were tested, or None where nothing was."""
        evaluated = sum(self.total.evaluated)
        return sum(self.total.accepted) / evaluated if evaluated else None

    def conditional(self) -> tuple[float, ...]:
        """The chance of each tested position, given that all before it stood. A position with few
        tests follows the one before it; the first, all tests together."""
        return _conditional(self.total)

    def offsets(self) -> tuple[float, ...]:
        """By how much texts differ: for each that says something, how many logits its drafts stand
        more often than all texts' do, drawn to 0 as far as chance alone would have spread them.
        Their variance is what is left of the texts' own (the method of moments, as DerSimonian and
        Laird, Meta-analysis in clinical trials, 1986)."""
        law = self.conditional()
        found = [_offset(text, law) for text in self.texts if sum(text.evaluated) >= _TESTS]
        if len(found) < _FEW:
            return ()
        total = sum(weight for _, weight in found)
        own = max(0.0, sum(w * off * off - 1 for off, w in found) / total)
        return tuple(off * math.sqrt(own / (own + 1 / w)) for off, w in found)

    def draw(self, random: random.Random) -> tuple[float, ...]:
        """`conditional` as it might have come out: texts drawn with replacement (a bootstrap; the
        texts differ more than chance alone would have them), or, of few, each position from its
        Beta distribution."""
        if len(self.texts) >= _FEW:
            return _conditional(_sum(random.choices(self.texts, k=len(self.texts))))
        middle, total = self.conditional(), self.total
        weights = [evaluated + _WEIGHT for evaluated in total.evaluated]
        return tuple(
            random.betavariate(max(c * w, 1e-3), max((1 - c) * w, 1e-3))
            for c, w in zip(middle, weights, strict=True)
        )


def _sum(texts: Iterable[Counts]) -> Counts:
    evaluated: list[int] = []
    accepted: list[int] = []
    for text in texts:
        missing = len(text.evaluated) - len(evaluated)
        evaluated += [0] * missing
        accepted += [0] * missing
        for place, (tested, stood) in enumerate(zip(text.evaluated, text.accepted, strict=True)):
            evaluated[place] += tested
            accepted[place] += stood
    return Counts(tuple(evaluated), tuple(accepted))


def _conditional(total: Counts) -> tuple[float, ...]:
    evaluated: Sequence[int] = total.evaluated
    if not sum(evaluated):
        return ()
    before, found = sum(total.accepted) / sum(evaluated), []
    for accepted, tested in zip(total.accepted, evaluated, strict=True):
        before = (accepted + _WEIGHT * before) / (tested + _WEIGHT)
        found.append(before)
    return tuple(found)


def _offset(text: Counts, law: Sequence[float]) -> tuple[float, float]:
    """(Logits, information): the shift of the law that makes the text's counts likeliest."""
    off = 0.0
    for _ in range(_STEPS):
        chances = list(zip(text.evaluated, shifted(law, off), strict=False))
        weight = sum(n * c * (1 - c) for n, c in chances)
        more = sum(text.accepted) - sum(n * c for n, c in chances)
        if weight <= 0:  # of a law of certainties
            return off, _LEAST
        off += min(max(more / weight, -1.0), 1.0)
        off = min(max(off, -_FARTHEST), _FARTHEST)
    return off, max(weight, _LEAST)


def shifted(law: Sequence[float], offset: float) -> tuple[float, ...]:
    """A law whose every chance lies `offset` logits higher."""
    odds = math.exp(offset)
    return tuple(c * odds / (1 - c + c * odds) for c in law)

"""How many draft tokens will stand: learned from those that were tested, per request and in all.

A draft token at position j, reached because all before it stood, stands with probability
sigmoid(law[j] + offset[request]). The law is the traffic's; the offset says how a request differs
from it and is drawn to 0 (shrinkage). A position that is not tested is expected to be a little
better than the one before it and no worse than before any traffic, so that what is never tried is
tried; what was tried and did not hold is known. Pure host code. Whatever is learned here was known
before the next round's tokens were drawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

_SPREAD = 0.8  # standard deviation of requests around the traffic, in logits
_KEEP = 0.5 ** (1 / 700)  # of an offset, a round: a request's text changes as it goes
_MEMORY = 600.0  # trials after which the traffic's evidence counts half
_INERTIA = 60.0  # information that the law's level has, against that of new requests
_IDLE_MEMORY = 200.0  # rounds without a test likewise
_OLD_WEIGHT = 6.0  # but so much information is kept
SURPRISE = 2.0  # standard deviations that say that the traffic is another
_DOUBT = 2.0  # standard deviations of the law that count as doubt
_DOUBTED = 2.0  # information that is left of what was known before one
_FIRST, _FIRST_WEIGHT = math.log(0.7 / 0.3), 1.0  # before any traffic
_NEXT, _NEXT_WEIGHT = 0.1, 2.0  # a position starts so much above the one before it
_STALE = 0.02  # logits that the law may move before what was computed from it is computed anew
_STEP, _STEPS = 0.125, 32  # offsets are rounded to these, from -4 to 4


@dataclass(slots=True, eq=False)
class Track:
    """One request. limit: draft tokens a round it may have; remaining: tokens it may still
    write; waiting: draft tokens that lie ready for its next window, at most; behind: tokens of it
    that a drafter has not seen which would have to, before it drafts."""

    limit: int
    remaining: int
    waiting: int = 0
    behind: int = 0
    tried: bool = False  # whether a resting drafter is being tried on it
    offset: float = 0.0
    variance: float = _SPREAD**2
    place: int = 0  # the offset, rounded
    seen: int = 0  # the round in which it was last tested


class Seen(Protocol):
    """What a round showed, an entry a row; see `engine.report.Report`."""

    @property
    def n(self) -> list[int]: ...
    @property
    def drafted(self) -> list[int]: ...
    @property
    def accepted(self) -> list[int]: ...
    @property
    def evaluated(self) -> list[int]: ...
    @property
    def ended(self) -> list[int]: ...


@dataclass(slots=True)
class _Shape:
    """The law at one offset. chance[j] of position j; tests[j] expected successes and
    weights[j] information in testing the first j; tokens[j] a round of j drafts commits."""

    chance: list[float]
    tests: list[float]
    weights: list[float]
    tokens: list[float]


class Acceptance:
    """The traffic's law and what it says of a request."""

    def __init__(self, most: int) -> None:
        """most: the longest draft."""
        self.most = most
        self.score = self.weight = 0.0  # successes at the first position above what was expected
        self._round = self._tested = 0  # the round that settled last, and that tested anything
        self._sum = [0.0] * most  # of information x logit, by position
        self._weight = [0.0] * most
        self._law = self._smooth()
        self._shapes: dict[int, _Shape] = {}

    def track(self, limit: int, remaining: int) -> Track:
        """A new request, of which nothing is known but the traffic it comes in."""
        return Track(min(limit, self.most), remaining, seen=self._round)

    def tokens(self, place: int) -> Sequence[float]:
        """Tokens a round commits, drafts and one more, for a draft of 0, 1, … `most` tokens, for
        requests whose rounded offset is `place`."""
        return self._shape(place).tokens

    def record(self, tracks: Sequence[Track], asked: Iterable[int], seen: Seen) -> int:
        """Learn from a settled round. asked: draft tokens each row's window was to hold, 0 where
        nothing is to be learned from it; a drafter that proposed fewer without need failed at the
        first one missing. Returns how many rows had anything tested."""
        self._round += 1
        groups: dict[tuple[int, int, int], int] = {}  # rows of one place and one outcome
        shift = 0.0
        rows = zip(tracks, asked, seen.n, seen.drafted, seen.evaluated, seen.accepted,
                   seen.ended, strict=True)  # fmt: skip
        for track, most, n, drafted, evaluated, accepted, ended in rows:
            room = min(most, track.remaining - 1)
            track.remaining -= n
            if not most or not n:  # n is 0 in an idle row: it had ended before
                continue
            if accepted == drafted < room and not ended:
                evaluated = drafted + 1
            if evaluated:
                key = track.place, evaluated, accepted
                groups[key] = groups.get(key, 0) + 1
                shift += self._test(track, evaluated, accepted)
        tested = sum(groups.values())
        if tested:
            self._fade(self._round - self._tested)
            self._tested = self._round
            self._learn(groups, tested, shift)
        return tested

    @property
    def doubt(self) -> int:
        """How far the law may well be too high, as a number of places of an offset."""
        return round(_DOUBT / math.sqrt(self._weight[0] + _FIRST_WEIGHT) / _STEP)

    def surprise(self) -> float:
        """By how many standard deviations more first tokens stood than expected, since this was
        last asked. Where it is much, what was known counts for little from here on."""
        found = self.score / math.sqrt(self.weight) if self.weight else 0.0
        self.score = self.weight = 0.0
        if found > SURPRISE and self._weight[0] > _DOUBTED:
            self._keep(_DOUBTED / self._weight[0])
        return found

    # --- inside ---

    def _test(self, track: Track, evaluated: int, accepted: int) -> float:
        """Move one request's offset: an extended Kalman step, for a logit that wanders back to
        the traffic's and is seen through coin tosses. Returns what it says of the traffic: all
        of it while nothing else is known of the request, later little."""
        shape = self._shapes.get(track.place) or self._shape(track.place)
        kept = _KEEP ** (self._round - track.seen)
        track.seen = self._round
        variance = kept * kept * (track.variance - _SPREAD**2) + _SPREAD**2
        track.variance = variance = 1 / (1 / variance + shape.weights[evaluated])
        more = accepted - shape.tests[evaluated]
        track.offset = offset = kept * track.offset + variance * more
        place = round(offset / _STEP)
        track.place = place if -_STEPS <= place <= _STEPS else (_STEPS if place > 0 else -_STEPS)
        return more * variance / _SPREAD**2

    def _fade(self, rounds: int) -> None:
        """So many rounds without a test: what was seen before them says less of today."""
        if rounds > 1 and self._weight[0] > _OLD_WEIGHT:
            self._keep(max(0.5 ** (rounds / _IDLE_MEMORY), _OLD_WEIGHT / self._weight[0]))

    def _keep(self, share: float) -> None:
        self._sum = [x * share for x in self._sum]
        self._weight = [x * share for x in self._weight]

    def _learn(self, groups: dict[tuple[int, int, int], int], tested: int, shift: float) -> None:
        """One step of iteratively reweighted least squares, on evidence that fades. Offsets soon
        explain what all requests have in common, so the whole law is shifted besides by what the
        newest of them say."""
        scores, weights = [0.0] * self.most, [0.0] * self.most
        for (place, evaluated, accepted), count in groups.items():
            chance = self._shape(place).chance
            for j in range(evaluated):
                p = chance[j]
                scores[j] += count * ((j < accepted) - p)
                weights[j] += count * p * (1 - p)
        self.score += scores[0]
        self.weight += weights[0]
        keep, shift = 0.5 ** (tested / _MEMORY), shift / (_INERTIA + weights[0])
        for j, (score, weight) in enumerate(zip(scores, weights, strict=True)):
            self._sum[j] = self._sum[j] * keep + weight * self._law[j] + score
            self._weight[j] = self._weight[j] * keep + weight
            self._sum[j] += self._weight[j] * shift
        law = self._smooth()
        if max(abs(a - b) for a, b in zip(law, self._law, strict=True)) > _STALE:
            self._law = law
            self._shapes.clear()

    def _smooth(self) -> list[float]:
        """The law: each position's evidence, and what is expected from the one before it."""
        law, prior, own = [], _FIRST, _FIRST_WEIGHT
        for total, weight in zip(self._sum, self._weight, strict=True):
            law.append((total + own * prior) / (weight + own))
            prior, own = max(law[-1] + _NEXT, _FIRST), _NEXT_WEIGHT
        return law

    def _shape(self, place: int) -> _Shape:
        shape = self._shapes.get(place)
        if shape is None:
            chance = [1 / (1 + math.exp(-law - place * _STEP)) for law in self._law]
            tests, weights, tokens, reach = [0.0], [0.0], [1.0], 1.0
            for p in chance:
                reach *= p
                tests.append(tests[-1] + p)
                weights.append(weights[-1] + p * (1 - p))
                tokens.append(tokens[-1] + reach)
            shape = self._shapes[place] = _Shape(chance, tests, weights, tokens)
        return shape

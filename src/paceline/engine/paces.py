"""What reading a prompt takes, learned from what it took: a bound is kept by what a chunk might
take, not by what it should. Pure: no torch, no device, no clock.

A recorded width has a pace of its own; what is read at once has one at every power of two of
tokens, with straight lines between. No line through the origin: such a chunk is hundreds of
launches of the host's, which a short one takes as long for as a long one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

_GAIN = 0.3  # how fast an expectation follows
_NEW = 1.5  # times what is expected that something may take which was hardly ever met
_CALM = 0.06  # how fast an excess is forgotten where expectations come true
_UNUSED = 0.01  # and where nothing is heard: else one hiccup would rule out a width for good
_HICCUP = 2.0  # times what was expected that is believed at most
_STEEP = 2.0  # times the time of as many other operations that attention may take
_ALIKE = 1.25  # times what others of a kind say of a size that it is taken to need at most
_OTHER = 1.5  # times what one kind of pass is expected to take, that another of its size may take
_FIXED = 64  # tokens' worth of time that a pass has beside its tokens, where nothing is known

Cut: TypeAlias = Sequence[tuple[int, int, int]]
"""Passes: where each begins and ends, and its width, 0 for one that is not recorded."""


class _Key(NamedTuple):
    recorded: bool
    shown: bool  # to the drafter as well
    size: int


@dataclass(slots=True)
class Estimate:
    """Seconds that are expected, and the most, of late, that was met of what was expected. at:
    the position in a text where they were met."""

    seconds: float
    at: float = 0.0
    most: float = _NEW

    @property
    def safe(self) -> float:
        """Seconds that will hardly be passed."""
        return self.seconds * self.most

    def hear(self, ratio: float, share: float = 1.0) -> None:
        """So many times what was expected was met. share: its part in it."""
        ratio = min(ratio, _HICCUP)
        self.seconds *= 1 + _GAIN * share * (ratio - 1)
        self.forget(_CALM)
        self.most = max(self.most, ratio)

    def forget(self, part: float) -> None:
        """Trust the expectation more."""
        self.most -= part * (self.most - 1)


class _Part(NamedTuple):
    key: _Key
    share: float
    middle: float


@dataclass(slots=True)
class Paces:
    """half: positions behind a token at which attention has as many operations as all else."""

    half: float
    _known: dict[_Key, Estimate] = field(default_factory=dict)

    @property
    def known(self) -> bool:
        """Whether anything was ever heard."""
        return bool(self._known)

    def met(self, tokens: int, shown: bool = False) -> bool:
        """Whether a pass of so many tokens that is not recorded was ever heard of."""
        return all(part.key in self._known for part in _parts([(0, tokens, 0)], shown))

    def seconds(self, cut: Cut, shown: bool) -> float:
        """What reading it should take; 0 where nothing is known. shown: to the drafter as well."""
        if not self._known:
            return 0.0
        return sum(part.share * self._expected(part) for part in _parts(cut, shown))

    def safe(self, cut: Cut, shown: bool) -> float:
        """What it will hardly pass."""
        total = 0.0
        for part in _parts(cut, shown):
            known = self._known.get(part.key)
            total += part.share * self._expected(part) * (known.most if known else _NEW)
        return total

    def hear(self, cut: Cut, shown: bool, seconds: float) -> None:
        """Reading it took so long, which is one measurement, however many passes it had."""
        shares: dict[_Key, float] = {}
        expected: dict[_Key, _Part] = {}
        whole = 0.0
        for part in _parts(cut, shown):
            whole += part.share * self._expected(part)
            shares[part.key] = max(part.share, shares.get(part.key, 0.0))
            expected[part.key] = part
        if whole <= 0:
            return
        ratio = seconds / whole
        now = {key: (self._expected(part), part.middle) for key, part in expected.items()}
        for key, estimate in self._known.items():
            if key not in now:
                estimate.forget(_UNUSED)
        for key, (value, middle) in now.items():
            known = self._known.get(key)
            if known is None:
                self._known[key] = Estimate(value * ratio, middle)
            else:
                known.seconds, known.at = value, middle
                known.hear(ratio, shares[key])

    def _expected(self, part: _Part) -> float:
        """Seconds of a whole pass of this key there."""
        known = self._known.get(part.key)
        if known is None:
            return self._guess(part)
        # What was met by accident once, and is then never tried again, would stay as it is.
        return min(self._there(known, part.middle), _ALIKE * self._of_others(part))

    def _there(self, known: Estimate, middle: float) -> float:
        """What was met at one position, at another: attention grows with the text and all else
        does not. Its operations may be slower than others, so what lies further on is reckoned
        with more of them, and what lies further back is not."""
        slope = (_STEEP if middle > known.at else 1.0) / self.half
        return known.seconds * (1 + slope * middle) / (1 + slope * known.at)

    def _guess(self, part: _Part) -> float:
        """A pass that was never met takes no longer than a larger one, nor than as many smaller
        ones as it has tokens for."""
        if not self._known:
            return float(part.key.size + _FIXED)  # what counts is how they stand to one another
        alike = self._of_others(part)
        if alike < math.inf:
            return alike
        return _OTHER * min(self._at_most(key, part) for key in self._known)

    def _of_others(self, part: _Part) -> float:
        """What those of its kind that were met say of it."""
        key = part.key
        alike = [k for k in self._known if k != key and k[:2] == key[:2]]
        return min((self._at_most(k, part) for k in alike), default=math.inf)

    def _at_most(self, key: _Key, part: _Part) -> float:
        """As long as one of `key` takes, or as many of them as it has tokens for."""
        return self._there(self._known[key], part.middle) * max(1.0, part.key.size / key.size)


def _parts(cut: Cut, shown: bool) -> Iterator[_Part]:
    for begin, end, width in cut:
        middle, tokens = (begin + end) / 2, end - begin
        if width:
            yield _Part(_Key(True, shown, width), 1.0, middle)
            continue
        below = 1 << (tokens.bit_length() - 1)
        way = tokens / below - 1  # to the next power of two
        yield _Part(_Key(False, shown, below), 1 - way, middle)
        if way:
            yield _Part(_Key(False, shown, 2 * below), way, middle)

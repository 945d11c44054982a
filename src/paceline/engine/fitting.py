"""What fits in so many seconds: tokens of one text, or what a drafter has not seen of several.

Pure: no torch, no device, no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as Seq

from paceline.engine.catch_up import SIDE, TOGETHER, Span, cut
from paceline.engine.sequence import Sequence

STEP = 64  # what a step reads is made of so many tokens
_STRIDE = 256  # and from twice as many on of so many, so that few sizes are met for the first time
_LEAST = 16  # tokens that it reads whatever the bound, so that every prompt is read some day
_WIDE = 256  # tokens of a text that a drafter is shown at once: a recorded pass's at most


def fit(safe: Callable[[int], float], most: int, room: float) -> int:
    """How many of `most` tokens may be read in `room` seconds, `_LEAST` whatever that is. safe: the
    seconds that so many hardly pass."""
    tokens = most
    while tokens > _LEAST and safe(tokens) > room:
        step = _STRIDE if tokens > 2 * _STRIDE else STEP
        tokens = max(_LEAST, (tokens - 1) // step * step)
    return tokens


def fitting(
    behind: Mapping[Sequence, int], room: float, safe: Callable[[Seq[Span]], float], waits: bool
) -> list[list[Span]]:
    """What a drafter is shown in `room` seconds of texts, up to the position (exclusive) that each
    is given with: layer by layer, of each text what the widest recorded pass takes, as long as it
    fits. A longer piece may be launched operation by operation, and how long that takes for the
    drafter alone nobody knows. safe: the seconds that a pass hardly takes; waits: nothing where
    what fits is next to nothing."""
    layers, left, full = list[list[Span]](), spans(behind, _WIDE), False
    while left and not full:
        found: dict[int, Span] = {}
        for group in cut(left):
            if len(group) == 1:
                asked, group = group[0], [_shortened(group[0], safe, room)]
                full = group[0].stop < asked.stop
            seconds = safe(group)
            if seconds > room:
                full = True
                break
            room -= seconds
            for span in group:  # of several texts the next pass takes up where this one ends
                first = found.get(span.slot, span).start
                found[span.slot] = Span(span.slot, first, span.stop)
            if full:
                break
        if found:
            layers.append(list(found.values()))
        ends = {s.slot: (found[s.slot].stop, e) for s, e in behind.items() if s.slot in found}
        left = [Span(n, at, min(at + _WIDE, e)) for n, (at, e) in ends.items() if at < e]
    least = _least(spans(behind, SIDE))
    if sum(map(total, layers)) >= total(least):
        return layers
    return [] if waits else [least]


def _shortened(span: Span, safe: Callable[[Seq[Span]], float], room: float) -> Span:
    """As much of it as fits, or little that does not."""

    def seconds(tokens: int) -> float:
        return safe([Span(span.slot, span.start, span.start + tokens)])

    return span._replace(stop=span.start + fit(seconds, span.stop - span.start, room))


def _least(given: Seq[Span]) -> list[Span]:
    """What is shown though it may not fit: a pass side by side, and no less than twice what these
    texts grow meanwhile, or the drafter would never have seen all."""
    found, tokens = list[Span](), 0
    for slot, start, stop in given:
        if len(found) >= TOGETHER and tokens >= 2 * len(given):
            break
        found.append(Span(slot, start, min(start + SIDE, stop)))
        tokens += found[-1].stop - start
    return found


def lagging(stops: Mapping[Sequence, int]) -> dict[Sequence, int]:
    """Those that the drafter has not seen so much of, who lies furthest behind first."""
    found = [(s, stop) for s, stop in stops.items() if s.observed < stop]
    return dict(sorted(found, key=lambda each: each[0].observed - each[1]))


def spans(behind: Mapping[Sequence, int], tokens: int) -> list[Span]:
    """Up to so many tokens of each."""
    return [Span(s.slot, s.observed, min(s.observed + tokens, e)) for s, e in behind.items()]


def total(given: Iterable[Span]) -> int:
    """Tokens of all."""
    return sum(span.stop - span.start for span in given)

"""Tokens by time: of one contestant alone, and of one beside another on the same texts.

Where a text has nobody beside it, its time is its own. Where several are on their way together, the
time is the pass's, and every text answers for a part of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from paceline.lab.bench_record import Measurement, Pass
from paceline.lab.bench_result import Interval
from paceline.lab.bench_statistics import ratio_of_rates, ratio_of_sums

Done = tuple[float, float]
"""Tokens, and the seconds in which they were written."""


def paces(measurements: Sequence[Measurement], passes: Sequence[Pass]) -> dict[str, float]:
    """By pass, the seconds of it that a second of one of its texts stands for: its length by the
    sum of its texts' times. measurements: all of these passes, also those that were made again
    later: they held places while the others were written. Of a pass that was cut off, its last
    answer is the end."""
    ended: dict[str, float] = defaultdict(float)
    walls: dict[str, float] = defaultdict(float)
    for m in measurements:
        if m.wall is not None:
            ended[m.pass_id] = max(ended[m.pass_id], m.at + m.wall)
            walls[m.pass_id] += m.wall
    ended.update({p.pass_id: p.seconds for p in passes})
    return {name: ended[name] / wall for name, wall in walls.items() if wall}


def seconds_of(texts: Iterable[Measurement], pace: Mapping[str, float]) -> float:
    """The time that texts stand for; that of all texts of a pass is its length."""
    return sum(_time(m, pace) for m in texts)


def rate(texts: Iterable[Measurement], pace: Mapping[str, float]) -> Interval | None:
    """Tokens a second, over texts whose tokens are known; one that failed has taken its time and
    given none."""
    told = [m for m in texts if m.error is not None or m.new_tokens is not None]
    sums = _by_prompt(
        (m.item, (0 if m.error is not None else m.new_tokens or 0, _time(m, pace))) for m in told
    )
    timed = [entry for entry in sums.values() if entry[1] > 0]
    if not any(tokens for tokens, _ in timed):
        return None
    return ratio_of_sums([tokens for tokens, _ in timed], [seconds for _, seconds in timed])


def whole(m: Measurement) -> Done | None:
    """Of a whole request, or None where it is not known."""
    return None if m.new_tokens is None or m.wall is None else (m.new_tokens, m.wall)


def writing(m: Measurement) -> Done | None:
    """From the first piece of text to the last, without the first one's tokens, or None where there
    is no more than one, or its tokens are not known."""
    later = m.later_tokens
    return None if later is None else (later, m.event_times[-1] - m.event_times[0])


def speedup(
    mine: Iterable[Measurement],
    its: Iterable[Measurement],
    part: Callable[[Measurement], Done | None],
) -> Interval | None:
    """Tokens a second of `mine` over those of `its`, over the texts of which both are known."""
    left, right = (
        {(m.item, m.turn, m.repeat): done for m in side if (done := part(m)) is not None}
        for side in (mine, its)
    )
    places = [place for place in left if place in right]
    one, other = (_by_prompt((place[0], side[place]) for place in places) for side in (left, right))
    columns = [[sums[item][n] for item in one] for sums in (one, other) for n in (0, 1)]
    return ratio_of_rates(*columns)


def _time(m: Measurement, pace: Mapping[str, float]) -> float:
    return (m.wall or 0.0) * pace.get(m.pass_id, 1.0)


def _by_prompt(parts: Iterable[tuple[str, Done]]) -> dict[str, Done]:
    """Sums over a conversation's turns and repeats: turns of one are alike, so they count as one
    prompt where prompts are drawn anew."""
    sums: dict[str, Done] = {}
    for item, (tokens, seconds) in parts:
        before = sums.get(item, (0.0, 0.0))
        sums[item] = before[0] + tokens, before[1] + seconds
    return sums

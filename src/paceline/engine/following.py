"""Whether a drafter with a cache of its own has seen all of a text: what a round leaves it with.

A draft's first pass takes a text's newest tokens, and what stands of the draft before it the
drafter has proposed itself. So a round leaves it up to date, unless more was committed that it
never saw, or it proposed without having seen all that came before. Host only: no torch.
"""

from __future__ import annotations

from paceline.engine.catch_up import FRESH
from paceline.engine.sequence import Sequence

_FIRST = FRESH + 1  # tokens that a draft's first pass takes


def room(sequence: Sequence) -> int:
    """The tokens that the next round may commit, whoever proposed them, so that its draft's first
    pass takes all that the drafter has not seen. Under 1: it is to be shown some before. Each round
    in flight is a plain one."""
    return _FIRST + sequence.observed - len(sequence.tokens) - sequence.in_flight


def follows(sequence: Sequence, forced: int, widest: int) -> int:
    """The tokens that a round with a draft behind it may commit and still leave the drafter up to
    date. forced: draft tokens of its window that are a grammar's; widest: its longest window."""
    left = room(sequence)
    return left + widest if left > 0 and not forced and not sequence.stale else left


def settle(sequence: Sequence, committed: int, most: int, drafted: bool) -> None:
    """A round has settled that committed so many tokens. most: what `follows` said of it, 0 where
    it made no draft; drafted: whether it made one for this text."""
    up_to_date = 0 < committed <= most
    if up_to_date:
        sequence.observed = len(sequence.tokens)
    sequence.stale = drafted and not up_to_date

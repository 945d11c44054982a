"""What speculation brings, from what rounds cost and how many drafts stand. Pure numbers.

One page of theory: `docs/plan.md`. Knows no engine, no file and no clock; plain decoding is K = 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from paceline import Costs

_UNIT = 64  # tokens' worth of time that a pass over a prompt takes beside its tokens


@dataclass(frozen=True, slots=True)
class Traffic:
    """What requests look like, on average: tokens of a prompt, and tokens written behind it."""

    prompt: float
    new: float

    @property
    def context(self) -> float:
        """Committed positions of a text, on average over its rounds."""
        return self.prompt + self.new / 2


@dataclass(frozen=True, slots=True)
class Overhead:
    """Seconds beside those that the table has: of a round, of each of its rows, and of each text
    (its prompt of `prompt` tokens read, and the way from one text to the next). hidden: the host
    works on the rows while the device drafts, or without drafts verifies the next round; only what
    it takes longer counts. scale: of the table's seconds, what they are in long runs."""

    round: float = 0.0
    row: float = 0.0
    text: float = 0.0
    prompt: float = 0.0
    hidden: bool = False
    scale: float = 1.0

    def of_round(self, rows: int, busy: float) -> float:
        """Seconds of a round of so many rows; busy: of the device's work that can hide the host."""
        rest = self.row * rows - (busy if self.hidden else 0.0)
        return self.round + max(rest, 0.0)

    def of_text(self, prompt: float) -> float:
        """Seconds of a text whose prompt has so many tokens."""
        return self.text * (prompt + _UNIT) / (self.prompt + _UNIT)


@dataclass(frozen=True, slots=True)
class Machine:
    """One engine: the table, what comes on top of it without and with drafts, and `edge`: rounds
    that a text with drafts takes beside those that its acceptance explains (a first round that has
    nothing to verify yet)."""

    costs: Costs
    plain: Overhead = Overhead()
    drafting: Overhead = Overhead()
    edge: float = 0.0

    def overhead(self, k: int) -> Overhead:
        """What comes on top of a round of k drafts."""
        return self.drafting if k else self.plain

    def round(self, rows: int, k: int, context: float) -> float:
        """Seconds from one round of so many rows to the next, no prompt read between them."""
        own, busy = device_seconds(self.costs, rows, k, context)
        extra = self.overhead(k)
        return own * extra.scale + extra.of_round(rows, busy)


@dataclass(frozen=True, slots=True)
class Point:
    """One setting at one load, in a closed loop of `load` texts at a time.

    round: seconds. tok_s: tokens written a second, all texts together. tpot: seconds a token of one
    text, on average. ttft: seconds from a request to its first token where a slot is free.
    """

    load: int
    k: int
    tokens_per_round: float
    round: float
    tok_s: float
    tpot: float
    ttft: float


def device_seconds(costs: Costs, rows: int, k: int, context: float) -> tuple[float, float]:
    """(Seconds of a round by the table, those of them behind the verdict that the next round does
    not wait for): with drafts the drafting, without the next round's own pass."""
    verify = costs.verify(rows, k, context)
    if not k:
        return verify, verify
    draft = costs.draft(rows, k, context)
    return verify + draft, draft


def constant(acceptance: float, k: int) -> tuple[float, ...]:
    """The same conditional acceptance at each of k positions."""
    return (acceptance,) * k


def outcomes(conditional: Sequence[float], k: int) -> list[float]:
    """P(a round commits n tokens), n = 1 … k + 1, at place n - 1.

    A draft token counts only where all before it stood, so with c_i the conditional acceptance at
    position i: P(n) = (1 - c_n) · Π_{i<n} c_i, and P(k + 1) = Π c_i.
    """
    reach, chances = 1.0, []
    for c in _first(conditional, k):
        chances.append(reach * (1.0 - c))
        reach *= c
    return [*chances, reach]


def tokens_per_round(conditional: Sequence[float], k: int) -> float:
    """E = 1 + Σ_j Π_{i≤j} c_i; for a constant α it is (1 - α^(K+1)) / (1 - α): Leviathan et al.
    2023 (arXiv 2211.17192), equation 1."""
    reach, total = 1.0, 1.0
    for c in _first(conditional, k):
        reach *= c
        total += reach
    return total


def rounds_for(new: float, conditional: Sequence[float], k: int) -> float:
    """Rounds that a text of `new` tokens takes on average, the last one cut at its end.

    Wald's identity with the overshoot of a renewal process: (N + E[overshoot]) / E, where the
    overshoot tends to (E[X²] - E[X]) / 2 E[X] (Feller, An Introduction to Probability Theory, vol.
    2, XI). Never less than what a text takes whose drafts all stand.
    """
    chances = outcomes(conditional, k)
    mean = sum(n * p for n, p in enumerate(chances, 1))
    square = sum(n * n * p for n, p in enumerate(chances, 1))
    return max((new + (square - mean) / (2 * mean)) / mean, new / (k + 1), 1.0)


def predict(
    machine: Machine, traffic: Traffic, load: int, k: int, conditional: Sequence[float]
) -> Point:
    """What `load` clients see that each ask again when their text has ended.

    A text takes R rounds of t seconds; meanwhile each of the load's texts is begun once, and while
    a prompt is read the others wait: a cycle is R · t + load · s, s the seconds of a text's
    beginning, and brings load · N tokens.
    """
    return priced(machine, traffic, load, k)(conditional)


def priced(
    machine: Machine, traffic: Traffic, load: int, k: int
) -> Callable[[Sequence[float]], Point]:
    """`predict` for one setting: from an acceptance by position to its point. What does not depend
    on the acceptance is looked up once."""
    one = machine.round(load, k, traffic.context)
    begin = machine.overhead(k).of_text(traffic.prompt)
    edge = machine.edge if k else 0.0

    def point(conditional: Sequence[float]) -> Point:
        rounds = rounds_for(traffic.new, conditional, k) + edge
        return _point(traffic, load, k, rounds, one, begin)

    return point


def _point(traffic: Traffic, load: int, k: int, rounds: float, one: float, begin: float) -> Point:
    cycle = rounds * one + load * begin
    # Behind the first round's tokens, with the others' prompts between.
    behind = max(traffic.new - traffic.new / rounds, 1.0)
    tpot = (rounds - 1) * (one + (load - 1) / rounds * begin) / behind if rounds > 1 else one
    return Point(
        load=load,
        k=k,
        tokens_per_round=traffic.new / rounds,
        round=one,
        tok_s=load * traffic.new / cycle,
        tpot=tpot,
        ttft=begin + one * (1.5 if load > 1 else 1.0),
    )


def best(points: Sequence[Point], tpot: float | None = None) -> Point:
    """The point of most tokens a second among those of at most `tpot` seconds a token; where there
    is none, the quickest. The smaller K wins a tie."""
    fitting = [point for point in points if tpot is None or point.tpot <= tpot]
    if not fitting:
        return min(points, key=lambda point: (point.tpot, point.k))
    return max(fitting, key=lambda point: (point.tok_s, -point.k))


def _first(conditional: Sequence[float], k: int) -> list[float]:
    """The first k; where fewer are known the last one goes on (0 where none is)."""
    known = list(conditional[:k])
    return known + [known[-1] if known else 0.0] * (k - len(known))

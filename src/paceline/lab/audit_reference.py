"""Tiny pairs, and the published rules on them in exact fractions.

Cuts the noise of one round into cells on which the rule decides alike (borders and weights in
fractions), for the enumeration, which runs the program's own functions on points of every cell.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from paceline.lab.audit_cells import Cell, by_threshold, by_token, measure, simplex
from paceline.speculation.verify import Rule

Text = tuple[int, ...]
Law = tuple[Fraction, ...]
Memory = tuple[tuple[str, Cell], ...]  # what is known of the numbers that later rounds meet


@dataclass(frozen=True, slots=True)
class TinyPair:
    """A target and a draft over two or three tokens, whose laws depend on the whole text.

    p, q: for each node of the V-ary tree of texts (child of node i by token x: i·V + 1 + x) the
    next token's probabilities.
    """

    vocab_size: int
    p: tuple[Law, ...]
    q: tuple[Law, ...]

    def node(self, text: Text) -> int:
        """Return the tree node of a text."""
        node = 0
        for token in text:
            node = node * self.vocab_size + 1 + token
        return node


def random_pair(vocab_size: int, depth: int, seed: int, grain: int = 12) -> TinyPair:
    """Return a pair with probabilities in twelfths, some of them zero, some p equal to q."""
    rng = random.Random(seed)

    def law() -> Law:
        cuts = sorted(rng.randint(0, grain) for _ in range(vocab_size - 1))
        edges = [0, *cuts, grain]
        return tuple(Fraction(b - a, grain) for a, b in itertools.pairwise(edges))

    nodes = sum(vocab_size**d for d in range(depth + 1))
    p = tuple(law() for _ in range(nodes))
    q = tuple(row if rng.random() < 0.1 else law() for row in p)
    return TinyPair(vocab_size, p, q)


@dataclass(frozen=True, slots=True)
class Schedule:
    """How rounds are run: k draft columns; count(round, text) draft tokens of them, chosen from
    what was committed; cut(drafted) an unsound policy that looks at the drawn tokens, for the
    tests; rounds to run, and how many first tokens the law is compared over."""

    k: int
    count: Callable[[int, Text], int]
    rounds: int = 3
    tokens: int = 5
    cut: Callable[[Text], int] | None = None
    one_hot_q: bool = False


@dataclass(frozen=True, slots=True)
class Names:
    """For one root, which number stands in each place: equal names are the same number."""

    proposal: tuple[str, ...]
    accept: tuple[str, ...]
    gumbel: tuple[str, ...]


def name_numbers(rule: Rule, root: int, k: int, vocab_size: int) -> Names:
    """Name the numbers of the round at `root` by the bits that the rule derives for them."""
    seed, at = torch.tensor([1]), torch.tensor([root])
    position = root + 1 + torch.arange(k + 1).unsqueeze(0)
    f64 = torch.float64
    noise = rule.noise(seed, at, position, vocab_size, f64, True)
    proposal = rule.proposal(seed, at, position[:, :-1], vocab_size, f64)
    assert noise.gumbel is not None

    def name(kind: str, row: Tensor) -> str:
        return kind + row.numpy().tobytes().hex()

    return Names(
        tuple(name("g", row) for row in proposal[0]),
        () if noise.accept is None else tuple(name("u", row) for row in noise.accept[0]),
        tuple(name("g", row) for row in noise.gumbel[0]),
    )


@dataclass(frozen=True, slots=True)
class Leaf:
    """One cell of a round's noise: what is known of every number, and its probability given
    what was known before."""

    text: Text
    count: int
    known: dict[str, Cell]
    weight: Fraction


class RoundCells:
    """The cells of one round that starts from one text; the published rules in fractions."""

    def __init__(self, rule: Rule, pair: TinyPair, schedule: Schedule, names: Names) -> None:
        self.rule, self.pair, self.schedule, self.names = rule, pair, schedule, names

    def _whole(self, name: str) -> Cell:
        return simplex(self.pair.vocab_size if name[0] == "g" else 2)

    def _tokens(self, leaf: Leaf, name: str, weights: Law) -> Iterator[tuple[int, Leaf]]:
        cell = leaf.known.get(name) or self._whole(name)
        for token, part in by_token(cell, weights):
            yield token, self._with(leaf, name, cell, part)

    def _sides(self, leaf: Leaf, name: str, threshold: Fraction) -> Iterator[tuple[bool, Leaf]]:
        cell = leaf.known.get(name) or self._whole(name)
        for side, part in by_threshold(cell, threshold):
            yield side, self._with(leaf, name, cell, part)

    @staticmethod
    def _with(leaf: Leaf, name: str, cell: Cell, part: Cell) -> Leaf:
        weight = leaf.weight * measure(part) / measure(cell)
        return Leaf(leaf.text, leaf.count, {**leaf.known, name: part}, weight)

    def leaves(self, text: Text, count: int, memory: Memory) -> Iterator[Leaf]:
        """Yield the cells: drafts first, then what the rule looks at."""
        yield from self._draft(Leaf(text, count, dict(memory), Fraction(1)), ())

    def _q(self, text: Text) -> Law:
        row = self.pair.q[self.pair.node(text)]
        if not self.schedule.one_hot_q:
            return row
        best = max(range(len(row)), key=lambda x: (row[x], -x))
        return tuple(Fraction(int(x == best)) for x in range(len(row)))

    def _draft(self, leaf: Leaf, drafted: Text) -> Iterator[Leaf]:
        if len(drafted) < leaf.count:
            q = self._q(leaf.text + drafted)
            for token, part in self._tokens(leaf, self.names.proposal[len(drafted)], q):
                yield from self._draft(part, (*drafted, token))
            return
        if self.schedule.cut is not None:
            drafted = drafted[: self.schedule.cut(drafted)]
        if self.rule.name == "match":
            yield from self._match(leaf, drafted, 0)
        else:
            yield from self._tested(leaf, drafted)

    def _match(self, leaf: Leaf, drafted: Text, j: int) -> Iterator[Leaf]:
        p = self.pair.p[self.pair.node(leaf.text + drafted[:j])]
        for token, part in self._tokens(leaf, self.names.gumbel[j], p):
            if j < len(drafted) and drafted[j] == token:
                yield from self._match(part, drafted, j + 1)
            else:
                yield part

    def _tested(self, leaf: Leaf, drafted: Text) -> Iterator[Leaf]:
        """Cells of reject (Leviathan, algorithm 1) and block (Sun, algorithm 2)."""
        texts = [leaf.text + drafted[:j] for j in range(len(drafted) + 1)]
        p = [self.pair.p[self.pair.node(t)] for t in texts]
        q = [self._q(t) for t in texts[:-1]]
        thresholds, weights = _thresholds(self.rule.name, drafted, p, q)
        paths = [(leaf, [False] * 0)]
        for j, threshold in enumerate(thresholds):
            name = self.names.accept[j]
            split = ((path, self._sides(path, name, threshold), done) for path, done in paths)
            paths = [(part, [*done, side]) for _, sides, done in split for side, part in sides]
        for path, passed in paths:
            if self.rule.name == "reject":
                n = passed.index(False) if False in passed else len(passed)
            else:
                n = max((i + 1 for i, ok in enumerate(passed) if ok), default=0)
            row = p[n]
            if n < len(drafted):
                pairs = zip(p[n], q[n], strict=True)
                row = tuple(max(weights[n] * a - b, Fraction(0)) for a, b in pairs)
            name = self.names.gumbel[min(n, len(self.names.gumbel) - 1)]
            for _, part in self._tokens(path, name, row):
                yield part


def _thresholds(
    rule: str, drafted: Text, p: list[Law], q: list[Law]
) -> tuple[list[Fraction], list[Fraction]]:
    """Return what each uniform number is compared with, and the weights pᵢ (1 under reject)."""
    one, zero = Fraction(1), Fraction(0)
    ratio = [p[j][x] / q[j][x] for j, x in enumerate(drafted)]
    if rule == "reject":
        return [min(one, r) for r in ratio], [one] * (len(drafted) + 1)
    weights = [one]
    for r in ratio:
        weights.append(min(weights[-1] * r, one))
    out = []
    for i in range(1, len(drafted)):
        pairs = zip(p[i], q[i], strict=True)
        z = sum((max(weights[i] * a - b, zero) for a, b in pairs), zero)
        out.append(z / (z + 1 - weights[i]) if z > 0 else zero)
    return [*out, *weights[len(drafted) : len(drafted) + 1]] if drafted else [], weights

"""The joint law of what a rule commits over several rounds, by exact enumeration.

A tiny target and a tiny draft with rational probabilities; the noise space is cut into cells on
which the published rule decides alike (borders and weights in fractions), the production tensor
functions are run on points of every cell, and their outcomes are summed. The result must equal
the target's law exactly. Which numbers are shared between draws and rounds is read off what the
rule's own `noise` and `proposal` return, so noise that is reused, or not keyed by the round, is
followed from round to round.
"""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from paceline.lab.audit_cells import Cell, by_threshold, by_token, measure, points, simplex
from paceline.speculation.sampling import draw
from paceline.speculation.verify import Rule, VerifyNoise
from paceline.types import Draft

Text = tuple[int, ...]
Law = tuple[Fraction, ...]
Memory = tuple[tuple[str, Cell], ...]  # what is known of the numbers that later rounds meet
State = tuple[Text, Memory]


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
class EnumerationResult:
    """total_variation between the committed tokens' law and the target's: 0 or it fails."""

    rule: str
    vocab_size: int
    k: int
    rounds: int
    tokens: int
    cells: int
    total_variation: float
    passed: bool


@dataclass(frozen=True, slots=True)
class _Names:
    """For one root, which number stands in each place: equal names are the same number."""

    proposal: tuple[str, ...]
    accept: tuple[str, ...]
    gumbel: tuple[str, ...]


def _names(rule: Rule, root: int, k: int, vocab_size: int) -> _Names:
    """Name the numbers of the round at `root` by the bits that the rule derives for them."""
    seed, at = torch.tensor([1]), torch.tensor([root])
    position = root + 1 + torch.arange(k + 1).unsqueeze(0)
    f64 = torch.float64
    noise = rule.noise(seed, at, position, vocab_size, f64, True)
    proposal = rule.proposal(seed, at, position[:, :-1], vocab_size, f64)
    assert noise.gumbel is not None

    def name(kind: str, row: Tensor) -> str:
        return kind + row.numpy().tobytes().hex()

    return _Names(
        tuple(name("g", row) for row in proposal[0]),
        () if noise.accept is None else tuple(name("u", row) for row in noise.accept[0]),
        tuple(name("g", row) for row in noise.gumbel[0]),
    )


@dataclass(frozen=True, slots=True)
class _Leaf:
    """One cell of a round's noise: what is known of every number, and its probability given
    what was known before."""

    text: Text
    count: int
    known: dict[str, Cell]
    weight: Fraction


class _Round:
    """The cells of one round that starts from one text; the published rules in fractions."""

    def __init__(self, rule: Rule, pair: TinyPair, schedule: Schedule, names: _Names) -> None:
        self.rule, self.pair, self.schedule, self.names = rule, pair, schedule, names

    def _whole(self, name: str) -> Cell:
        return simplex(self.pair.vocab_size if name[0] == "g" else 2)

    def _tokens(self, leaf: _Leaf, name: str, weights: Law) -> Iterator[tuple[int, _Leaf]]:
        cell = leaf.known.get(name) or self._whole(name)
        for token, part in by_token(cell, weights):
            yield token, self._with(leaf, name, cell, part)

    def _sides(self, leaf: _Leaf, name: str, threshold: Fraction) -> Iterator[tuple[bool, _Leaf]]:
        cell = leaf.known.get(name) or self._whole(name)
        for side, part in by_threshold(cell, threshold):
            yield side, self._with(leaf, name, cell, part)

    @staticmethod
    def _with(leaf: _Leaf, name: str, cell: Cell, part: Cell) -> _Leaf:
        weight = leaf.weight * measure(part) / measure(cell)
        return _Leaf(leaf.text, leaf.count, {**leaf.known, name: part}, weight)

    def leaves(self, text: Text, count: int, memory: Memory) -> Iterator[_Leaf]:
        """Yield the cells: drafts first, then what the rule looks at."""
        yield from self._draft(_Leaf(text, count, dict(memory), Fraction(1)), ())

    def _q(self, text: Text) -> Law:
        row = self.pair.q[self.pair.node(text)]
        if not self.schedule.one_hot_q:
            return row
        best = max(range(len(row)), key=lambda x: (row[x], -x))
        return tuple(Fraction(int(x == best)) for x in range(len(row)))

    def _draft(self, leaf: _Leaf, drafted: Text) -> Iterator[_Leaf]:
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

    def _match(self, leaf: _Leaf, drafted: Text, j: int) -> Iterator[_Leaf]:
        p = self.pair.p[self.pair.node(leaf.text + drafted[:j])]
        for token, part in self._tokens(leaf, self.names.gumbel[j], p):
            if j < len(drafted) and drafted[j] == token:
                yield from self._match(part, drafted, j + 1)
            else:
                yield part

    def _tested(self, leaf: _Leaf, drafted: Text) -> Iterator[_Leaf]:
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


class _Production:
    """Runs the program's own functions on many points at once."""

    def __init__(self, rule: Rule, pair: TinyPair, schedule: Schedule) -> None:
        self.rule, self.pair, self.schedule = rule, pair, schedule
        self.p = torch.tensor([[float(x) for x in r] for r in pair.p], dtype=torch.float64).log()
        q = torch.tensor([[float(x) for x in row] for row in pair.q], dtype=torch.float64)
        if schedule.one_hot_q:
            q = torch.nn.functional.one_hot(q.argmax(-1), pair.vocab_size).to(q.dtype)
        self.q = q.log()

    def run(
        self, node: Tensor, count: Tensor, proposal: Tensor, accept: Tensor, gumbel: Tensor
    ) -> tuple[Tensor, Tensor]:
        """node, count [B]; proposal [B, K, V] and gumbel [B, W or 1, V] noise; accept [B, K].

        Returns tokens [B, W] and accepted [B].
        """
        v, k = self.pair.vocab_size, self.schedule.k
        tokens, q, p = [], [], [self.p[node]]
        for j in range(k):
            q.append(self.q[node])
            tokens.append(draw(q[-1].unsqueeze(1), proposal[:, j : j + 1])[:, 0])
            node = (node * v + 1 + tokens[-1]).clamp(max=len(self.p) - 1)
            p.append(self.p[node])
        b = len(count)
        drafted = torch.stack(tokens, 1) if k else count.new_zeros(b, 0)
        if self.schedule.cut is not None:
            rows = zip(drafted.tolist(), count.tolist(), strict=True)
            count = torch.tensor([self.schedule.cut(tuple(d[:n])) for d, n in rows])
        scores = torch.stack(q, 1) if q and not self.schedule.one_hot_q else None
        draft = Draft(drafted, count, torch.zeros_like(count), scores)
        noise = VerifyNoise(gumbel, accept if self.rule.needs_q else None)
        out, accepted, _ = self.rule.verify(torch.stack(p, 1), draft, noise)
        return out, accepted


class Enumeration:
    """One case: a rule, a pair, a schedule. `result` is the outcome; `law` what was committed."""

    def __init__(self, rule: Rule, pair: TinyPair, schedule: Schedule, samples: int = 3) -> None:
        self.rule, self.pair, self.schedule, self.samples = rule, pair, schedule, samples
        # A root stands at most at the position of the last token compared.
        span = range(schedule.tokens + 1)
        self.names = [_names(rule, root, schedule.k, pair.vocab_size) for root in span]
        self.production = _Production(rule, pair, schedule)
        self.rng = random.Random(0)
        self.cells = 0

    def _later(self, root: int) -> set[str]:
        """Names of the numbers that a round from `root` on will meet."""
        rows = self.names[root:]
        return {n for row in rows for n in (*row.proposal, *row.accept, *row.gumbel)}

    def run(self) -> EnumerationResult:
        """Enumerate, compare, return."""
        law = self.law()
        exact = self._exact(())
        zero = Fraction(0)
        gaps = (abs(law.get(t, zero) - exact.get(t, zero)) for t in law.keys() | exact.keys())
        tv = sum(gaps, zero) / 2
        s = self.schedule
        passed = law == {t: w for t, w in exact.items() if w}
        return EnumerationResult(
            self.rule.name, self.pair.vocab_size, s.k, s.rounds, s.tokens, self.cells,
            float(tv), passed,
        )  # fmt: skip

    def law(self) -> dict[Text, Fraction]:
        """Return the law of the first `tokens` tokens after `rounds` rounds.

        A text that is still shorter is continued by the target itself, which is what a round
        with count 0 does.
        """
        states: dict[State, Fraction] = {((), ()): Fraction(1)}
        done: dict[Text, Fraction] = defaultdict(Fraction)
        for number in range(self.schedule.rounds):
            states = self._advance(number, states, done)
        for (text, _), weight in states.items():
            done[text] += weight
        out: dict[Text, Fraction] = defaultdict(Fraction)
        for text, weight in done.items():
            for whole, w in self._exact(text).items():
                out[whole] += weight * w
        return {text: w for text, w in out.items() if w}

    def _exact(self, text: Text) -> dict[Text, Fraction]:
        """The target's law of the first tokens, given their beginning."""
        if len(text) >= self.schedule.tokens:
            return {text[: self.schedule.tokens]: Fraction(1)}
        out: dict[Text, Fraction] = defaultdict(Fraction)
        for token, w in enumerate(self.pair.p[self.pair.node(text)]):
            for whole, rest in self._exact((*text, token)).items() if w else ():
                out[whole] += w * rest
        return out

    def _advance(
        self, number: int, states: dict[State, Fraction], done: dict[Text, Fraction]
    ) -> dict[State, Fraction]:
        """Run one round from every state; texts that are long enough go to `done`."""
        leaves: list[tuple[_Leaf, Fraction]] = []
        for (text, memory), weight in states.items():
            cells = _Round(self.rule, self.pair, self.schedule, self.names[len(text)])
            count = self.schedule.count(number, text)
            leaves += [(leaf, weight * leaf.weight) for leaf in cells.leaves(text, count, memory)]
        if not leaves:
            return {}
        self.cells += len(leaves)
        after: dict[State, Fraction] = defaultdict(Fraction)
        for (leaf, weight), outcomes in zip(leaves, self._outcomes(leaves), strict=True):
            for tokens in outcomes:
                text = leaf.text + tokens
                share = weight / len(outcomes)
                if len(text) >= self.schedule.tokens:
                    done[text[: self.schedule.tokens]] += share
                    continue
                later = self._later(len(text))
                kept = tuple(sorted((n, c) for n, c in leaf.known.items() if n in later))
                after[text, kept] += share
        return after

    def _outcomes(self, leaves: list[tuple[_Leaf, Fraction]]) -> list[list[Text]]:
        """Run the production functions on `samples` points of every cell, all in one batch."""
        k, v = self.schedule.k, self.pair.vocab_size
        proposal, accept, gumbel, node, count = [], [], [], [], []
        for leaf, _ in leaves:
            names = self.names[len(leaf.text)]
            for sample in range(self.samples):
                at = {name: self._point(cell, sample) for name, cell in leaf.known.items()}
                filler = {2: (0.31, 0.69), 3: (0.2, 0.5, 0.3)}
                proposal.append([at.get(n, filler[v]) for n in names.proposal])
                accept.append([at.get(n, filler[2])[0] for n in names.accept] or [0.5] * k)
                gumbel.append([at.get(n, filler[v]) for n in names.gumbel])
                node.append(self.pair.node(leaf.text))
                count.append(leaf.count)
        b = len(node)
        f64 = torch.float64
        tokens, accepted = self.production.run(
            torch.tensor(node),
            torch.tensor(count),
            -torch.tensor(proposal, dtype=f64).view(b, k, v).log(),
            torch.tensor(accept, dtype=f64).view(b, k),
            -torch.tensor(gumbel, dtype=f64).view(b, -1, v).log(),
        )
        rows = zip(tokens.tolist(), accepted.tolist(), strict=True)
        texts = [tuple(row[: n + 1]) for row, n in rows]
        return [texts[i : i + self.samples] for i in range(0, b, self.samples)]

    def _point(self, cell: Cell, sample: int) -> tuple[float, ...]:
        """The centre of the cell first, then points next to corners."""
        found = points(cell)
        return found[0] if sample == 0 else self.rng.choice(found[1:])

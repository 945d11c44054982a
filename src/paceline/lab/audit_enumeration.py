"""The joint law of what a rule commits over several rounds, by exact enumeration.

A tiny target and a tiny draft with rational probabilities; the noise space is cut into cells on
which the published rule decides alike (audit_reference), the production tensor functions are run
on points of every cell, and their outcomes are summed. The result must equal the target's law
exactly. Which numbers are shared between draws and rounds is read off what the rule's own `noise`
and `proposal` return, so noise that is reused, or not keyed by the round, is followed from round
to round.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from paceline.lab.audit_cells import Cell, points
from paceline.lab.audit_reference import (
    Leaf,
    Memory,
    RoundCells,
    Schedule,
    Text,
    TinyPair,
    name_numbers,
)
from paceline.speculation.sampling import draw
from paceline.speculation.verify import Rule, VerifyNoise
from paceline.types import Draft

State = tuple[Text, Memory]


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
    """One case: a rule, a pair, a schedule. `run` is the outcome; `law` what is committed."""

    def __init__(self, rule: Rule, pair: TinyPair, schedule: Schedule, samples: int = 3) -> None:
        self.rule, self.pair, self.schedule, self.samples = rule, pair, schedule, samples
        # A root stands at most at the position of the last token compared.
        span = range(schedule.tokens + 1)
        self.names = [name_numbers(rule, root, schedule.k, pair.vocab_size) for root in span]
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
        leaves: list[tuple[Leaf, Fraction]] = []
        for (text, memory), weight in states.items():
            cells = RoundCells(self.rule, self.pair, self.schedule, self.names[len(text)])
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

    def _outcomes(self, leaves: list[tuple[Leaf, Fraction]]) -> list[list[Text]]:
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

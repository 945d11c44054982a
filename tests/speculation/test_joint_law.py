"""G-tests of the joint law of several tokens, with the program's own noise and many seeds.

The vocabulary is too large to enumerate. A row is a text of its own; rounds follow each other as
in the engine, from the noise's counters to the verdict.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest
import torch
from tests.speculation.rows import ALL, params
from torch import Tensor

from paceline.lab.audit_mutations import MUTANTS, Mutant
from paceline.lab.audit_statistics import GTest, g_test_of
from paceline.speculation.sampling import distribution, draw, probabilities
from paceline.speculation.verify import RULES, Rule
from paceline.types import Draft, RuleName

V, TOKENS = 12, 3
# Off by less than a sample of this size can show; the enumeration finds them (test_enumeration).
SUBTLE = {"block, token-wise residual", "block, noise not keyed by the root"}
NAMES: tuple[RuleName, ...] = ("match", "reject", "block")


@dataclass(frozen=True)
class Markov:
    """Target and draft logits [V, V], by the last token; tempered and truncated as requests are."""

    p: Tensor
    q: Tensor


def pair(seed: int, dtype: torch.dtype, **row: float) -> Markov:
    g = torch.Generator().manual_seed(seed)
    p = torch.randn(V, V, generator=g, dtype=torch.float64) * 1.5
    q = p + torch.randn(V, V, generator=g, dtype=torch.float64)
    rows = params([row or {"temperature": 1.0}] * V)
    flags = type(ALL)(draws=True, truncation=True)
    position = torch.zeros(V, 1, dtype=torch.int64)

    def scores(x: Tensor) -> Tensor:
        return distribution(x.to(dtype).unsqueeze(1), rows, flags, position)[:, 0]

    return Markov(scores(p), scores(q))


def write(rule: Rule, model: Markov, k: int, n: int, first_seed: int = 0) -> Tensor:
    """Return the first tokens [n, TOKENS] of n texts that begin with token 0 at position 0."""
    seeds = torch.arange(first_seed, first_seed + n)
    text = torch.zeros(n, TOKENS + k + 2, dtype=torch.int64)
    length = torch.ones(n, dtype=torch.int64)
    dtype = model.p.dtype
    while int(length.min()) <= TOKENS:
        root = length - 1
        position = length.unsqueeze(1) + torch.arange(k + 1)
        gumbel = rule.proposal(seeds, root, position[:, :k], V, dtype)
        last = text.gather(1, root.unsqueeze(1))[:, 0]
        scores, q, tokens = [model.p[last]], [], []
        for j in range(k):
            q.append(model.q[last])
            last = draw(q[-1].unsqueeze(1), gumbel[:, j : j + 1])[:, 0]
            tokens.append(last)
            scores.append(model.p[last])
        count = (seeds + length) % (k + 1)  # rows and rounds differ in what they drafted
        draft = Draft(torch.stack(tokens, 1), count, count * 0, torch.stack(q, 1))
        noise = rule.noise(seeds, root, position, V, dtype, True)
        out, accepted, _ = rule.verify(torch.stack(scores, 1), draft, noise)
        going = length <= TOKENS
        node = torch.arange(k + 1)
        taken = (node <= accepted.unsqueeze(1)) & going.unsqueeze(1)
        place = torch.where(taken, position, TOKENS + k + 1)
        text = text.scatter(1, place, out)
        length = torch.where(going, length + accepted + 1, length)
    return text[:, 1 : TOKENS + 1]


def joint_test(rule: Rule, model: Markov, k: int, n: int) -> GTest:
    p = probabilities(model.p.double())
    first = p[0]
    law = first.view(V, 1, 1) * p.view(V, V, 1) * p.view(1, V, V)
    expected = {
        (a, b, c): float(law[a, b, c]) for a in range(V) for b in range(V) for c in range(V)
    }
    tokens = write(rule, model, k, n)
    return g_test_of(Counter(map(tuple, tokens.tolist())), expected)


@pytest.mark.parametrize("rule", NAMES)
@pytest.mark.parametrize(
    ("k", "dtype", "row"),
    [
        (1, torch.float64, {}),
        (4, torch.float32, {}),
        (4, torch.float64, {"temperature": 0.7, "top_p": 0.9}),
        (3, torch.float32, {"temperature": 1.3, "top_k": 6, "min_p": 0.05}),
    ],
)
def test_joint_law_of_three_tokens(
    rule: RuleName, k: int, dtype: torch.dtype, row: dict[str, float]
) -> None:
    result = joint_test(RULES[rule], pair(0, dtype, **row), k, 60_000)
    assert result.p_value > 1e-3
    assert result.least_total_variation < 0.05


@pytest.mark.parametrize("name", sorted(MUTANTS.keys() - SUBTLE))
def test_mutants_are_rejected(name: str) -> None:
    mutant: Mutant = MUTANTS[name]
    results = (joint_test(mutant, pair(seed, torch.float64), 4, 80_000) for seed in range(2))
    assert any(r.p_value < 1e-5 for r in results)


@pytest.mark.parametrize("rule", NAMES)
def test_acceptance_is_as_the_papers_say(rule: RuleName) -> None:
    """One draft token: reject and block accept 1 − TV; match at least (1 − TV)/(1 + TV)."""
    model, n = pair(1, torch.float64), 100_000
    p, q = probabilities(model.p)[0], probabilities(model.q)[0]
    tv = float((p - q).abs().sum() / 2)
    seeds, root = torch.arange(n), torch.zeros(n, dtype=torch.int64)
    position = torch.tensor([[1, 2]]).expand(n, 2)
    chosen = RULES[rule]
    scores = model.q[:1].expand(n, 1, V)
    tokens = draw(scores, chosen.proposal(seeds, root, position[:, :1], V, torch.float64))
    target = torch.stack((model.p[0].expand(n, V), model.p[tokens[:, 0]]), 1)
    draft = Draft(tokens, torch.ones_like(seeds), seeds * 0, scores)
    noise = chosen.noise(seeds, root, position, V, torch.float64, True)
    rate = chosen.verify(target, draft, noise)[1].double().mean().item()
    if rule == "match":
        assert (1 - tv) / (1 + tv) - 0.005 < rate < 1 - tv + 0.005
    else:
        assert rate == pytest.approx(1 - tv, abs=0.005)

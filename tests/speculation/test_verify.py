"""The rules against a plain loop with the same noise, and their corner cases."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.speculation import oracle
from tests.speculation.rows import F64, random_scores
from torch import Tensor

from paceline.errors import PacelineError
from paceline.speculation.sampling import draw
from paceline.speculation.verify import RULES, VerifyNoise
from paceline.types import Draft, RuleName

NAMES: tuple[RuleName, ...] = ("match", "reject", "block")


def make_draft(tokens: Tensor, count: Tensor, scores: Tensor | None) -> Draft:
    return Draft(tokens, count, torch.zeros_like(count), scores)


def expected(rule: RuleName, p: Tensor, draft: Draft, noise: VerifyNoise, row: int) -> list[int]:
    """The oracle's tokens of one row."""
    v = p.shape[2]
    tokens, count = draft.tokens[row].tolist(), int(draft.count[row])
    if draft.scores is None:
        q = torch.nn.functional.one_hot(draft.tokens[row], v).to(F64).tolist()
    else:
        q = draft.scores[row].softmax(-1).tolist()
    target = p[row].softmax(-1).tolist()
    if rule == "match":
        gumbel = None if noise.gumbel is None else noise.gumbel[row].tolist()
        return oracle.match(target, tokens, count, gumbel)[0]
    accept = [0.5] * len(tokens) if noise.accept is None else noise.accept[row].tolist()
    loop = oracle.reject if rule == "reject" else oracle.block
    gumbel = None if noise.gumbel is None else noise.gumbel[row, 0].tolist()
    return loop(target, q, tokens, count, accept, gumbel)[0]


@settings(max_examples=120, deadline=None)
@given(
    rule=st.sampled_from(NAMES),
    seed=st.integers(0, 2**31),
    k=st.integers(0, 6),
    v=st.integers(2, 9),
    one_hot_q=st.booleans(),
    greedy=st.booleans(),
    near=st.booleans(),
)
def test_element_by_element(
    rule: RuleName, seed: int, k: int, v: int, one_hot_q: bool, greedy: bool, near: bool
) -> None:
    b, g = 16, torch.Generator().manual_seed(seed)
    p = random_scores(g, b, k + 1, v)
    q = p[:, :k] + 0.3 * torch.randn(b, k, v, generator=g, dtype=F64) if near else None
    q = q if q is not None else random_scores(g, b, k, v)
    seeds, root = torch.randint(2**62, (b,), generator=g), torch.randint(9, (b,), generator=g)
    position = root.unsqueeze(1) + 1 + torch.arange(k + 1)
    chosen = RULES[rule]
    if greedy:  # one-hot through the same formulas, no noise at all
        hot = torch.full_like(p, -torch.inf).scatter_(2, p.argmax(-1, keepdim=True), 0.0)
        q = torch.full_like(q, -torch.inf).scatter_(2, q.argmax(-1, keepdim=True), 0.0)
        p, tokens, noise = hot, q.argmax(-1), VerifyNoise()
    else:
        tokens = draw(q, chosen.proposal(seeds, root, position[:, :k], v, F64))
        noise = chosen.noise(seeds, root, position, v, F64, True)
    count = torch.randint(k + 1, (b,), generator=g)
    draft = make_draft(tokens, count, None if one_hot_q else q)
    out, accepted, evaluated = chosen.verify(p, draft, noise)
    assert out.shape == (b, k + 1)
    assert out.dtype == accepted.dtype == evaluated.dtype == torch.int64
    assert torch.equal(evaluated, torch.minimum(accepted + 1, count))
    for row in range(b):
        n = int(accepted[row])
        want = expected(rule, p, draft, noise, row)
        assert out[row, : n + 1].tolist() == want
        assert out[row, n + 1 :].eq(0).all()
        assert out[row, :n].tolist() == tokens[row, :n].tolist()


@pytest.mark.parametrize("rule", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_perfect_draft_is_accepted_whole(rule: RuleName, dtype: torch.dtype) -> None:
    b, k, v = 500, 5, 40
    g = torch.Generator().manual_seed(1)
    p = random_scores(g, b, k + 1, v).to(dtype)
    seeds, root = torch.arange(b), torch.full((b,), 3)
    position = root.unsqueeze(1) + 1 + torch.arange(k + 1)
    chosen = RULES[rule]
    tokens = draw(p[:, :k], chosen.proposal(seeds, root, position[:, :k], v, dtype))
    count = torch.arange(b) % (k + 1)
    noise = chosen.noise(seeds, root, position, v, dtype, True)
    _, accepted, evaluated = chosen.verify(p, make_draft(tokens, count, p[:, :k]), noise)
    assert torch.equal(accepted, count)
    assert torch.equal(evaluated, count)


@pytest.mark.parametrize("rule", NAMES)
def test_padding_and_other_rows_do_not_matter(rule: RuleName) -> None:
    b, k, v = 6, 4, 12
    g = torch.Generator().manual_seed(2)
    p, q = random_scores(g, b, k + 1, v), random_scores(g, b, k, v)
    seeds, root = torch.arange(b), torch.arange(b)
    position = root.unsqueeze(1) + 1 + torch.arange(k + 1)
    chosen = RULES[rule]
    tokens = draw(q, chosen.proposal(seeds, root, position[:, :k], v, F64))
    count = torch.tensor([0, 1, 2, 3, 4, 2])
    noise = chosen.noise(seeds, root, position, v, F64, True)
    before = chosen.verify(p, make_draft(tokens, count, q), noise)
    node = torch.arange(k)
    past = node >= count.unsqueeze(1)
    junk = tokens.masked_fill(past, 3)
    p2, q2 = p.clone(), q.clone()
    q2[past] = torch.nan
    p2[:, 1:][past] = torch.nan
    p2[5], q2[5] = torch.nan, torch.inf  # a broken row
    after = chosen.verify(p2, make_draft(junk, count, q2), noise)
    for x, y in zip(before, after, strict=True):
        assert torch.equal(x[:5], y[:5])
    assert (after[0] >= 0).all()
    assert (after[0] < v).all()


@pytest.mark.parametrize("rule", NAMES)
def test_count_zero_is_plain_decoding(rule: RuleName) -> None:
    """The bonus token is the target's own draw, whatever the window's width."""
    b, v = 50, 20
    g = torch.Generator().manual_seed(3)
    p, q = random_scores(g, b, 4, v), random_scores(g, b, 3, v)
    seeds, root = torch.arange(b), torch.full((b,), 8)
    chosen = RULES[rule]
    position = 9 + torch.arange(4).expand(b, 4)
    noise = chosen.noise(seeds, root, position, v, F64, True)
    draft = make_draft(torch.zeros(b, 3, dtype=torch.int64), torch.zeros(b).long(), q)
    wide, accepted, evaluated = chosen.verify(p, draft, noise)
    assert accepted.eq(0).all()
    assert evaluated.eq(0).all()
    empty = make_draft(torch.zeros(b, 0, dtype=torch.int64), draft.count, q[:, :0])
    narrow_noise = chosen.noise(seeds, root, position[:, :1], v, F64, True)
    narrow, _, _ = chosen.verify(p[:, :1], empty, narrow_noise)
    assert torch.equal(wide[:, :1], narrow)
    assert noise.gumbel is not None
    assert torch.equal(narrow[:, 0], draw(p[:, :1], noise.gumbel[:, :1])[:, 0])


def test_block_accepts_no_fewer_than_reject_on_average() -> None:
    b, k, v = 20_000, 5, 8
    g = torch.Generator().manual_seed(4)
    p = random_scores(g, 1, k + 1, v, sharp=1.0).expand(b, -1, -1)
    q = random_scores(g, 1, k, v, sharp=1.0).expand(b, -1, -1)
    seeds, root = torch.arange(b), torch.zeros(b).long()
    position = 1 + torch.arange(k + 1).expand(b, k + 1)
    rate = {}
    for name in ("reject", "block"):
        chosen = RULES[name]
        tokens = draw(q, chosen.proposal(seeds, root, position[:, :k], v, F64))
        noise = chosen.noise(seeds, root, position, v, F64, True)
        draft = make_draft(tokens, torch.full((b,), k), q)
        rate[name] = chosen.verify(p, draft, noise)[1].double().mean().item()
    assert rate["block"] > rate["reject"] + 0.02


def test_match_reads_nothing_of_the_draft_but_its_tokens() -> None:
    """Whatever the draft, the emitted tokens are a prefix of the same own draws."""
    b, k, v = 64, 5, 3
    g = torch.Generator().manual_seed(5)
    p = random_scores(g, b, k + 1, v)
    rule = RULES["match"]
    noise = rule.noise(
        torch.arange(b), torch.zeros(b).long(), torch.arange(k + 1).expand(b, -1), v, F64, True
    )
    own = draw(p, noise.gumbel)
    for _ in range(5):
        tokens = torch.randint(v, (b, k), generator=g)
        out, accepted, _ = rule.verify(p, make_draft(tokens, torch.full((b,), k), None), noise)
        node = torch.arange(k + 1)
        assert torch.equal(out, own * (node <= accepted.unsqueeze(1)))


@pytest.mark.parametrize("rule", ["reject", "block"])
def test_trees_are_refused(rule: RuleName) -> None:
    zero = torch.zeros(1, 1, dtype=torch.int64)
    draft = Draft(zero, zero[0], zero[0], None, parents=zero)
    with pytest.raises(PacelineError, match="use rule 'match'"):
        RULES[rule].verify(torch.zeros(1, 2, 4), draft, VerifyNoise())


def test_rounds_do_not_share_numbers_under_reject_and_block() -> None:
    seeds = torch.tensor([1])
    position = torch.tensor([[5, 6, 7]])
    for name in ("reject", "block"):
        a = RULES[name].noise(seeds, torch.tensor([4]), position, 8, F64, True)
        b = RULES[name].noise(seeds, torch.tensor([3]), position, 8, F64, True)
        first = RULES[name].proposal(seeds, torch.tensor([4]), position, 8, F64)
        second = RULES[name].proposal(seeds, torch.tensor([3]), position, 8, F64)
        assert a.accept is not None
        assert a.gumbel is not None
        assert a.accept.ne(b.accept).all()
        assert a.gumbel.ne(b.gumbel).all()
        assert first.ne(second).all()
        assert first[:, :1].ne(a.gumbel).all()
    match = RULES["match"]
    noise = match.noise(seeds, torch.tensor([4]), position, 8, F64, True)
    assert torch.equal(noise.gumbel, match.proposal(seeds, torch.tensor([0]), position, 8, F64))

"""The radix selection against a stable sort, with the ties that bfloat16 logits have."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from paceline.speculation.truncation import truncate

F32, F64 = torch.float32, torch.float64


def by_sorting(scores: Tensor, top_k: Tensor | None, top_p: Tensor | None) -> Tensor:
    """Which tokens stay: rank by a stable sort, cut, put back."""
    ranked, ids = torch.sort(scores.double(), dim=-1, descending=True, stable=True)
    rank = torch.arange(scores.shape[-1])
    keep = torch.ones_like(ranked, dtype=torch.bool)
    if top_k is not None:
        k = top_k.view(-1, 1, 1)
        keep &= (rank < k) | (k <= 0)
    if top_p is not None:
        p = top_p.double().view(-1, 1, 1)
        mass = ranked.exp() * keep
        before = mass.cumsum(-1) - mass
        keep &= (before < p * mass.sum(-1, keepdim=True)) | (p >= 1)
    return torch.zeros_like(keep).scatter_(-1, ids, keep)


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("ties", [True, False])
@pytest.mark.parametrize("v", [2, 100, 8192])
def test_equals_a_stable_sort(dtype: torch.dtype, ties: bool, v: int) -> None:
    g = torch.Generator().manual_seed(v)
    b, w = 8, 3
    logits = torch.randn(b, w, v, generator=g, dtype=F64) * 3
    logits = (logits.bfloat16() if ties else logits).to(dtype)
    logits[0, 0, v // 2 :] = -torch.inf
    scores = logits - logits.amax(-1, keepdim=True)
    top_k = torch.tensor([0, 1, 2, 7, 40, v - 1, v, v + 9])
    top_p = torch.tensor([0.9, 1.0, 0.31, 0.95, 0.0001, 0.999, 0.5, 1.0])
    for k, p in ((top_k, None), (None, top_p), (top_k, top_p), (top_k.flip(0), top_p)):
        got = truncate(scores.clone(), k, p, None)
        want = by_sorting(scores, k, p) & (scores > -torch.inf)
        assert torch.equal(got > -torch.inf, want)
        assert torch.equal(got[want], scores[want])


def test_stages_left_out_change_nothing() -> None:
    g = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 2, 50, generator=g)
    scores -= scores.amax(-1, keepdim=True)
    off_k, off_p, off_m = torch.zeros(2, dtype=torch.int64), torch.ones(2), torch.zeros(2)
    assert torch.equal(truncate(scores.clone(), off_k, off_p, off_m), scores)
    assert torch.equal(truncate(scores.clone(), None, None, None), scores)
    k, p = torch.tensor([3, 9]), torch.tensor([0.5, 0.8])
    one = truncate(scores.clone(), k, off_p, off_m)
    assert torch.equal(one, truncate(scores.clone(), k, None, None))
    two = truncate(scores.clone(), off_k, p, off_m)
    assert torch.equal(two, truncate(scores.clone(), None, p, None))


def test_a_broken_row_disturbs_nobody() -> None:
    g = torch.Generator().manual_seed(1)
    scores = torch.randn(3, 1, 64, generator=g)
    scores -= scores.amax(-1, keepdim=True)
    k, p, m = torch.tensor([5] * 3), torch.tensor([0.7] * 3), torch.tensor([0.1] * 3)
    clean = truncate(scores.clone(), k, p, m)
    for bad in (torch.nan, -torch.nan, torch.inf, -torch.inf):
        spoiled = scores.clone()
        spoiled[1] = bad
        got = truncate(spoiled, k, p, m)
        assert torch.equal(got[0], clean[0])
        assert torch.equal(got[2], clean[2])

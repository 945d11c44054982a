"""The counters' hash: reference values, ranges, uniformity and independence (fixed seeds)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from paceline.speculation.noise import GOLDEN, Stream, gumbel, keys, mix_, uniform

F32, F64 = torch.float32, torch.float64
ALPHA = 1e-3  # every seed below is fixed: a test that passes once passes always


def test_mix_is_splitmix64() -> None:
    # The first outputs of splitmix64 seeded with 1234567 (Vigna's reference program).
    state = torch.tensor([1234567 + 0, 1234567]) + torch.tensor([1, 2]) * GOLDEN
    want = [6457827717110365317, 3203168211198807973]
    assert [x % 2**64 for x in mix_(state).tolist()] == want


def test_keys_depend_on_every_input_and_not_on_the_batch() -> None:
    seed, position = torch.tensor([3, 4]), torch.tensor([[7, 8, 9], [7, 8, 9]])
    root = torch.tensor([6, 6])
    variants = [
        keys(seed, stream, position, r) for stream in Stream for r in (None, root, root - 1)
    ]
    flat = torch.cat([v.flatten() for v in variants])
    assert flat.unique().numel() == flat.numel()
    alone = keys(seed[1:], Stream.ACCEPT, position[1:, 2:], root[1:])
    assert alone.item() == keys(seed, Stream.ACCEPT, position, root)[1, 2].item()


def test_extreme_seeds_and_positions() -> None:
    seed = torch.tensor([0, -1, 2**63 - 1, -(2**63)])
    position = torch.tensor([[0, 2**31, 2**62]]).expand(4, 3)
    k = keys(seed, Stream.TARGET, position)
    assert k.unique().numel() == 12
    for dtype in (F32, F64):
        assert gumbel(k, 64, dtype).isfinite().all()


@pytest.mark.parametrize("dtype", [F32, F64])
def test_uniform_is_open_and_finite_at_the_ends(dtype: torch.dtype) -> None:
    u = uniform(torch.tensor([0, -1, 2**63 - 1, -(2**63)]), dtype)
    assert (u > 0).all()
    assert (u < 1).all()
    assert u.dtype == dtype


def test_uniform_is_uniform_over_positions_seeds_and_rounds() -> None:
    n = 200_000
    across = {
        "positions": keys(torch.tensor([11]), Stream.ACCEPT, torch.arange(n).unsqueeze(0)),
        "seeds": keys(torch.arange(n), Stream.ACCEPT, torch.full((n, 1), 5)),
        "roots": keys(torch.full((n,), 3), Stream.ACCEPT, torch.full((n, 1), 5), torch.arange(n)),
    }
    for name, k in across.items():
        u = uniform(k, F64).flatten()
        assert stats.kstest(u.numpy(), "uniform").pvalue > ALPHA, name
        pairs = (u[:-1] * 20).long() * 20 + (u[1:] * 20).long()  # neighbours are independent
        counts = torch.bincount(pairs, minlength=400).numpy()
        assert stats.chisquare(counts).pvalue > ALPHA, name


def test_streams_are_independent() -> None:
    seed = torch.tensor([9])
    position = torch.arange(100_000).unsqueeze(0)
    root = position[:, :1] * 0
    u = [uniform(keys(seed, s, position, root[0]), F64).flatten() for s in Stream]
    for a in range(4):
        for b in range(a):
            counts = torch.bincount((u[a] * 16).long() * 16 + (u[b] * 16).long(), minlength=256)
            assert stats.chisquare(counts.numpy()).pvalue > ALPHA


@pytest.mark.parametrize("dtype", [F32, F64])
def test_gumbel_is_gumbel(dtype: torch.dtype) -> None:
    k = keys(torch.tensor([1]), Stream.TARGET, torch.arange(40).unsqueeze(0))
    g = gumbel(k, 5000, dtype)
    assert stats.kstest(g.double().flatten().numpy(), "gumbel_r").pvalue > ALPHA
    # Tails matter most: the largest of each vector is a Gumbel shifted by log V.
    many = gumbel(keys(torch.arange(4000), Stream.TARGET, torch.zeros(4000, 1).long()), 300, dtype)
    top = many.amax(-1).flatten().double() - math.log(300)
    assert stats.kstest(top.numpy(), "gumbel_r").pvalue > ALPHA


def test_gumbel_tokens_and_positions_are_independent() -> None:
    k = keys(torch.tensor([2]), Stream.TARGET, torch.arange(50_000).unsqueeze(0))
    g = gumbel(k, 4, F64)[0]
    wins = g.argmax(-1)
    assert stats.chisquare(torch.bincount(wins).numpy()).pvalue > ALPHA
    neighbours = torch.bincount(wins[:-1] * 4 + wins[1:], minlength=16)
    assert stats.chisquare(neighbours.numpy()).pvalue > ALPHA
    ranks = g.argsort(-1)  # all 24 orders of four tokens are equally likely
    order = (ranks * torch.tensor([64, 16, 4, 1])).sum(-1)
    counts = np.unique(order.numpy(), return_counts=True)[1]
    assert len(counts) == 24
    assert stats.chisquare(counts).pvalue > ALPHA


def test_gumbel_bits_look_random() -> None:
    k = keys(torch.arange(64), Stream.PROPOSAL, torch.arange(8).expand(64, 8))
    u = torch.exp(-torch.exp(-gumbel(k, 256, F64)))  # back to 1 - u, uniform
    flipped = (u[:, :, 1:] - u[:, :, :-1]).abs()
    assert stats.kstest(flipped.flatten().numpy(), lambda x: 2 * x - x * x).pvalue > ALPHA


def test_float32_and_float64_draw_alike() -> None:
    k = keys(torch.arange(100), Stream.TARGET, torch.arange(20).expand(100, 20))
    a, b = gumbel(k, 500, F32).double(), gumbel(k, 500, F64)
    likely = b > -2.0
    assert (a - b)[likely].abs().max() < 1e-4
    assert (a - b)[b > 0].abs().max() < 2e-6
    assert (a.argmax(-1) == b.argmax(-1)).all()
    assert (uniform(k, F32).double() - uniform(k, F64)).abs().max() <= 2.0**-24


def test_gumbel_does_not_depend_on_the_vocabulary_size() -> None:
    k = keys(torch.tensor([1]), Stream.TARGET, torch.tensor([[3]]))
    assert torch.equal(gumbel(k, 100, F32)[..., :40], gumbel(k, 40, F32))


@pytest.mark.parametrize("dtype", [F32, F64])
def test_noise_cannot_overrule_a_one_hot(dtype: torch.dtype) -> None:
    k = keys(torch.arange(50), Stream.TARGET, torch.zeros(50, 1).long())
    scores = torch.full((50, 1, 1000), -math.inf, dtype=dtype)
    scores[..., 7] = 0
    assert ((scores + gumbel(k, 1000, dtype)).argmax(-1) == 7).all()

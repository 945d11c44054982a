"""Randomness as an argument: counters hashed into uniforms and Gumbel noise.

Owns the streams and the mixing; knows nothing of distributions, drafts or models. There is no
generator and no state: what is drawn for (seed, stream, root, position, token) is the same on
every call, in every batch and at every window width.

Quality. Inputs are folded one by one through the finaliser of splitmix64 (Steele, Lea, Flood
2014, OOPSLA; Stafford's variant 13), a bijection of 64 bits that passes PractRand on counters;
what is drawn along tokens is splitmix64 itself, started at the key. Two keys collide with
probability 2^-64 a pair.
"""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor

GOLDEN = -0x61C8864680B583EB  # 0x9E3779B97F4A7C15 as a signed 64-bit number
MIX_1 = -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9
MIX_2 = -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB


class Stream(IntEnum):
    """What a number is for. Numbers of different streams are independent."""

    TARGET = 0
    PROPOSAL = 1
    ACCEPT = 2
    RESIDUAL = 3


def _shifted(z: Tensor, bits: int, out: Tensor | None = None) -> Tensor:
    """Return z >> bits with zeros from the left (torch's own shift copies the sign)."""
    return torch.bitwise_right_shift(z, bits, out=out).bitwise_and_((1 << (64 - bits)) - 1)


def mix_(z: Tensor) -> Tensor:
    """Apply the finaliser of splitmix64 in place to z int64 and return it."""
    t = _shifted(z, 30)
    z.bitwise_xor_(t).mul_(MIX_1)
    z.bitwise_xor_(_shifted(z, 27, out=t)).mul_(MIX_2)
    return z.bitwise_xor_(_shifted(z, 31, out=t))


def _fold(h: Tensor, x: Tensor | int) -> Tensor:
    """Return a new key from key h and one more input; for a fixed h a bijection of x."""
    step = (x + 1) * GOLDEN if isinstance(x, Tensor) else _wrap((x + 1) * GOLDEN)
    return mix_(h + step)


def _wrap(x: int) -> int:
    """Return x modulo 2^64 as a signed number."""
    return (x + (1 << 63)) % (1 << 64) - (1 << 63)


def keys(
    seed: Tensor,
    stream: Stream,
    position: Tensor,
    root: Tensor | None = None,
) -> Tensor:
    """Return one 64-bit key for each position.

    seed [B] int64; position [B, W] int64, absolute, of the token to be drawn; root [B] int64,
    the root position of the round, for streams that must not meet the same number in two
    rounds. Returns [B, W] int64.
    """
    assert seed.dtype == position.dtype == torch.int64, "seeds and positions are int64"
    # The 0 stands where one more input would go. A seed's texts depend on it: it stays.
    h = _fold(_fold(seed, int(stream)), 0)  # [B]
    if root is not None:
        h = _fold(h, root)
    return _fold(h.unsqueeze(-1), position)  # [B, W]


def uniform(keys: Tensor, dtype: torch.dtype) -> Tensor:
    """Return uniform numbers in the open interval (0, 1), one a key, of the same shape.

    Made of the top 52 bits, so that 0 and 1 are impossible in float64; in float32 the same
    number is rounded and kept below 1 (small numbers keep their 24 significant bits, which is
    what a comparison with a small probability needs).
    """
    u = _shifted(keys, 12).to(torch.float64).add_(0.5).mul_(2.0**-52)
    if dtype == torch.float64:
        return u
    return u.to(dtype).clamp_(max=1.0 - torch.finfo(dtype).eps / 2)


def gumbel(keys: Tensor, vocab_size: int, dtype: torch.dtype) -> Tensor:
    """Return standard Gumbel noise for every token id: keys [B, W] -> [B, W, V].

    argmax(log p + noise) is a draw from p (the Gumbel-max trick). With h the top 32 bits of
    splitmix64(key + (token + 1)·GOLDEN), u = (h + 1/2) / 2^32, the exponential E = −log(1 − u)
    and the noise is −log E. A draw is decided where the noise is large, that is where u is
    small: there u and E have full relative precision, in float32 too. The noise lies within
    [−3.2, 22.9], so that it can neither revive a removed token (−inf) nor outweigh a one-hot.
    A token's probability is thereby off by less than 2^-32.

    The noise of a token does not depend on vocab_size, and is the same in float32 and float64
    up to rounding (the noise below −2.5, which hardly ever wins, differs more).
    """
    tokens = torch.arange(1, vocab_size + 1, device=keys.device).mul_(GOLDEN)  # [V]
    h = mix_(keys.unsqueeze(-1) + tokens)  # [B, W, V]
    u = _shifted(h, 32, out=h).to(dtype).add_(0.5).mul_(2.0**-32)
    u.clamp_(max=1.0 - torch.finfo(dtype).eps / 2)
    return u.neg_().log1p_().neg_().log_().neg_()

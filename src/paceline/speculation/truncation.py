"""Top-k, top-p and min-p: which tokens a request may draw at all.

Pure; called by `sampling.distribution` alone. Nothing is sorted: torch's sort of 8192 numbers on
a CPU takes a tenth of a whole decoding step. The last token kept is found digit by digit instead
(a radix selection over the bits of the score). Probability is added up in whole numbers, so that
the cut does not depend on the order of summation, on any device.
"""

from __future__ import annotations

import torch
from torch import Tensor

_DIGIT = 11  # bits a pass: 2048 buckets, three passes in float32
_FIXED = 2.0**32  # probability of the best token; whole numbers up to 2^53 are exact in float64


def truncate(
    scores: Tensor, top_k: Tensor | None, top_p: Tensor | None, min_p: Tensor | None
) -> Tensor:
    """Set removed tokens of scores [B, W, V] to −inf, in place, and return them.

    scores are log-weights with their best at 0. top_k [B] int64 (0 is off), top_p and min_p [B];
    None where no row uses it. Tokens are ranked by score, lower ids first among equals. top-k
    keeps the first k; top-p (Holtzman et al. 2020) the shortest run from the front whose
    probability reaches p, at least one token; min-p (Nguyen et al. 2024) removes what is less
    probable than min_p times the best. transformers does the same, but for exact ties at a cut.
    """
    keep: Tensor | None = None
    if top_k is not None or top_p is not None:
        bits = torch.int32 if scores.dtype == torch.float32 else torch.int64
        ranks = scores.abs().view(bits).to(torch.int64)
        size = torch.finfo(scores.dtype).bits - 1  # the sign bit is 0
        if top_k is not None:
            k = top_k.view(-1, 1, 1)
            keep = _front(ranks, size, torch.ones_like(ranks, dtype=torch.float64), k)
            keep.logical_or_(k <= 0)
        if top_p is not None:
            mass = scores.exp().to(torch.float64).mul_(_FIXED).floor_()
            if keep is not None:
                mass.mul_(keep)
            p = top_p.to(torch.float64).view(-1, 1, 1)
            goal = mass.sum(-1, keepdim=True).mul_(p).ceil_().clamp_(min=1.0)
            run = _front(ranks, size, mass, goal).logical_or_(p >= 1)
            keep = run if keep is None else keep.logical_and_(run)
        assert keep is not None
        scores.masked_fill_(keep.logical_not_(), float("-inf"))
    if min_p is not None:
        floor = min_p.to(scores.dtype).log().view(-1, 1, 1)
        scores.masked_fill_(scores < floor, float("-inf"))
    return scores


def _front(ranks: Tensor, size: int, weight: Tensor, goal: Tensor) -> Tensor:
    """Return [B, W, V] bool: tokens before which less than `goal` [B, 1 or W, 1] has been added.

    ranks int64: the bits of −score, `size` of them, which order as the scores do, best first.
    weight [B, W, V] float64, whole numbers, added up in that order. Each pass looks at the next
    digit of those that agree with the last token kept so far, and goes on in the first bucket
    where the sum reaches the goal.
    """
    left, edge, top = goal, torch.zeros_like(ranks[..., :1]), size
    while top:
        width = min(_DIGIT, top)
        top -= width
        digit = ranks.bitwise_right_shift(top).bitwise_and_((1 << width) - 1)
        bucket = weight.new_zeros(*ranks.shape[:-1], 1 << width).scatter_add_(-1, digit, weight)
        total = bucket.cumsum(-1)
        at = (total < left).sum(-1, keepdim=True).clamp_(max=(1 << width) - 1)
        left = left - (total.gather(-1, at) - bucket.gather(-1, at))
        edge = edge.bitwise_left_shift_(width).bitwise_or_(at)
        weight = weight * (digit == at)
    before = weight.cumsum(-1).sub_(weight)  # among equals of the last token, by id
    tied = (before < left).logical_and_(ranks == edge)
    return tied.logical_or_(ranks < edge)

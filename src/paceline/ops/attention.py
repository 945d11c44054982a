"""Attention of a window's rows over the cached keys and values, and the write into that cache.

The cache of a layer is one tensor [2·Hkv, N, D], all keys' heads and then all values', so that
one indexed copy writes both and a head's keys are contiguous. In bfloat16 both products run in
oneDNN, whose sums do not depend on the number of rows nor on how far the masked tail reaches;
the extent is a multiple of `BLOCK` for the same reason.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from paceline.types import Window

BLOCK = 64


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """What all layers of one forward pass share.

    width W; address [B·W]; spans per row (first address, extent); masks: per sliding window
    size (None is full attention) and row, an additive mask [G·W, extent].
    """

    width: int
    address: Tensor
    spans: tuple[tuple[int, int], ...]
    masks: dict[int | None, tuple[Tensor, ...]]


def plan_attention(
    window: Window, sliding: frozenset[int | None], groups: int, dtype: torch.dtype
) -> AttentionPlan:
    """Make the masks of a forward pass once, for every layer kind in `sliding`.

    groups: query heads per key head. A node sees the committed text before the window's root
    and its own ancestors; in a chain that is every position up to its own.
    """
    width = window.ids.shape[1]
    spans = tuple((start, -(-bound // BLOCK) * BLOCK) for start, bound in window.spans)
    masks: dict[int | None, tuple[Tensor, ...]] = dict.fromkeys(sliding, ())
    for row, (_, extent) in enumerate(spans):
        columns = torch.arange(extent, device=window.ids.device)
        position = window.position[row, :, None]  # [W, 1]
        visible = columns <= position  # [W, extent]
        for size in sliding:
            seen = visible if size is None else visible & (columns > position - size)
            mask = torch.zeros(width, extent, dtype=dtype, device=columns.device)
            mask.masked_fill_(~seen, float("-inf"))
            masks[size] = (*masks[size], mask.repeat(groups, 1))
    return AttentionPlan(width, window.address.reshape(-1), spans, masks)


def write_kv(cache: Tensor, kv: Tensor, address: Tensor) -> None:
    """cache [2·Hkv, N, D]; kv [R, 2·Hkv, D] in any float dtype; address [R] int64."""
    cache.index_copy_(1, address, kv.transpose(0, 1).to(cache.dtype))


def attend(query: Tensor, cache: Tensor, plan: AttentionPlan, sliding: int | None) -> Tensor:
    """Scaled dot-product attention with the scale already in the query.

    query [B·W, Hq, D] in any float dtype; returns [B·W, Hq·D] in the cache's dtype.
    """
    rows, heads, size = query.shape
    width, kv_heads = plan.width, cache.shape[0] // 2
    groups = heads // kv_heads
    out = torch.empty(rows, heads * size, dtype=cache.dtype, device=cache.device)
    # [B, W, Hkv, G, D] -> [B, Hkv, G, W, D]: one product per key head serves its whole group.
    query = query.view(-1, width, kv_heads, groups, size).permute(0, 2, 3, 1, 4)
    target = out.view(-1, width, kv_heads, groups, size).permute(0, 2, 3, 1, 4)
    for row, (start, extent) in enumerate(plan.spans):
        page = cache[:, start : start + extent]
        q = cache.new_empty(kv_heads, groups, width, size).copy_(query[row])
        scores = torch.bmm(q.view(kv_heads, groups * width, size), page[:kv_heads].mT)
        weights = scores.add_(plan.masks[sliding][row]).softmax(-1)
        target[row].copy_(torch.bmm(weights, page[kv_heads:]).view(kv_heads, groups, width, size))
    return out

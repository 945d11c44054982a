"""Attention of a window's rows over the cached keys and values, and the write into that cache.

Key heads lie in the cache in bundles (`KVSpec.bundle`): one product serves all query heads of a
bundle, each padded with zeros where the other heads' keys stand. That is one dense product where
a batched one would copy the cache. In bfloat16 the products run in oneDNN, whose sums do not
depend on the number of rows nor on how far the masked tail reaches; the extent is a multiple of
`BLOCK` for the same reason.
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
    size (None is full attention) and row, an additive mask [c·G·W, extent].
    """

    width: int
    address: Tensor
    spans: tuple[tuple[int, int], ...]
    masks: dict[int | None, tuple[Tensor, ...]]


class Masks:
    """Makes the masks of a forward pass: one gather a row from a constant strip.

    The mask of position p over columns 0..L-1 is a stretch of one vector of zeros and then
    minus infinities, L long for every p; the strip's view [L, L] is a Toeplitz matrix over 2·L
    stored numbers.
    """

    def __init__(
        self,
        sliding: frozenset[int | None],
        groups: int,
        length: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """sliding: window sizes some layer has (None: all it can see). groups: query heads per
        bundle of key heads, c·G. length: L, the most positions there will be."""
        self._groups, self._length = groups, -(-length // BLOCK) * BLOCK
        size = self._length
        self._views: dict[int | None, Tensor] = {}
        for window in sliding:
            strip = torch.full((2 * size,), float("-inf"), dtype=dtype, device=device)
            strip[max(0, size - (window or size)) : size] = 0.0
            # Row L-1-p starts there in the strip, so that column p is its last zero.
            self._views[window] = strip.as_strided((size, size), (1, 1))

    def plan(self, window: Window) -> AttentionPlan:
        """The plan for `window`, a chain: a node sees every position up to its own."""
        assert window.ancestors is None, "masks for trees are not made yet"
        width = window.ids.shape[1]
        # Rounding the extent up never reaches the next page: pages are multiples of BLOCK.
        spans = tuple((start, -(-bound // BLOCK) * BLOCK) for start, bound in window.spans)
        begin = (self._length - 1 - window.position).repeat(1, self._groups)  # [B, c·G·W]
        masks = {
            size: tuple(
                view[:, :extent].index_select(0, begin[row])
                for row, (_, extent) in enumerate(spans)
            )
            for size, view in self._views.items()
        }
        return AttentionPlan(width, window.address.reshape(-1), spans, masks)


def write_kv(keys: Tensor, values: Tensor, kv: Tensor, address: Tensor) -> None:
    """Write a window. keys, values [P, N, c·D] with P bundles of c heads; kv [R, 2·Hkv, D] in any
    float dtype, keys first; address [R] int64."""
    bundles, _, size = keys.shape
    pair = kv.reshape(kv.shape[0], 2, bundles, size).to(keys.dtype).permute(1, 2, 0, 3)
    keys.index_copy_(1, address, pair[0])
    values.index_copy_(1, address, pair[1])


def attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    plan: AttentionPlan,
    sliding: int | None,
    dtype: torch.dtype,
) -> Tensor:
    """Scaled dot-product attention of a window over the cache.

    query [B·W, Hq, D] in any float dtype; keys, values [P, N, c·D]; returns [B·W, Hq·D] in
    `dtype`.
    """
    rows, heads, size = query.shape
    width, bundles, c = plan.width, keys.shape[0], keys.shape[2] // size
    shape = (rows // width, width, bundles, c, heads // (bundles * c), size)
    out = torch.empty(rows, heads * size, dtype=dtype, device=keys.device)
    # [B, W, P, c, G, D] -> [B, P, G, W, D, c]
    order = (0, 2, 4, 1, 5, 3)
    query, target = query.view(shape).permute(order), out.view(shape).permute(order)
    for row, (start, extent) in enumerate(plan.spans):
        mask = plan.masks[sliding][row]  # [c·G·W, extent]
        for bundle in range(bundles):
            wide = keys.new_zeros(c, shape[4], width, c, size)
            torch.mul(query[row, bundle], size**-0.5, out=wide.diagonal(dim1=0, dim2=3))
            page = slice(start, start + extent)
            scores = torch.mm(wide.view(-1, c * size), keys[bundle, page].t())
            mixed = torch.mm(scores.add_(mask).softmax(-1), values[bundle, page])
            target[row, bundle].copy_(mixed.view_as(wide).diagonal(dim1=0, dim2=3))
    return out

"""Attention of a window's rows over the cached keys and values, and the write into that cache.

Key heads lie in the cache in bundles (`KVSpec.bundle`): one product serves all query heads of a
bundle, each padded with zeros where the other heads' keys stand. That is one dense product where
a batched one would copy the cache. In bfloat16 the products run in oneDNN, whose sums do not
depend on the number of rows nor on how far the masked tail reaches; the extent is whole pages for
the same reason. A text's pages are copied together first: a product wants one piece.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from paceline.types import KVSpec, Window

BLOCK = 64  # positions of a page, which every kernel's tiles divide
# Work space is kept for windows up to this width; wider ones are prefill, where it costs nothing.
_KEPT_WIDTH = 16


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """What all layers of one forward pass share, work space included.

    address [B·W]; turns [B·W, 1, D/2] complex; pages: per row those that hold its positions up to
    its bound; masks: per sliding window size (None is full attention) and row, what is not seen
    [c·G·W, extent] of these pages' positions, for bundles of c key heads with G query heads each.
    wide [c, G, W, c, D] holds one row's queries, each beside zeros in place of the other heads'
    keys; diagonal [G, W, D, c] is where it is written. out [B·W, Hq·D] is what `attend` returns,
    overwritten by the next layer, and places [B, Hkv/c, G, W, D, c] a view of it.
    """

    address: Tensor
    turns: Tensor
    pages: tuple[Tensor, ...]
    page_size: int
    masks: dict[int | None, tuple[Tensor, ...]]
    wide: Tensor
    diagonal: Tensor
    out: Tensor
    places: Tensor


def pages_in_use(window: Window) -> tuple[Tensor, ...]:
    """Per row the pages [n] that hold the positions up to its bound."""
    size = window.page_size
    return tuple(row[: -(-n // size)] for row, n in zip(window.pages, window.bounds, strict=True))


def gather(cache: Tensor, pages: Tensor, page_size: int) -> Tensor:
    """A text's part of a cache in one piece: cache [H, N, d], pages [n]; [H, n · page_size, d]."""
    heads, _, size = cache.shape
    paged = cache.view(heads, -1, page_size, size)
    return paged.index_select(1, pages).view(heads, -1, size)


# [B, W, Hkv/c, c, G, D] -> [B, Hkv/c, G, W, D, c]
_ORDER = (0, 2, 4, 1, 5, 3)


class Planner:
    """Makes plans: a mask is one gather from a constant strip.

    What position p does not see of columns 0..L-1 is a stretch of one vector of False and then
    True, L long for every p; the strip's view [L, L] is a Toeplitz matrix over 2·L stored bytes.
    """

    def __init__(
        self,
        spec: KVSpec,
        heads: int,
        sliding: frozenset[int | None],
        turns: Tensor,
        dtype: torch.dtype,
    ) -> None:
        """heads: Hq. sliding: window sizes some layer has (None: all it can see). turns [L, D/2]
        complex: the rotation of each position. dtype: of what `attend` returns."""
        self._turns, device = turns, turns.device
        self._size, self._dtype = spec.head_dim, dtype
        self._c, self._bundles = spec.bundle, spec.kv_heads // spec.bundle
        self._groups = heads // spec.kv_heads
        self._length = size = -(-turns.shape[0] // BLOCK) * BLOCK
        self._kv_dtype = spec.dtype
        self._views: dict[int | None, Tensor] = {}
        self._spaces: dict[tuple[int, int], tuple[Tensor, Tensor, Tensor, Tensor]] = {}
        for window in sliding:
            strip = torch.ones(2 * size, dtype=torch.bool, device=device)
            strip[max(0, size - (window or size)) : size] = False
            # Row L-1-p starts there in the strip, so that column p is the last it sees.
            self._views[window] = strip.as_strided((size, size), (1, 1))

    def plan(self, window: Window) -> AttentionPlan:
        """The plan for `window`, a chain: a node sees every position up to its own."""
        assert window.ancestors is None, "masks for trees are not made yet"
        rows, width = window.ids.shape
        pages = pages_in_use(window)
        begin = (self._length - 1 - window.position).repeat(1, self._groups * self._c)
        masks = {
            size: tuple(
                view[:, : row.shape[0] * window.page_size].index_select(0, start)
                for row, start in zip(pages, begin, strict=True)
            )
            for size, view in self._views.items()
        }
        space = self._spaces.get((rows, width))
        if space is None:
            space = self._work_space(rows, width, window.ids.device)
            if width <= _KEPT_WIDTH:
                self._spaces[rows, width] = space
        turns = self._turns.index_select(0, window.position.reshape(-1)).unsqueeze(1)
        address = window.address.reshape(-1)
        return AttentionPlan(address, turns, pages, window.page_size, masks, *space)

    def _work_space(
        self, rows: int, width: int, device: torch.device
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """wide, diagonal, out and places of a plan. The zeros in `wide` are never overwritten."""
        c, groups = self._c, self._groups
        wide = torch.zeros(c, groups, width, c, self._size, dtype=self._kv_dtype, device=device)
        count = self._bundles * c * groups * self._size
        out = torch.empty(rows * width, count, dtype=self._dtype, device=device)
        places = out.view(rows, width, self._bundles, c, groups, self._size).permute(_ORDER)
        return wide, wide.diagonal(dim1=0, dim2=3), out, places


def write_kv(keys: Tensor, values: Tensor, kv: Tensor, address: Tensor) -> None:
    """Write a window. keys, values [P, N, c·D] with P bundles of c heads; kv [R, 2·Hkv, D] in any
    float dtype, keys first; address [R] int64.

    What is not finite is told by the key alone: values of positions that a node does not see are
    multiplied by 0, and a rejected draft token must not reach the nodes before it that way.
    """
    bundles, _, size = keys.shape
    pair = kv.reshape(kv.shape[0], 2, bundles, size).to(keys.dtype).permute(1, 2, 0, 3)
    new_keys, new_values = pair.unbind()
    told = (new_values * 0).sum(-1, keepdim=True)  # [P, R, 1]: 0, or NaN
    keys.index_copy_(1, address, new_keys + told)
    values.index_copy_(1, address, new_values.nan_to_num())


def attend(
    query: Tensor, keys: Tensor, values: Tensor, plan: AttentionPlan, sliding: int | None
) -> Tensor:
    """Scaled dot-product attention of a window over the cache.

    query [B·W, Hq, D] float32 or float64; keys, values [P, N, c·D]. Returns plan.out [B·W, Hq·D],
    which the next call overwrites.
    """
    batch, bundles, groups, width, size, c = plan.places.shape
    query = query.view(batch, width, bundles, c, groups, size).permute(_ORDER)
    flat = plan.wide.view(-1, c * size)
    for row, (pages, mask) in enumerate(zip(plan.pages, plan.masks[sliding], strict=True)):
        key, value = (gather(cache, pages, plan.page_size) for cache in (keys, values))
        for bundle in range(bundles):
            torch.mul(query[row, bundle], size**-0.5, out=plan.diagonal)
            scores = torch.mm(flat, key[bundle].t())
            weights = scores.masked_fill_(mask, float("-inf")).softmax(-1)
            mixed = torch.mm(weights, value[bundle])
            plan.places[row, bundle].copy_(mixed.view_as(plan.wide).diagonal(dim1=0, dim2=3))
    return plan.out

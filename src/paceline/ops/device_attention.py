"""A layer's attention on a GPU, with the torch forms' signatures: windows of up to 256 nodes in one
kernel launch (`triton_attention`), wider ones, which are prefill, through torch's own attention.

A narrow plan reads nothing on the host and fixes no shape by data, so a captured launch replays as
lengths grow. Work space is kept: its addresses stay, and counters stay 0 between launches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from paceline.ops.attention import gather, pages_in_use, write_kv
from paceline.ops.norm import RMSNorm
from paceline.ops.power import power_of_two
from paceline.ops.rotary import rotate
from paceline.types import KVSpec, Window

NARROW = 256  # the widest window that the kernel takes
_WIDEST_HEAD, _LOWER_RIGHT = 256, 2  # of torch's own kernels: the largest head, a kind of mask
_FEW = 256  # query rows a key head of a text


@dataclass(frozen=True, slots=True)
class Tuning:
    """How the kernel cuts its work. tile, chunk and streams fix the order of sums: two models with
    different ones agree up to rounding only.

    tile: positions of one product. chunk: neighbouring positions of one program, tiles in number
    a power of two. streams: programs a key head, and as many parts to combine. rows: most query
    rows of a program, 16 or 32 (at 64 Hopper's other product unit would round otherwise). pdl:
    from Hopper on, begin before the kernel in front has ended (programmatic dependent launch).
    early: the next kernel may begin when this one does, which pays where it asks for its weights
    first (`one_row`); where it waits, its programs had better not crowd on what is free so soon.
    """

    tile: int = 64
    chunk: int = 128
    streams: int = 16
    rows: int = 32
    warps: int = 4
    stages: int = 3
    pdl: bool = True
    early: bool = True

    @staticmethod
    def of(spec: KVSpec) -> Tuning:
        """What fits a multiprocessor. Products of float32 hold their operands in registers."""
        if spec.dtype is torch.float32:
            return Tuning(tile=32, chunk=64, rows=16, stages=1)
        return Tuning(rows=16, stages=2) if spec.head_dim > 128 else Tuning()


@dataclass(frozen=True, slots=True)
class NarrowPlan:
    """What all layers of one forward pass share. position, address, valid [B, W], pages [B, P],
    ancestors [B, W, W] or None; turns [L, D/2, 2] float32; partial, tops, totals, counters: the
    kernel's work space; out [B·W, Hq·D], which the next layer overwrites."""

    position: Tensor
    address: Tensor
    valid: Tensor
    pages: Tensor
    page_size: int
    ancestors: Tensor | None
    turns: Tensor
    partial: Tensor
    tops: Tensor
    totals: Tensor
    counters: Tensor
    out: Tensor
    tuning: Tuning


@dataclass(frozen=True, slots=True)
class WidePlan:
    """address [B·W]; turns [B·W, 1, D/2] complex; per row how many positions, the pages that hold
    them and, per sliding window size, what is seen [W, bound] (None: a chunk that ends at the
    bound, seen as usual)."""

    width: int
    address: Tensor
    turns: Tensor
    bounds: tuple[int, ...]
    pages: tuple[Tensor, ...]
    page_size: int
    masks: dict[int | None, tuple[Tensor | None, ...]]


class DevicePlanner:
    """Makes plans for `DeviceAttention`."""

    def __init__(
        self,
        spec: KVSpec,
        heads: int,
        sliding: frozenset[int | None],
        turns: Tensor,
        tuning: Tuning | None = None,
    ) -> None:
        """heads: Hq. sliding: window sizes some layer has. turns [L, D/2] complex64."""
        self._spec, self._heads, self._sliding = spec, heads, sliding
        self._turns, self._tuning = turns, tuning or Tuning.of(spec)
        self._pairs = torch.view_as_real(turns).contiguous()  # [L, D/2, 2]
        self._spaces: dict[tuple[int, int], tuple[Tensor, Tensor, Tensor, Tensor, Tensor]] = {}
        self._arenas: list[Tensor] = []

    def plan(self, window: Window) -> NarrowPlan | WidePlan:
        """The plan for `window`. One of more than NARROW nodes is a prefill chunk: consecutive
        valid positions, the last of them the last that `bounds` allows for."""
        if window.ids.shape[1] > NARROW:
            return self._wide(window)
        parts = (window.position, window.address, window.valid)
        if len({part.stride() for part in parts}) > 1 or parts[0].stride(1) != 1:
            parts = (parts[0].contiguous(), parts[1].contiguous(), parts[2].contiguous())
        ancestors = window.ancestors
        partial, tops, totals, counters, out = self._space(*window.ids.shape)
        return NarrowPlan(
            *parts,
            window.pages.contiguous(),
            window.page_size,
            None if ancestors is None else ancestors.contiguous(),
            self._pairs,
            partial,
            tops,
            totals,
            counters,
            out,
            self._tuning,
        )

    def _space(self, batch: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """partial, tops, totals, counters and out of a plan."""
        space = self._spaces.get((batch, width))
        if space is None:
            size, device = self._spec.head_dim, self._pairs.device
            count = batch * width * self._heads * (self._tuning.streams + 1)
            count = -(-count // 4) * 4  # every part begins where vectors may
            arena = self._arena(count * (size + 8))
            tops, totals = arena[count * size :][: count * 4], arena[count * (size + 4) :]
            most = batch * width * self._heads  # more than key heads times row tiles
            counters = torch.zeros(most, dtype=torch.int32, device=device)
            out = torch.empty(
                batch * width, self._heads * size, dtype=self._spec.dtype, device=device
            )
            space = self._spaces[batch, width] = (arena, tops, totals, counters, out)
        return space

    def _arena(self, floats: int) -> Tensor:
        """At least that many. Launches follow one another, so they share; one that is too small
        is kept, because captured launches hold its address. Planning the largest first saves
        memory."""
        for arena in self._arenas:
            if arena.numel() >= floats:
                return arena
        self._arenas.append(torch.empty(floats, device=self._pairs.device))
        return self._arenas[-1]

    def _wide(self, window: Window) -> WidePlan:
        width, device = window.ids.shape[1], window.ids.device
        masks = {
            size: tuple(
                None
                if size is None or size >= bound
                else torch.ones(width, bound, dtype=torch.bool, device=device)
                .tril_(bound - width)
                .triu_(bound - width - size + 1)
                for bound in window.bounds
            )
            for size in self._sliding
        }
        turns = self._turns.index_select(0, window.position.reshape(-1)).unsqueeze(1)
        address, pages = window.address.reshape(-1), pages_in_use(window)
        return WidePlan(width, address, turns, window.bounds, pages, window.page_size, masks)


class DeviceAttention:
    """One layer's attention: head norms, rotation, cache write and the attention itself."""

    def __init__(
        self,
        spec: KVSpec,
        heads: int,
        norms: tuple[Tensor | None, Tensor | None],
        eps: float,
        sliding: int | None,
    ) -> None:
        """heads: Hq. norms: the gains [D] of the query and key head norms, or None. Needs triton;
        the cache is [Hkv, capacity, D] in the activations' dtype."""
        from paceline.ops.triton_attention import attend_window

        assert heads % spec.kv_heads == spec.head_dim % 2 == 0
        assert spec.bundle == 1
        self._kernel: Any = attend_window
        self._spec, self._heads, self._eps, self._sliding = spec, heads, eps, sliding
        self._gains = [None if gain is None else gain.float().contiguous() for gain in norms]
        self._norms = [None if gain is None else RMSNorm(gain.float(), eps) for gain in norms]
        # Scores as powers of two: the hardware's exponential is that one.
        self._scale = spec.head_dim**-0.5 * math.log2(math.e)

    def __call__(
        self, qkv: Tensor, keys: Tensor, values: Tensor, plan: NarrowPlan | WidePlan
    ) -> Tensor:
        """qkv [B·W, (Hq + 2·Hkv)·D] contiguous; keys, values [Hkv, capacity, D]; all in the cache's
        dtype. Returns [B·W, Hq·D]; of a narrow plan it is plan.out, overwritten by the next layer.
        """
        if isinstance(plan, WidePlan):
            return self._wide(qkv, keys, values, plan)
        self._narrow(qkv, keys, values, plan)
        return plan.out

    def _narrow(self, qkv: Tensor, keys: Tensor, values: Tensor, plan: NarrowPlan) -> None:
        batch, width = plan.position.shape
        size, kv_heads, tuning = self._spec.head_dim, self._spec.kv_heads, plan.tuning
        assert all(part.is_contiguous() for part in (qkv, keys, values))
        assert plan.page_size % tuning.tile == tuning.chunk % tuning.tile == 0
        rows = width * (self._heads // kv_heads)
        # Programs that are few do better with less each, though all of them read the same keys.
        most = 16 if batch <= 2 and rows <= _FEW else tuning.rows
        tile_rows = min(most, max(16, power_of_two(rows)))
        tiles = -(-rows // tile_rows)
        tree = plan.ancestors is not None
        streams = tuning.streams + tree
        q_gain, k_gain = self._gains
        capable = qkv.is_cuda and torch.cuda.get_device_capability(qkv.device) >= (9, 0)
        pdl = tuning.pdl and capable
        # A load of pages' numbers before the load of keys takes two stages of the pipeline.
        one_page = plan.pages.shape[1] == 1
        # Triton's interpreter cannot multiply bfloat16.
        half = qkv.dtype is not torch.float32 and qkv.device.type == "cuda"
        self._kernel[streams, kv_heads * tiles, batch](
            qkv, keys, values, plan.out, plan.turns,
            plan.turns if q_gain is None else q_gain, plan.turns if k_gain is None else k_gain,
            plan.position, plan.address, plan.valid, plan.pages,
            plan.ancestors if tree else plan.valid,
            plan.partial, plan.tops, plan.totals, plan.counters,
            width, plan.position.stride(0), tiles, plan.pages.shape[1], plan.page_size,
            keys.shape[1], self._eps, self._scale,
            HEADS=self._heads, KV_HEADS=kv_heads, D=size, DP=max(16, power_of_two(size)),
            M=tile_rows, R=min(tile_rows, power_of_two(rows)),
            NODES=max(16, power_of_two(width)), TILE=tuning.tile,
            CHUNK=tuning.chunk, CHUNK_PAGES=max(1, tuning.chunk // plan.page_size),
            STREAMS=tuning.streams, PP=power_of_two(streams), SLIDING=self._sliding or 0,
            NORMED=q_gain is not None, TREE=tree, ONE_PAGE=one_page, PDL=pdl,
            EARLY=tuning.early, HALF=half,
            STAGES=tuning.stages + 2 * (not one_page and tuning.stages > 1),
            PREFETCH=capable and size * keys.element_size() % 16 == 0,
            # Fused or not, the same in every variant of the kernel: results must not show it.
            num_warps=tuning.warps, enable_fp_fusion=False,
            **({"launch_pdl": True} if pdl else {}),
        )  # fmt: skip

    def _wide(self, qkv: Tensor, keys: Tensor, values: Tensor, plan: WidePlan) -> Tensor:
        size, kv_heads, heads = self._spec.head_dim, self._spec.kv_heads, self._heads
        width, turned = plan.width, heads + kv_heads
        parts = qkv.float().view(qkv.shape[0], -1, size)  # [R, Hq+2Hkv, D]
        q_norm, k_norm = self._norms
        if q_norm is not None and k_norm is not None:
            parts = torch.cat(
                (q_norm(parts[:, :heads]), k_norm(parts[:, heads:turned]), parts[:, turned:]), 1
            )
        elif qkv.dtype is torch.float32:
            parts = parts.clone()  # turned in place below
        rotate(parts[:, :turned], plan.turns)
        write_kv(keys, values, parts[:, heads:], plan.address)
        query = parts[:, :heads].to(qkv.dtype).view(-1, width, kv_heads, heads // kv_heads, size)
        out = qkv.new_empty(query.shape)  # [B, W, Hkv, G, D]
        masks = plan.masks[self._sliding]
        for row, (bound, pages) in enumerate(zip(plan.bounds, plan.pages, strict=True)):
            key, value = (gather(cache, pages, plan.page_size) for cache in (keys, values))
            key, value = key[:, :bound], value[:, :bound]
            # A group's queries are a batch over the same keys, which are not copied for it.
            mixed = _attend(query[row].permute(2, 1, 0, 3), key, value, masks[row])
            out[row].copy_(mixed.permute(2, 1, 0, 3))
        return out.view(qkv.shape[0], -1)


def _attend(query: Tensor, keys: Tensor, values: Tensor, seen: Tensor | None) -> Tensor:
    """query [G, Hkv, W, D]; keys, values [Hkv, extent, D]; seen [W, extent], or None for the last
    W positions of the extent. Returns [G, Hkv, W, D]."""
    group = query.shape[0]
    attention: Callable[..., Tensor] = F.scaled_dot_product_attention
    values = values.expand(group, -1, -1, -1)
    if seen is None:
        return _causal(query, keys.expand(group, -1, -1, -1), values)
    # Masks are added to scores there, which hides no NaN: keys are cleaned, and it is told after.
    good = keys.isfinite().all(-1)  # [Hkv, extent]
    clean = keys.nan_to_num(0.0, 0.0, 0.0).expand(group, -1, -1, -1)
    mixed = attention(query, clean, values, seen)
    felt = (~good).float() @ seen.float().t()  # [Hkv, W]
    return mixed.masked_fill((felt > 0).unsqueeze(-1), float("nan"))


def _causal(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention of the last W positions of the extent, each to itself and what is before it.

    torch.nn.attention.bias.causal_lower_right chooses among the same kernels, but importing it
    loads torch's compiler, which took seven seconds of an opening."""
    width, extent, size = query.shape[2], keys.shape[2], query.shape[3]
    if not query.is_cuda or size > _WIDEST_HEAD:
        seen = torch.ones(width, extent, dtype=torch.bool, device=query.device)
        return F.scaled_dot_product_attention(query, keys, values, seen.tril_(extent - width))
    scale = size**-0.5
    if size % 8:
        query, keys, values = (F.pad(x, (0, 8 - size % 8)) for x in (query, keys, values))
    aten = torch.ops.aten
    out: Tensor
    if query.dtype is torch.float32:
        out = aten._efficient_attention_forward(
            query.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2),
            bias=None, cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=None, max_seqlen_k=None,
            dropout_p=0.0, custom_mask_type=_LOWER_RIGHT, compute_log_sumexp=False, scale=scale,
        )[0].transpose(1, 2)  # fmt: skip
    else:  # with fewer queries than keys, is_causal means the same there
        out = aten._scaled_dot_product_flash_attention(
            query, keys, values, 0.0, is_causal=True, return_debug_mask=False, scale=scale
        )[0]
    return out[..., :size]

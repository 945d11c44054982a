"""A layer's products on a GPU: which kernel serves how many rows, and its launch.

A round's rows are bound by reading the weights and go through `triton_linear`, however many texts
run, and so do a prompt's short pieces; only a long piece goes through torch, which is better where
arithmetic is the bound but gives a row other bits among other numbers of rows. A norm's sum of
squares is left as parts by the product before it (`Residual`), so that no kernel of its own has
to read the row. Knows nothing of layers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from paceline.ops import device_attention
from paceline.ops.activation import silu_mul
from paceline.ops.norm import Residual, RMSNorm
from paceline.ops.triton_linear import enter, few_rows, one_row

# Columns of a program's tile. Also the columns that one part of a sum of squares covers.
TILE = 64
AHEAD = 256
EVICT = "evict_first"
_NARROW = 4096  # columns that make fewer programs than there are multiprocessors
_MANY = 16384  # columns that make enough whatever the tile, a head's
_UNROLLED = 16384  # inputs up to which `one_row` serves, whose loop over them is unrolled


@dataclass(frozen=True, slots=True)
class Tiles:
    """How `few_rows` cuts its work: rows and columns of a program's tile, the inner block, how many
    of them are on their way, warps. None of them was seen to change a bit of the result since a
    norm's sum of squares is written out; before, a head's float32 bits changed with 128 columns."""

    rows: int
    columns: int
    inner: int
    depth: int
    warps: int = 4


def choose_tiles(rows: int, n: int, gated: bool, wide: bool, parts: bool = False) -> Tiles:
    """What is fastest for so many rows and columns, as part `tiles` of benchmarks/gpu_linear.py
    found on an H200; wide: float32; parts: a norm follows, whose parts have `TILE` columns each.

    Up to 32 rows the time is that of reading weights: few columns make few programs, which must
    then have more on its way each. Above that arithmetic counts as well, and few columns are cut
    along the rows instead, so that every multiprocessor has some.
    """
    if wide:  # takes twice the room
        return Tiles(min(128, max(16, 1 << (rows - 1).bit_length())), TILE, 32, 3)
    narrow, many = n <= _NARROW and not gated, n > _MANY
    if rows <= 32:
        return Tiles(16 if rows <= 16 else 32, TILE, 128, 4 if gated else 7 if narrow else 5)
    if rows <= 64:
        if narrow:
            return Tiles(32, TILE, 128, 7)
        return Tiles(64, TILE, 64, 4 if gated else 7) if gated or many else Tiles(64, TILE, 128, 5)
    if gated:
        return Tiles(64, TILE, 64, 3) if 128 < rows <= 192 else Tiles(128, 2 * TILE, 64, 4, 8)
    if many and not parts:
        return Tiles(128, 2 * TILE, 64, 3)
    if rows <= 128:
        return Tiles(32 if narrow else 128, TILE, 128, 4)
    if rows <= 256:
        return Tiles(64, TILE, 64, 5 if narrow else 4)
    if narrow or parts:
        return Tiles(128, TILE, 64, 4 if rows <= 384 else 3)
    return Tiles(128, 2 * TILE, 64, 3)


def fitted(tiles: Tiles, gated: bool, size: int, room: int | None) -> Tiles:
    """`tiles` with as many blocks on their way as a multiprocessor has room for: an H200 for all
    of `choose_tiles`, a smaller GPU not. size: bytes of a number; room: bytes that a program may
    share, None where nobody knows."""
    if room is None:
        return tiles
    block = (tiles.rows + tiles.columns * (1 + gated)) * tiles.inner * size
    return replace(tiles, depth=max(1, min(tiles.depth, room // block + 1)))


@cache
def _room(device: torch.device) -> int | None:
    """Bytes that a program may share on a device."""
    if device.type != "cuda":
        return None
    properties = torch.cuda.get_device_properties(device)
    return getattr(properties, "shared_memory_per_block_optin", None)


class DeviceProduct:
    """One product with constant weights and what is fused to it. Subclasses say what it serves."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        steady: bool,
        gain: Tensor | None = None,
        eps: float = 0.0,
        gated: bool = False,
        following: Tensor | None = None,
    ) -> None:
        """weight [n, k] ([2·n, k] gated); bias or None. steady: a row's result may not depend on
        the number of rows. gain, eps: of the norm before it. following: gain of the norm after
        it, where the result is a residual stream."""
        self._weight, self._bias = weight.contiguous(), bias
        self._n, self._k = weight.shape[0] // (2 if gated else 1), weight.shape[1]
        self._gain, self._eps, self._gated, self._following = gain, eps, gated, following
        self._norm = None if gain is None else RMSNorm(gain, eps)
        # Programmatic dependent launch came with Hopper.
        self._pdl = weight.is_cuda and torch.cuda.get_device_capability(weight.device) >= (9, 0)
        self._room = _room(weight.device)
        self._alone = not steady and weight.dtype is torch.bfloat16 and self._k <= _UNROLLED
        self._tiles = -(-self._k // TILE)
        self._parts = -(-self._n // TILE)
        self.tiles: Tiles | None = None  # what to use instead of `choose_tiles`
        lines = (4, 2048) if self._k <= 2048 else (2, 4096)
        block = min(lines[1], 1 << (self._k - 1).bit_length())
        self._line: dict[str, Any] = {"BN": lines[0], "BK": block, "LOOPS": -(-self._k // block)}

    def run(self, x: Residual, add: Tensor | None, kind: torch.dtype) -> Residual:
        """f(norm(x) Wᵀ + b) (+ add) as `kind`, with what the norm after it reads."""
        rows = x.hidden.shape[0]
        y = torch.empty(rows, self._n, dtype=kind, device=x.hidden.device)
        if self._alone and rows <= 2:
            self._run_one(x.hidden, y, add)
            return Residual(y)
        if self._gain is not None and x.scaled is None:
            x = prepare(x.hidden, self._gain)
        return self._run_few(x, y, add)

    def _run_one(self, x: Tensor, y: Tensor, add: Tensor | None) -> None:
        w = self._weight
        one_row[(-(-self._n // self._line["BN"]),)](
            x, w, y, w if self._gain is None else self._gain,
            w if self._bias is None else self._bias, w if add is None else add,
            self._n, self._k, self._eps,
            ROWS=x.shape[0], NORM=self._gain is not None, GATED=self._gated,
            BIAS=self._bias is not None, ADD=add is not None, PDL=self._pdl, EVICT=EVICT,
            num_warps=4, **self._line, **({"launch_pdl": True} if self._pdl else {}),
        )  # fmt: skip

    def _run_few(self, x: Residual, y: Tensor, add: Tensor | None) -> Residual:
        rows, w, following = y.shape[0], self._weight, self._following
        source = x.hidden if x.scaled is None else x.scaled
        scaled, parts = w, w
        if following is not None:
            scaled = torch.empty_like(y)
            parts = torch.empty(rows, self._parts, dtype=torch.float32, device=y.device)
        wide = w.dtype is torch.float32
        tiles = self.tiles or choose_tiles(
            rows, self._n, self._gated, wide, parts=following is not None
        )
        tiles = fitted(tiles, self._gated, w.element_size(), self._room)
        assert following is None or tiles.columns == TILE, "a part of squares is one program's"
        few_rows[(-(-rows // tiles.rows), -(-self._n // tiles.columns))](
            source, w, y, w if x.squares is None else x.squares,
            w if self._bias is None else self._bias, w if add is None else add,
            w if following is None else following, scaled, parts,
            rows, self._n, self._k, self._eps,
            BM=tiles.rows, BN=tiles.columns, BK=tiles.inner, STAGES=tiles.depth,
            TILES=0 if self._gain is None else self._tiles, GATED=self._gated,
            BIAS=self._bias is not None, ADD=add is not None, NEXT=following is not None,
            EVEN=self._n % tiles.columns == 0 and self._k % 128 == 0, PDL=self._pdl,
            AHEAD=AHEAD, EVICT=EVICT, num_warps=tiles.warps, num_stages=tiles.depth,
            **({"launch_pdl": True} if self._pdl else {}),
        )  # fmt: skip
        return Residual(y) if following is None else Residual(y, scaled, parts)

    def wide(self, x: Tensor) -> Tensor:
        """norm(x) Wᵀ + b for many rows."""
        return F.linear(x if self._norm is None else self._norm(x), self._weight, self._bias)


class Normed(DeviceProduct):
    """See `layer.LayerOps.normed`."""

    def __init__(
        self, gain: Tensor, eps: float, weight: Tensor, bias: Tensor | None, steady: bool,
        wide: bool,
    ) -> None:  # fmt: skip
        super().__init__(weight, bias, steady, gain, eps)
        self._kind = torch.float32 if wide else weight.dtype

    def __call__(self, x: Residual) -> Tensor:
        if x.chunk:
            return self.wide(x.hidden).to(self._kind)
        return self.run(x, None, self._kind).hidden


class Gated(DeviceProduct):
    """See `layer.LayerOps.gated`."""

    def __init__(
        self, gain: Tensor, eps: float, weight: Tensor, bias: Tensor | None, steady: bool
    ) -> None:
        super().__init__(weight, bias, steady, gain, eps, gated=True)

    def __call__(self, x: Residual) -> Tensor:
        if x.chunk:
            return silu_mul(self.wide(x.hidden))
        return self.run(x, None, x.hidden.dtype).hidden


class Added(DeviceProduct):
    """See `layer.LayerOps.added`."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, following: Tensor | None, steady: bool
    ) -> None:
        super().__init__(weight, bias, steady, following=following)

    def __call__(self, x: Tensor, residual: Residual) -> Residual:
        if residual.chunk:
            return Residual(self.wide(x).add_(residual.hidden), chunk=True)
        return self.run(Residual(x), residual.hidden, x.dtype)


class Enter:
    """See `layer.LayerOps.enter`."""

    def __init__(self, embedding: Tensor, gain: Tensor, steady: bool) -> None:
        self._embedding, self._gain, self._steady = embedding, gain, steady

    def __call__(self, ids: Tensor) -> Residual:
        chunk = ids.shape[1] > device_attention.NARROW  # as attention decides
        ids = ids.reshape(-1)
        if chunk or (ids.shape[0] <= 2 and not self._steady):
            return Residual(F.embedding(ids, self._embedding), chunk=chunk)
        return prepare(self._embedding, self._gain, ids)


def prepare(source: Tensor, gain: Tensor, ids: Tensor | None = None) -> Residual:
    """The residual stream of source [R, d], or of source[ids], with what a normed product reads."""
    d = source.shape[1]
    rows = source.shape[0] if ids is None else ids.shape[0]
    tiles = -(-d // TILE)
    scaled = torch.empty(rows, d, dtype=source.dtype, device=source.device)
    parts = torch.empty(rows, tiles, dtype=torch.float32, device=source.device)
    hidden = source if ids is None else torch.empty_like(scaled)
    enter[(rows,)](
        source, source if ids is None else ids, hidden, gain, scaled, parts, d,
        GATHER=ids is not None, TILE=TILE, TILES=tiles, num_warps=8,
    )  # fmt: skip
    return Residual(hidden, scaled, parts)

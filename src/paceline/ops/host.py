"""A layer's small operations on a CPU through compiled kernels, with the torch forms' signatures.

Used for bfloat16 and float32 where numba is there; `layer.make_ops` chooses. The cache it wants
is float32, one key head a row, and a page is one of its tiles, 64 positions.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from paceline.ops.attention import BLOCK
from paceline.types import KVSpec, Window

log = logging.getLogger(__name__)

_Call = Callable[..., None]
_MANY = 64  # rows of a kernel's call from which on it does not keep the interpreter's lock
_BLOCK = 16  # rows of a wide window that attention serves together, so that the scores stay small


def load_kernels() -> HostKernels | None:
    """The compiled kernels, or None where numba cannot be used here.

    The first call on a machine compiles for some seconds; the result is kept on disk.
    """
    global _kernels, _tried
    if not _tried:
        _tried = True
        try:
            from paceline.ops import host_attention, host_kernels, host_team
        except ImportError as error:
            log.warning("no compiled CPU kernels (%s): install numba for twice the speed", error)
        else:
            team = host_team.find_team()
            _kernels = HostKernels(
                _shared(host_kernels.rms_norm, host_kernels.rms_norm_share, team),
                _shared(host_attention.enter, host_attention.enter_share, team),
                _shared(host_kernels.silu_mul, host_kernels.silu_mul_share, team),
                _by_rows(host_attention.attend, host_attention.attend_share, team),
                _by_rows(host_kernels.int8_product, host_kernels.int8_share, team),
                _by_rows(host_kernels.half_product, host_kernels.half_share, team),
            )
    return _kernels


@dataclass(frozen=True, slots=True)
class HostKernels:
    """Entry points, some of them by their rows; see `host_kernels` for what each takes."""

    rms_norm: _Call
    enter: _Call
    silu_mul: _Call
    attend: Callable[[int], _Call]
    int8_product: Callable[[int], _Call]
    half_product: Callable[[int], _Call]


_kernels: HostKernels | None = None
_tried = False


def _callable(function: Any, keep: bool = True) -> _Call:
    """A Python callable that keeps the interpreter's lock, or gives it up meanwhile, which costs as
    much as a small kernel. Threads that a kernel shares its work with need no lock."""
    kinds = [
        ctypes.c_double if str(kind) == "float64" else ctypes.c_int64 for kind in function._sig.args
    ]
    kind = ctypes.PYFUNCTYPE if keep else ctypes.CFUNCTYPE
    call: _Call = kind(None, *kinds)(function.address)
    return call


def _shared(function: Any, work: Any, team: int) -> _Call:
    """A callable for a kernel that takes the team and its members' function first."""
    return partial(_callable(function), team, work.address)


def _by_rows(function: Any, work: Any, team: int) -> Callable[[int], _Call]:
    """`_shared` by the rows it is for: with a prompt's the kernel takes long, and the event loop
    goes on meanwhile."""
    kept = _shared(function, work, team)
    free = partial(_callable(function, keep=False), team, work.address)
    return lambda rows: kept if rows < _MANY else free


class HostNorm:
    """See `norm.RMSNorm`."""

    def __init__(self, kernels: HostKernels, gain: Tensor, eps: float) -> None:
        self._run, self._eps = kernels.rms_norm, eps
        self._gain = gain.float().contiguous()
        self._pointer = self._gain.data_ptr()

    def __call__(self, x: Tensor) -> Tensor:
        """x [R, d] contiguous, bfloat16 or float32; returns the same."""
        out = torch.empty_like(x)
        rows, size = x.shape
        half = x.dtype is torch.bfloat16
        self._run(
            torch.get_num_threads(), x.data_ptr(), out.data_ptr(), self._pointer, rows, size,
            self._eps, half,
        )  # fmt: skip
        return out


class _HostLinear:
    """A product through a compiled kernel. Subclasses set the kernel, the weight [out, in] and the
    addresses that the kernel takes between the result and the residual."""

    _run: Callable[[int], _Call]
    _weight: Tensor
    _pointers: tuple[int, ...]

    def __call__(self, x: Tensor) -> Tensor:
        """x [R, in] contiguous; returns [R, out] in its dtype."""
        return self._product(x, 0)

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """residual + the product."""
        return self._product(x, residual.data_ptr())

    def _product(self, x: Tensor, residual: int) -> Tensor:
        size_out, size_in = self._weight.shape
        out = x.new_empty(x.shape[0], size_out)
        self._run(x.shape[0])(
            torch.get_num_threads(), x.data_ptr(), out.data_ptr(), *self._pointers, residual,
            x.shape[0], size_in, size_out, *self._kind(x),
        )  # fmt: skip
        return out

    def _kind(self, x: Tensor) -> tuple[int, ...]:
        """What else the kernel wants to know of x."""
        return ()


class Int8Linear(_HostLinear):
    """A product with weights rounded to eight bits, one scale an output, for float32 rows.

    Reads half the bytes of bfloat16, which is what a draft's step costs. Only for drafts: it is
    not the checkpoint's own arithmetic.
    """

    def __init__(self, kernels: HostKernels, weight: Tensor, bias: Tensor | None) -> None:
        """weight [out, in] floating; bias [out] or None."""
        self._run = kernels.int8_product
        wide = weight.float()
        self._scale = wide.abs().amax(1).clamp_(min=1e-12).div_(127.0).contiguous()
        self._weight = (wide / self._scale.unsqueeze(1)).round_().to(torch.int8).contiguous()
        self._bias = None if bias is None else bias.float().contiguous()
        self._pointers = (
            self._weight.data_ptr(),
            self._scale.data_ptr(),
            0 if self._bias is None else self._bias.data_ptr(),
        )


class HalfLinear(_HostLinear):
    """A product with bfloat16 weights where the processor has no instructions for them: widened as
    they are read, added up in float32, rounded once. A row's sums do not depend on the others."""

    def __init__(self, kernels: HostKernels, weight: Tensor, bias: Tensor | None) -> None:
        """weight [out, in] bfloat16; bias [out] or None."""
        self._run = kernels.half_product
        self._weight = weight.contiguous()
        self._bias = None if bias is None else bias.float().contiguous()
        self._pointers = (
            self._weight.data_ptr(),
            0 if self._bias is None else self._bias.data_ptr(),
        )

    def _kind(self, x: Tensor) -> tuple[int, ...]:
        return (x.dtype is torch.bfloat16,)  # the other is float32


@dataclass(frozen=True, slots=True)
class HostPlan:
    """What all layers of one forward pass share. address, position [R]; pages [B, P]; turns
    [R, D/2] complex64; queries [R, Hq·D] float32 and out [R, Hq·D], which the next layer
    overwrites. Tensors are kept because
    the kernels are given their addresses."""

    width: int
    threads: int
    address: Tensor
    position: Tensor
    pages: Tensor
    turns: Tensor
    queries: Tensor
    out: Tensor


class HostAttention:
    """One layer's attention: head norms, rotation, cache write and the attention itself."""

    def __init__(
        self,
        kernels: HostKernels,
        heads: int,
        spec: KVSpec,
        norms: tuple[Tensor | None, Tensor | None],
        eps: float,
        sliding: int | None,
    ) -> None:
        """norms: the gains [D] of the query and key head norms, or None."""
        self._enter, self._attend = kernels.enter, kernels.attend
        self._heads, self._spec, self._eps = heads, spec, eps
        self._gains = [None if gain is None else gain.float().contiguous() for gain in norms]
        self._pointers = [0 if gain is None else gain.data_ptr() for gain in self._gains]
        self._sliding = sliding or 0

    def __call__(self, qkv: Tensor, keys: Tensor, values: Tensor, plan: HostPlan) -> Tensor:
        """qkv [R, (Hq + 2·Hkv)·D] contiguous; keys, values [Hkv, N, D] float32. Returns plan.out
        [R, Hq·D] in qkv's dtype."""
        rows, half = qkv.shape[0], qkv.dtype is torch.bfloat16
        heads, kv_heads, size = self._heads, self._spec.kv_heads, self._spec.head_dim
        caches, capacity = (keys.data_ptr(), values.data_ptr()), keys.shape[1]
        self._enter(
            plan.threads, qkv.data_ptr(), plan.queries.data_ptr(), plan.turns.data_ptr(), *caches,
            plan.address.data_ptr(), *self._pointers, self._eps,
            rows, heads, kv_heads, size, capacity, half,
        )  # fmt: skip
        self._attend(rows)(
            plan.threads, plan.queries.data_ptr(), plan.out.data_ptr(), *caches,
            plan.position.data_ptr(), plan.pages.data_ptr(), plan.pages.shape[1], rows, plan.width,
            heads, kv_heads, size, capacity, self._sliding, half, _BLOCK,
        )  # fmt: skip
        return plan.out


class HostPlanner:
    """Makes plans for `HostAttention`."""

    def __init__(self, turns: Tensor, heads: int, head_dim: int, dtype: torch.dtype) -> None:
        """turns [L, D/2] complex64."""
        self._turns, self._size, self._dtype = turns, heads * head_dim, dtype

    def plan(self, window: Window) -> HostPlan:
        """The plan for `window`, a chain: a node sees every position up to its own."""
        assert window.ancestors is None, "attention over trees is not made yet"
        assert window.page_size == BLOCK, "a page is a tile"
        position = window.position.reshape(-1)
        return HostPlan(
            width=window.ids.shape[1],
            threads=torch.get_num_threads(),
            address=window.address.reshape(-1).contiguous(),
            position=position.contiguous(),
            pages=window.pages.contiguous(),
            turns=self._turns.index_select(0, position),
            queries=torch.empty(position.shape[0], self._size),
            out=torch.empty(position.shape[0], self._size, dtype=self._dtype),
        )


def host_silu_mul(kernels: HostKernels) -> Callable[[Tensor], Tensor]:
    """See `activation.silu_mul`."""
    run = kernels.silu_mul

    def silu_mul(gate_up: Tensor) -> Tensor:
        rows, size = gate_up.shape[0], gate_up.shape[1] // 2
        out = gate_up.new_empty(rows, size)
        half = gate_up.dtype is torch.bfloat16
        threads = torch.get_num_threads()
        run(threads, gate_up.data_ptr(), out.data_ptr(), rows, size, half)
        return out

    return silu_mul

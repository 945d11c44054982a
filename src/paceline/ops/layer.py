"""Which form of a layer's operations a decoder uses: torch's, or compiled ones for its device.

The forms have the same signatures, four products and one attention a layer, so that each may fuse
what stands inside; a decoder is built from what `make_ops` returns and does not know which it is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from paceline.ops import attention, host
from paceline.ops.activation import silu_mul
from paceline.ops.linear import make_linear
from paceline.ops.norm import Residual, RMSNorm
from paceline.ops.rotary import rotate
from paceline.types import KVSpec, Window

log = logging.getLogger(__name__)

Norms = tuple[Tensor | None, Tensor | None]


class LayerOps(Protocol):
    """A family of operations for one model. A plan is what one forward pass shares between
    layers; only the family that made it looks inside."""

    def kv_spec(self, layers: int, kv_heads: int, head_dim: int) -> KVSpec:
        """The cache these operations want."""
        ...

    def enter(
        self, embedding: Tensor, gain: Tensor, stream: torch.dtype
    ) -> Callable[[Tensor], Residual]:
        """ids [B, W] -> the residual stream [B·W, d] that begins with their embeddings; gain: of
        the first norm that reads it."""
        ...

    def normed(
        self, gain: Tensor, eps: float, weight: Tensor, bias: Tensor | None, wide: bool = False
    ) -> Callable[[Residual], Tensor]:
        """x [R, d] -> norm(x) Wᵀ + b [R, out]; wide: in float32 at least."""
        ...

    def gated(
        self, gain: Tensor, eps: float, weight: Tensor, bias: Tensor | None
    ) -> Callable[[Residual], Tensor]:
        """x [R, d] -> silu(g) · u [R, ff], where norm(x) Wᵀ + b is [g | u], [R, 2·ff]."""
        ...

    def added(
        self, weight: Tensor, bias: Tensor | None, following: Tensor | None
    ) -> Callable[[Tensor, Residual], Residual]:
        """(x [R, in], residual [R, d]) -> residual + x Wᵀ + b. following: gain of the norm that
        reads the result first, or None."""
        ...

    def planner(
        self, spec: KVSpec, heads: int, sliding: frozenset[int | None], turns: Tensor
    ) -> Callable[[Window], Any]: ...

    def attention(
        self, spec: KVSpec, heads: int, norms: Norms, eps: float, sliding: int | None
    ) -> Callable[[Tensor, Tensor, Tensor, Any], Tensor]:
        """(qkv [R, (Hq + 2·Hkv)·D], keys, values, plan) -> [R, Hq·D]: head norms, rotation, the
        write into the cache and attention."""
        ...


def make_ops(dtype: torch.dtype, device: torch.device, steady: bool = True) -> LayerOps:
    """The fastest family for activations of `dtype` on `device`. steady: see `make_linear`."""
    if device.type == "cpu" and dtype in (torch.bfloat16, torch.float32):
        kernels = host.load_kernels()
        if kernels is not None:
            return _HostOps(kernels, dtype, steady)
    if device.type == "cuda" and dtype in (torch.bfloat16, torch.float32):
        try:
            return _DeviceOps(dtype, steady)
        except ImportError as error:
            log.warning("no GPU kernels (%s): install triton for many times the speed", error)
    return TorchOps(dtype, steady or device.type != "cpu")


class TorchOps:
    """The reference, for any dtype and device."""

    def __init__(self, dtype: torch.dtype, steady: bool = True) -> None:
        self._dtype, self._steady = dtype, steady

    def kv_spec(self, layers: int, kv_heads: int, head_dim: int) -> KVSpec:
        return KVSpec(layers, kv_heads, head_dim, self._dtype, 2 if kv_heads % 2 == 0 else 1)

    def norm(self, gain: Tensor, eps: float) -> Callable[[Tensor], Tensor]:
        """x [R, d] -> norm(x)."""
        return RMSNorm(gain, eps)

    def silu_mul(self) -> Callable[[Tensor], Tensor]:
        """[g | u] -> silu(g) · u."""
        return silu_mul

    def enter(
        self, embedding: Tensor, gain: Tensor, stream: torch.dtype
    ) -> Callable[[Tensor], Residual]:
        return lambda ids: Residual(F.embedding(ids.reshape(-1), embedding).to(stream))

    def normed(
        self, gain: Tensor, eps: float, weight: Tensor, bias: Tensor | None, wide: bool = False
    ) -> Callable[[Residual], Tensor]:
        norm, linear = self.norm(gain, eps), make_linear(weight, bias, self._steady)
        if wide:
            kind = torch.promote_types(weight.dtype, torch.float32)
            return lambda x: linear(norm(x.hidden)).to(kind)
        return lambda x: linear(norm(x.hidden))

    def gated(
        self, gain: Tensor, eps: float, weight: Tensor, bias: Tensor | None
    ) -> Callable[[Residual], Tensor]:
        inner, silu_mul = self.normed(gain, eps, weight, bias), self.silu_mul()
        return lambda x: silu_mul(inner(x))

    def added(
        self, weight: Tensor, bias: Tensor | None, following: Tensor | None
    ) -> Callable[[Tensor, Residual], Residual]:
        add = make_linear(weight, bias, self._steady).add
        return lambda x, residual: Residual(add(x, residual.hidden))

    def planner(
        self, spec: KVSpec, heads: int, sliding: frozenset[int | None], turns: Tensor
    ) -> Callable[[Window], Any]:
        return attention.Planner(spec, heads, sliding, turns, self._dtype).plan

    def attention(
        self, spec: KVSpec, heads: int, norms: Norms, eps: float, sliding: int | None
    ) -> Callable[[Tensor, Tensor, Tensor, Any], Tensor]:
        return _TorchAttention(spec, heads, norms, eps, sliding)


class _TorchAttention:
    def __init__(
        self, spec: KVSpec, heads: int, norms: Norms, eps: float, sliding: int | None
    ) -> None:
        self._heads, self._turned = heads, heads + spec.kv_heads
        self._size, self._sliding = spec.head_dim, sliding
        self._compute = torch.promote_types(spec.dtype, torch.float32)
        self._q_norm, self._k_norm = (None if g is None else RMSNorm(g, eps) for g in norms)

    def __call__(
        self, qkv: Tensor, keys: Tensor, values: Tensor, plan: attention.AttentionPlan
    ) -> Tensor:
        heads, turned = self._heads, self._turned
        qkv = qkv.to(self._compute).view(qkv.shape[0], -1, self._size)  # [R, Hq+2Hkv, D]
        if self._q_norm is not None and self._k_norm is not None:
            qkv[:, :heads] = self._q_norm(qkv[:, :heads])
            qkv[:, heads:turned] = self._k_norm(qkv[:, heads:turned])
        rotate(qkv[:, :turned], plan.turns)
        attention.write_kv(keys, values, qkv[:, heads:], plan.address)
        return attention.attend(qkv[:, :heads], keys, values, plan, self._sliding)


class _HostOps(TorchOps):
    """Compiled for this processor; the cache is float32 whatever the activations are."""

    def __init__(self, kernels: host.HostKernels, dtype: torch.dtype, steady: bool) -> None:
        super().__init__(dtype, steady)
        self._kernels = kernels

    def kv_spec(self, layers: int, kv_heads: int, head_dim: int) -> KVSpec:
        return KVSpec(layers, kv_heads, head_dim, torch.float32, 1)

    def norm(self, gain: Tensor, eps: float) -> Callable[[Tensor], Tensor]:
        return host.HostNorm(self._kernels, gain, eps)

    def silu_mul(self) -> Callable[[Tensor], Tensor]:
        return host.host_silu_mul(self._kernels)

    def planner(
        self, spec: KVSpec, heads: int, sliding: frozenset[int | None], turns: Tensor
    ) -> Callable[[Window], Any]:
        return host.HostPlanner(turns, heads, spec.head_dim, self._dtype).plan

    def attention(
        self, spec: KVSpec, heads: int, norms: Norms, eps: float, sliding: int | None
    ) -> Callable[[Tensor, Tensor, Tensor, Any], Tensor]:
        return host.HostAttention(self._kernels, heads, spec, norms, eps, sliding)


class _DeviceOps(TorchOps):
    """Triton kernels for a GPU: one launch a product and one an attention."""

    def __init__(self, dtype: torch.dtype, steady: bool) -> None:
        """Raises ImportError without triton."""
        super().__init__(dtype, steady)
        from paceline.ops import device_attention, device_linear

        self._linear, self._attention = device_linear, device_attention

    def kv_spec(self, layers: int, kv_heads: int, head_dim: int) -> KVSpec:
        return KVSpec(layers, kv_heads, head_dim, self._dtype)

    def enter(
        self, embedding: Tensor, gain: Tensor, stream: torch.dtype
    ) -> Callable[[Tensor], Residual]:
        return self._linear.Enter(embedding, gain, self._steady)

    def normed(
        self, gain: Tensor, eps: float, weight: Tensor, bias: Tensor | None, wide: bool = False
    ) -> Callable[[Residual], Tensor]:
        return self._linear.Normed(gain, eps, weight, bias, self._steady, wide)

    def gated(
        self, gain: Tensor, eps: float, weight: Tensor, bias: Tensor | None
    ) -> Callable[[Residual], Tensor]:
        return self._linear.Gated(gain, eps, weight, bias, self._steady)

    def added(
        self, weight: Tensor, bias: Tensor | None, following: Tensor | None
    ) -> Callable[[Tensor, Residual], Residual]:
        return self._linear.Added(weight, bias, following, self._steady)

    def planner(
        self, spec: KVSpec, heads: int, sliding: frozenset[int | None], turns: Tensor
    ) -> Callable[[Window], Any]:
        tuning = replace(self._attention.Tuning.of(spec), early=not self._steady)
        return self._attention.DevicePlanner(spec, heads, sliding, turns, tuning).plan

    def attention(
        self, spec: KVSpec, heads: int, norms: Norms, eps: float, sliding: int | None
    ) -> Callable[[Tensor, Tensor, Tensor, Any], Tensor]:
        return self._attention.DeviceAttention(spec, heads, norms, eps, sliding)

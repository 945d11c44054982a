"""Matrix products with constant weights: the one factory that every projection comes from.

On a CPU the weight is packed once for oneDNN. A packed product reads the weight at the memory's
speed where `F.linear` reads it at a third of that, costs nearly the same for one row and for
eight, and adds up each row in an order that does not depend on how many rows there are: the
last is what makes bfloat16 text with and without speculation the same to the bit.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from paceline.ops.host import Int8Linear, load_kernels

# Packing asks for the row count it is to be best at: a verify window.
_PACK_ROWS = 8
# Elements up to which one thread reading eight bits each beats several reading sixteen.
_ONE_THREAD = 1 << 22


class Linear(Protocol):
    """y = x Wᵀ + b for x [R, in] contiguous; weights never change."""

    def __call__(self, x: Tensor) -> Tensor:
        """Return [R, out]."""
        ...

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """Return residual + linear(x), both [R, out]."""
        ...


def packed_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype | None:
    """In what `make_linear` packs weights of this dtype on this device; None where it does not."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    if dtype is torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return dtype
    # A processor without instructions for bfloat16 emulates it, several times slower than float32.
    return torch.float32 if dtype in (torch.bfloat16, torch.float32) else None


def make_linear(weight: Tensor, bias: Tensor | None = None, steady: bool = True) -> Linear:
    """Make the product with `weight` [out, in] and optional `bias` [out], fastest for its device.

    steady: a row's sum may not depend on the number of rows (what a target needs for the same
    text with and without speculation), and x has the weight's dtype. A draft needs no such
    promise: with steady False, which only weights that pack allow, x and the result are float32,
    and matrices small enough for one thread are rounded to eight bits.
    The caller may drop its reference to `weight`: a packed product keeps its own copy.
    """
    dtype, packed_as = weight.dtype, packed_dtype(weight.dtype, weight.device)
    if packed_as is None:
        assert steady, "only weights that pack have a quicker product"
        return DenseLinear(weight, bias)
    packed = PackedLinear(weight.to(packed_as), None if bias is None else bias.to(packed_as))
    if steady:
        return packed if packed_as is dtype else CastLinear(packed, packed_as)
    kernels = load_kernels()
    # Who asks for a float32 draft wants its own numbers.
    small = dtype is torch.bfloat16 and weight.numel() <= _ONE_THREAD
    wide = packed if packed_as is torch.float32 else CastLinear(packed, packed_as)
    if kernels is not None and small:
        return FewRowsLinear(Int8Linear(kernels, weight, bias), wide)
    return wide


class DenseLinear:
    """The reference: torch's own product."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight, self._bias = weight, bias

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self._weight, self._bias)

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        if self._bias is None:
            return torch.addmm(residual, x, self._weight.t())
        return F.linear(x, self._weight, self._bias).add_(residual)


class PackedLinear:
    """oneDNN with the weight reordered once; `add` adds the residual in the same pass."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _PACK_ROWS)
        self._bias = bias
        self._product = torch.ops.mkldnn._linear_pointwise.default
        self._sum = torch.ops.mkldnn._linear_pointwise.binary

    def __call__(self, x: Tensor) -> Tensor:
        y: Tensor = self._product(x, self._weight, self._bias, "none", [], "")
        return y

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        y: Tensor = self._sum(x, residual, self._weight, self._bias, "add")
        return y


class CastLinear:
    """A product in one dtype for a caller of another: bfloat16 for a float32 draft, or float32 for
    a bfloat16 target where the processor has no instructions for bfloat16."""

    def __init__(self, inner: Linear, dtype: torch.dtype) -> None:
        self._inner, self._dtype = inner, dtype

    def __call__(self, x: Tensor) -> Tensor:
        return self._inner(x.to(self._dtype)).to(x.dtype)

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        if self._dtype is torch.float32:  # one rounding, of the sum
            return self._inner.add(x.float(), residual.float()).to(x.dtype)
        return self(x).add_(residual)


class FewRowsLinear:
    """One product for a step's few rows, another for a prompt's many."""

    def __init__(self, few: Linear, many: Linear) -> None:
        self._few, self._many = few, many

    def __call__(self, x: Tensor) -> Tensor:
        return (self._few if x.shape[0] <= _PACK_ROWS else self._many)(x)

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        return (self._few if x.shape[0] <= _PACK_ROWS else self._many).add(x, residual)

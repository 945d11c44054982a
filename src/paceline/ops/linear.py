"""Matrix products with constant weights: the one factory that every projection comes from.

On a CPU the weight is packed once for oneDNN. A packed product reads the weight at the memory's
speed where `F.linear` reads it at a third of that, costs nearly the same for one row and for
eight, and adds up each row in an order that does not depend on how many rows there are: the
last is what makes bfloat16 text with and without speculation the same to the bit. Where the
processor has no instructions for bfloat16 a compiled kernel does as much (`host.HalfLinear`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from paceline.ops.host import HalfLinear, Int8Linear, load_kernels

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


@dataclass(frozen=True, slots=True)
class Kept:
    """How `make_linear` keeps a weight. dtype: that of its own form. copied: that form is a copy,
    and the tensor it was given is not used any more. beside: bytes an element of what is kept
    beside it for a step's few rows."""

    dtype: torch.dtype
    copied: bool
    beside: int = 0


def kept(dtype: torch.dtype, device: torch.device, steady: bool = True) -> Kept | None:
    """How weights of this dtype are kept on this device, or None where the products are torch's
    over the weights as they lie. steady: see `make_linear`."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return None
    kernels = load_kernels() is not None
    beside = int(dtype is torch.bfloat16 and kernels and not steady)  # eight bits, of small ones
    if dtype is torch.bfloat16 and not _has_bfloat16():
        return Kept(dtype, False, beside) if kernels else Kept(torch.float32, True)
    return Kept(dtype, True, beside) if dtype in (torch.bfloat16, torch.float32) else None


def _has_bfloat16() -> bool:
    """Whether oneDNN finds instructions for bfloat16. Without them it emulates it, several times
    slower than float32."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def make_linear(weight: Tensor, bias: Tensor | None = None, steady: bool = True) -> Linear:
    """Make the product with `weight` [out, in] and optional `bias` [out], fastest for its device.

    steady: a row's sum may not depend on the number of rows (what a target needs for the same
    text with and without speculation), and x has the weight's dtype. A draft needs no such
    promise: with steady False, which only weights that are `kept` allow, x and the result are
    float32, and matrices small enough for one thread are rounded to eight bits.
    `weight` belongs to the product from here on: it is used as it lies, or copied and dropped.
    """
    how = kept(weight.dtype, weight.device, steady)
    if how is None:
        assert steady, "only weights that are kept have a quicker product"
        return DenseLinear(weight, bias)
    kernels, dtype = load_kernels(), weight.dtype
    product: Linear
    if how.copied:
        own = None if bias is None else bias.to(how.dtype)
        product = PackedLinear(weight.to(how.dtype), own)
        if how.dtype is not (dtype if steady else torch.float32):
            product = CastLinear(product, how.dtype)
    else:
        assert kernels is not None
        product = HalfLinear(kernels, weight, bias)  # of rows in either dtype
    # Who asks for a float32 draft wants its own numbers.
    if how.beside and kernels is not None and weight.numel() <= _ONE_THREAD:
        return FewRowsLinear(Int8Linear(kernels, weight, bias), product)
    return product


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

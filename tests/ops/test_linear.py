"""Products with constant weights: right, and the same for a row whatever stands beside it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from paceline.ops import linear as linear_module
from paceline.ops.host import HalfLinear
from paceline.ops.linear import (
    CastLinear,
    DenseLinear,
    FewRowsLinear,
    Linear,
    PackedLinear,
    kept,
    make_linear,
)

CPU = torch.device("cpu")
PACKED = [
    pytest.param(
        dtype,
        marks=pytest.mark.skipif(
            kept(dtype, CPU) is None,
            reason=f"no products of our own in {dtype} on this machine",
        ),
    )
    for dtype in (torch.bfloat16, torch.float32)
]
# out, in: a head, a wide and a narrow matrix, sizes that no vector divides.
SHAPES = [(259, 32), (96, 40), (33, 130), (1, 7), (512, 256)]


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def exact(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    y = x.double() @ weight.double().t()
    for more in (bias, residual):
        if more is not None:
            y = y + more.double()
    return y


def tolerance(dtype: torch.dtype) -> float:
    return {torch.bfloat16: 2e-2, torch.float32: 2e-5, torch.float64: 1e-12}[dtype]


def check(linear: Linear, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
    """linear(x) and add, for several row counts, against float64."""
    size_out, size_in = weight.shape
    bound = tolerance(weight.dtype) * (1 + size_in**0.5)
    for rows in (1, 2, 5, 8, 17):
        x = numbers(rows, size_in, seed=rows, dtype=dtype)
        residual = numbers(rows, size_out, seed=rows + 50, dtype=dtype)
        before = x.clone(), residual.clone()
        got = linear(x)
        assert (got.shape, got.dtype) == ((rows, size_out), dtype)
        assert (got.double() - exact(x, weight, bias, None)).abs().max() < bound
        added = linear.add(x, residual)
        assert (added.shape, added.dtype) == ((rows, size_out), dtype)
        assert (added.double() - exact(x, weight, bias, residual)).abs().max() < bound
        assert torch.equal(x, before[0])
        assert torch.equal(residual, before[1])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", [*PACKED, torch.float64])
def test_a_steady_product(shape: tuple[int, int], biased: bool, dtype: torch.dtype) -> None:
    weight = numbers(*shape, dtype=dtype)
    bias = numbers(shape[0], seed=1, dtype=dtype) if biased else None
    linear = make_linear(weight, bias)
    kinds = (PackedLinear, HalfLinear, CastLinear) if kept(dtype, CPU) else DenseLinear
    assert isinstance(linear, kinds)
    check(linear, weight, bias, dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", PACKED)
def test_packed_is_dense(shape: tuple[int, int], biased: bool, dtype: torch.dtype) -> None:
    """The weight is dropped by its caller: the packed form keeps its own."""
    weight = numbers(*shape, dtype=dtype)
    bias = numbers(shape[0], seed=1, dtype=dtype) if biased else None
    packed, dense = make_linear(weight.clone(), bias), DenseLinear(weight, bias)
    x = numbers(6, shape[1], seed=2, dtype=dtype)
    bound = tolerance(dtype) * (1 + shape[1] ** 0.5)
    assert (packed(x).double() - dense(x).double()).abs().max() < bound
    assert torch.equal(dense(x), F.linear(x, weight, bias))


@pytest.mark.parametrize("shape", [*SHAPES, (768, 384), (384, 1024), (1000, 384)])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", PACKED)
def test_a_row_is_the_same_among_any_number_of_rows(
    shape: tuple[int, int], biased: bool, dtype: torch.dtype
) -> None:
    """To the bit, for 1 to 16 rows: what makes text with speculation the same in bfloat16."""
    weight = numbers(*shape, dtype=dtype)
    bias = numbers(shape[0], seed=1, dtype=dtype) if biased else None
    linear = make_linear(weight, bias)
    x = numbers(16, shape[1], seed=2, dtype=dtype)
    residual = numbers(16, shape[0], seed=3, dtype=dtype)
    whole, added = linear(x), linear.add(x, residual)
    for rows in range(1, 17):
        for first in (0, 16 - rows):
            part = slice(first, first + rows)
            assert torch.equal(linear(x[part].contiguous()), whole[part])
            got = linear.add(x[part].contiguous(), residual[part].contiguous())
            assert torch.equal(got, added[part])


@pytest.mark.parametrize("shape", [*SHAPES, (2100, 2000)])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", PACKED)
def test_a_drafts_product(shape: tuple[int, int], biased: bool, dtype: torch.dtype) -> None:
    """It may round its weights to eight bits; float32 in, float32 out, right within that."""
    weight = numbers(*shape, dtype=dtype)
    bias = numbers(shape[0], seed=1, dtype=dtype) if biased else None
    linear = make_linear(weight, bias, steady=False)
    for rows in (1, 2, 7):
        x, residual = numbers(rows, shape[1], seed=4), numbers(rows, shape[0], seed=5)
        for got, expected in (
            (linear(x), exact(x, weight, bias, None)),
            (linear.add(x, residual), exact(x, weight, bias, residual)),
        ):
            assert (got.dtype, got.shape) == (torch.float32, (rows, shape[0]))
            error = (got.double() - expected).norm() / expected.norm()
            assert error < 0.02


def test_a_drafts_product_keeps_what_is_not_finite() -> None:
    """A draft that is not finite must not look like one that is."""
    if kept(torch.float32, CPU) is None:
        pytest.skip("no products of our own in float32 on this machine")
    weight = numbers(20, 12)
    linear = make_linear(weight.clone(), steady=False)
    x = numbers(2, 12)
    x[1, 3] = float("nan")
    got = linear(x)
    assert got[0].isfinite().all()
    assert got[1].isnan().all()
    weight[4, 2] = float("nan")
    bad = make_linear(weight, steady=False)(numbers(2, 12))
    assert bad[:, 4].isnan().all()
    assert bad[:, :4].isfinite().all()


def test_a_target_never_gets_a_rounded_product() -> None:
    with pytest.raises(AssertionError):
        make_linear(numbers(4, 4, dtype=torch.float64), steady=False)


@pytest.fixture(params=["native", "widened", "float32", "no kernels"])
def processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With instructions for bfloat16 and without, with compiled kernels and without."""
    name: str = request.param
    native = name in ("native", "no kernels")
    monkeypatch.setattr(linear_module, "_has_bfloat16", lambda: native)
    if name in ("float32", "no kernels"):
        monkeypatch.setattr(linear_module, "load_kernels", lambda: None)
    elif linear_module.load_kernels() is None:
        pytest.skip("no compiled kernels on this machine")
    return name


@pytest.mark.parametrize("steady", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_every_processor_has_its_product(processor: str, dtype: torch.dtype, steady: bool) -> None:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("no oneDNN")
    how = kept(dtype, CPU, steady)
    assert how is not None
    half = dtype is torch.bfloat16
    if (
        half
        and processor in ("native", "no kernels")
        and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    ):
        pytest.skip("no instructions for bfloat16 here")
    weight, bias = numbers(48, 40, dtype=dtype), numbers(48, seed=1, dtype=dtype)
    wide: type = PackedLinear
    if half and processor == "widened":
        wide = HalfLinear
    elif half and (processor == "float32" if steady else processor != "float32"):
        wide = CastLinear
    assert how.copied == (wide is not HalfLinear)
    assert how.dtype == (torch.float32 if half and processor == "float32" else dtype)
    linear = make_linear(weight.clone(), bias, steady)
    if how.beside:
        assert half
        assert isinstance(linear, FewRowsLinear)
        assert isinstance(linear._many, wide)
    else:
        assert isinstance(linear, wide)
    caller = dtype if steady else torch.float32
    for rows in (1, 9):
        x, residual = (numbers(rows, n, seed=n, dtype=caller) for n in (40, 48))
        wanted = exact(x, weight, bias, None)
        for got, expected in ((linear(x), wanted), (linear.add(x, residual), wanted + residual)):
            assert got.dtype == caller
            assert (got.double() - expected).norm() / expected.norm() < (0.02 if half else 1e-6)

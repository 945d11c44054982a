"""The compiled CPU kernels: equal to torch's forms, and a row the same at any window width."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from helpers import turns_of_others
from torch import Tensor

from paceline.ops import host
from paceline.ops.activation import silu_mul
from paceline.ops.attention import BLOCK
from paceline.ops.layer import TorchOps, make_ops
from paceline.ops.norm import RMSNorm
from paceline.types import KVSpec, Window

CPU = torch.device("cpu")
TEXTS, PAGES = 3, 4
LENGTH = PAGES * BLOCK
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}


@pytest.fixture(scope="module")
def kernels() -> host.HostKernels:
    found = host.load_kernels()
    assert found is not None, "numba is a dependency: the kernels must load"
    return found


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "size"), [(1, 8), (5, 320), (3, 33)])
def test_norm(kernels: host.HostKernels, dtype: torch.dtype, rows: int, size: int) -> None:
    x, gain = noise(rows, size, dtype=dtype) * 3, noise(size, seed=1)
    mine, theirs = host.HostNorm(kernels, gain, 1e-5)(x), RMSNorm(gain, 1e-5)(x)
    torch.testing.assert_close(mine, theirs, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_silu_mul(kernels: host.HostKernels, dtype: torch.dtype) -> None:
    x = noise(4, 2 * 77, dtype=dtype) * 10
    x[0, :4] = torch.tensor([120.0, -120.0, 0.0, -0.0])
    mine, theirs = host.host_silu_mul(kernels)(x), silu_mul(x.clone())
    torch.testing.assert_close(mine, theirs, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(kernels: host.HostKernels, bad: float) -> None:
    x = noise(2, 16)
    x[1, 3] = bad
    normed = host.HostNorm(kernels, torch.ones(16), 1e-5)(x)
    assert normed[0].isfinite().all()
    assert not normed[1].isfinite().all()


def windows(position: list[list[int]], texts: list[int], shuffled: bool = True) -> Window:
    """texts: the number of each row's text, whose pages lie anywhere unless not `shuffled`."""
    depth = torch.tensor(position)
    bounds = tuple(max(row) + 1 for row in position)
    order = torch.randperm(TEXTS * PAGES, generator=torch.Generator().manual_seed(11))
    tables = (order if shuffled else torch.arange(TEXTS * PAGES)).view(TEXTS, PAGES)
    pages = tables[torch.tensor(texts)]
    address = pages.gather(1, depth // BLOCK) * BLOCK + depth % BLOCK
    ids = torch.zeros_like(depth)
    return Window(ids, depth, address, depth >= 0, bounds, pages, BLOCK)


def run(
    ops: Any, qkv: Tensor, window: Window, caches: tuple[Tensor, Tensor], heads: int, spec: KVSpec,
    norms: tuple[Tensor | None, Tensor | None] = (None, None), sliding: int | None = None,
) -> Tensor:  # fmt: skip
    angles = noise(LENGTH, spec.head_dim // 2)
    turns = torch.polar(torch.ones_like(angles), angles)
    plan = ops.planner(spec, heads, frozenset({sliding}), turns)(window)
    out: Tensor = ops.attention(spec, heads, norms, 1e-6, sliding)(qkv, *caches, plan).clone()
    return out


def empty(spec: KVSpec) -> tuple[Tensor, Tensor]:
    shape = (spec.kv_heads // spec.bundle, TEXTS * LENGTH, spec.bundle * spec.head_dim)
    return torch.zeros(shape, dtype=spec.dtype), torch.zeros(shape, dtype=spec.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "size"), [(6, 2, 64), (3, 1, 64), (4, 4, 8), (5, 5, 16), (8, 2, 128)]
)
@pytest.mark.parametrize("sliding", [None, 1, 37])
def test_attention_equals_torch(
    dtype: torch.dtype, heads: int, kv_heads: int, size: int, sliding: int | None
) -> None:
    """Two texts of different lengths, read in a wide chunk and then in two windows."""
    forms = (make_ops(dtype, CPU), TorchOps(torch.float32))
    norms = (noise(size, seed=5), noise(size, seed=6))
    outs = []
    for ops in forms:
        spec = ops.kv_spec(1, kv_heads, size)
        caches, got = empty(spec), []
        for seed, first, width in ((1, 0, 90), (2, 90, 5), (3, 93, 1)):
            places = [list(range(first, first + width)), list(range(first + 7, first + 7 + width))]
            qkv = noise(2 * width, (heads + 2 * kv_heads) * size, seed=seed, dtype=dtype)
            if ops is forms[1]:
                qkv = qkv.float()
            window = windows(places, [1, 2])
            got.append(run(ops, qkv, window, caches, heads, spec, norms, sliding).float())
        outs.append(torch.cat(got))
    assert forms[0] is not forms[1]
    torch.testing.assert_close(*outs, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(6, 2, 64), (3, 3, 40)])
@pytest.mark.parametrize("sliding", [None, 29])
def test_a_row_is_the_same_to_the_bit_at_any_width(
    dtype: torch.dtype, heads: int, kv_heads: int, size: int, sliding: int | None
) -> None:
    ops = make_ops(dtype, CPU)
    spec = ops.kv_spec(1, kv_heads, size)
    length = 150
    qkv = noise(length, (heads + 2 * kv_heads) * size, dtype=dtype)

    def read(widths: list[int]) -> Tensor:
        caches, got, first = empty(spec), [], 0
        for width in widths:
            part, places = qkv[first : first + width], list(range(first, first + width))
            window = windows([places], [1])
            got.append(run(ops, part, window, caches, heads, spec, sliding=sliding))
            first += width
        return torch.cat(got)

    one = read([1] * length)
    for widths in ([length], [6] * 25, [9] * 16 + [6], [2, 3] * 30, [64, 86]):
        assert torch.equal(read(widths), one), widths


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_number_of_threads_changes_no_bit(
    kernels: host.HostKernels, dtype: torch.dtype
) -> None:
    """Wide enough for every kernel to share its work, and an odd number of everything."""
    ops, before = make_ops(dtype, CPU), torch.get_num_threads()
    spec = ops.kv_spec(1, 3, 40)
    rows, heads = 131, 9
    qkv, x = noise(rows, (heads + 6) * 40, dtype=dtype), noise(rows, 2 * 333, dtype=dtype)
    product = host.Int8Linear(kernels, noise(2049, 333), None)

    def outs() -> list[Tensor]:
        read = run(ops, qkv, windows([list(range(rows))], [1]), empty(spec), heads, spec)
        norm = host.HostNorm(kernels, torch.ones(666), 1e-5)
        return [read, norm(x), host.host_silu_mul(kernels)(x), product(noise(2, 333))]

    try:
        torch.set_num_threads(1)
        alone = outs()
        for threads in (2, 3):
            torch.set_num_threads(threads)
            for mine, theirs in zip(outs(), alone, strict=True):
                assert torch.equal(mine, theirs)
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="torch's OpenMP is elsewhere")
def test_the_team_is_found(kernels: host.HostKernels) -> None:
    from paceline.ops.host_team import find_team

    assert find_team() != 0, "compiled kernels would run on one thread"


@pytest.mark.parametrize("size", [64, 40])
def test_a_value_that_is_not_finite_reaches_only_those_that_see_it(size: int) -> None:
    ops = make_ops(torch.float32, CPU)
    spec = ops.kv_spec(1, 1, size)
    qkv, caches = noise(6, 3 * size), empty(spec)
    clean = run(ops, qkv, windows([list(range(6))], [1]), empty(spec), 1, spec)
    qkv[3, 2 * size + 5] = float("inf")
    out = run(ops, qkv[:5], windows([list(range(5))], [1]), caches, 1, spec)
    assert torch.equal(out[:3], clean[:3])
    assert not out[3:].isfinite().any()
    # Rejected, and written over by the next window.
    qkv[3] = 1.0
    run(ops, qkv[3:], windows([[3, 4, 5]], [1]), caches, 1, spec)
    again = run(ops, qkv[:3], windows([[0, 1, 2]], [1]), caches, 1, spec)
    assert torch.equal(again, clean[:3])


def test_queries_that_are_not_finite_show(kernels: host.HostKernels) -> None:
    ops = make_ops(torch.float32, CPU)
    spec = ops.kv_spec(1, 1, 64)
    qkv = noise(2, 3 * 64)
    qkv[1, :64] = float("nan")
    out = run(ops, qkv, windows([[0, 1]], [1]), empty(spec), 1, spec)
    assert out[0].isfinite().all()
    assert not out[1].isfinite().any()


@pytest.mark.parametrize("rows", [1, 2, 7])
@pytest.mark.parametrize("biased", [True, False])
def test_int8_product(kernels: host.HostKernels, rows: int, biased: bool) -> None:
    weight, x, residual = noise(50, 37), noise(rows, 37, seed=1), noise(rows, 50, seed=2)
    bias = noise(50, seed=3) if biased else None
    product = host.Int8Linear(kernels, weight, bias)
    exact = torch.nn.functional.linear(x, weight, bias)
    # Every weight is off by at most half a step, a step being 1/127 of its row's largest.
    bound = x.abs().sum(1, keepdim=True) * weight.abs().amax(1) / 254
    assert ((product(x) - exact).abs() <= bound + 1e-5).all()
    torch.testing.assert_close(product.add(x, residual), product(x) + residual)
    coarse = weight.abs().amax(1, keepdim=True) / 127
    again = host.Int8Linear(kernels, (weight / coarse).round() * coarse, bias)
    torch.testing.assert_close(again(x), product(x), rtol=1e-4, atol=1e-4)


def test_a_prompts_product_leaves_the_lock_to_others(kernels: host.HostKernels) -> None:
    product, x = host.Int8Linear(kernels, noise(2048, 1024), None), noise(1500, 1024, seed=1)
    assert turns_of_others(lambda: product(x)) > 3, "nobody else ran meanwhile"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("shape", [(1, 5), (3, 64), (66, 37), (130, 200), (64, 333)])
def test_half_product(
    kernels: host.HostKernels, shape: tuple[int, int], biased: bool, dtype: torch.dtype
) -> None:
    """Right, and the same for a row among any number of rows, in any place."""
    outputs, size = shape
    weight = noise(outputs, size).to(torch.bfloat16)
    bias = noise(outputs, seed=3).to(torch.bfloat16) if biased else None
    product = host.HalfLinear(kernels, weight, bias)
    x, residual = (noise(70, n, seed=n).to(dtype) for n in (size, outputs))
    exact = torch.nn.functional.linear(
        x.double(), weight.double(), None if bias is None else bias.double()
    )
    whole, added = product(x), product.add(x, residual)
    assert whole.dtype == added.dtype == dtype
    step = 2.0**-8 if dtype is torch.bfloat16 else 0.0  # half a unit in the last place, relative
    for got, expected in ((whole, exact), (added, exact + residual.double())):
        bound = step * expected.abs() + 1e-6 * size
        assert ((got.double() - expected).abs() <= bound).all()
    for rows in (1, 2, 6, 31, 32, 33, 64):
        for first in (0, 1, 70 - rows):
            part = slice(first, first + rows)
            assert torch.equal(product(x[part].contiguous()), whole[part])
            sums = product.add(x[part].contiguous(), residual[part].contiguous())
            assert torch.equal(sums, added[part])


def test_half_product_keeps_what_is_not_finite(kernels: host.HostKernels) -> None:
    weight, x = noise(9, 12).to(torch.bfloat16), noise(3, 12)
    x[1, 3], weight[4, 2] = float("nan"), float("inf")
    got = host.HalfLinear(kernels, weight, None)(x)
    assert got[1].isnan().all()
    assert not got[0, 4].isfinite()
    assert got[0, :4].isfinite().all()
    assert got[2, 5:].isfinite().all()


def test_half_product_on_several_threads(kernels: host.HostKernels) -> None:
    weight, x = noise(2000, 300).to(torch.bfloat16), noise(40, 300).to(torch.bfloat16)
    product = host.HalfLinear(kernels, weight, None)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(product(x))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)

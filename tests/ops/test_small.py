"""Norm, activation and rotation, in torch and compiled, against their formulas in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from paceline.ops.layer import LayerOps, TorchOps, make_ops
from paceline.ops.rotary import rotate

CPU = torch.device("cpu")
FAMILIES: dict[str, Callable[[], tuple[LayerOps, torch.dtype]]] = {
    "torch float64": lambda: (TorchOps(torch.float64), torch.float64),
    "torch float32": lambda: (TorchOps(torch.float32), torch.float32),
    "torch bfloat16": lambda: (TorchOps(torch.bfloat16), torch.bfloat16),
    "chosen float32": lambda: (make_ops(torch.float32, CPU), torch.float32),
    "chosen bfloat16": lambda: (make_ops(torch.bfloat16, CPU), torch.bfloat16),
}
ERROR = {torch.float64: 1e-14, torch.float32: 2e-6, torch.bfloat16: 8e-3}


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def near(got: Tensor, expected: Tensor, error: float) -> None:
    torch.testing.assert_close(got.double(), expected.double(), rtol=error, atol=error)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [8, 33, 384])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 300.0])
def test_rms_norm(family: str, size: int, scale: float) -> None:
    ops, dtype = FAMILIES[family]()
    x = (numbers(6, size) * scale).to(dtype)
    gain, eps = numbers(size, seed=1, dtype=dtype), 1e-5
    wide = x.double()
    expected = wide / (wide.pow(2).mean(-1, keepdim=True) + eps).sqrt() * gain.double()
    before = x.clone()
    norm = ops.norm(gain, eps)
    whole = norm(x)
    assert whole.dtype == dtype
    near(whole, expected, ERROR[dtype])
    assert torch.equal(x, before)
    for rows in range(1, 7):
        assert torch.equal(norm(x[:rows].contiguous()), whole[:rows])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [1, 5, 64, 300])
def test_silu_mul(family: str, size: int) -> None:
    """Also where e^x would overflow or vanish."""
    ops, dtype = FAMILIES[family]()
    both = numbers(5, 2 * size) * 3
    both[0] *= 100
    both[1, :size] = 0.0
    both = both.to(dtype)
    gate, up = both.double().chunk(2, -1)
    expected = gate / (1 + (-gate).exp()) * up
    run = ops.silu_mul()
    whole = run(both.clone())
    assert whole.dtype == dtype
    assert whole.is_contiguous()
    # torch rounds silu(gate) before the product in bfloat16.
    near(whole, expected, 2 * ERROR[dtype])
    for rows in range(1, 6):
        assert torch.equal(run(both[:rows].clone()), whole[:rows])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(family: str, value: float) -> None:
    """The round looks for it in the logits; and it keeps to its row."""
    ops, dtype = FAMILIES[family]()
    x = numbers(3, 16, dtype=dtype)
    x[1, 4] = value
    for got in (ops.norm(numbers(16, seed=1, dtype=dtype), 1e-5)(x), ops.silu_mul()(x.clone())):
        assert not got[1].isfinite().all()
        assert got[[0, 2]].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [2, 8, 64])
def test_rotate(dtype: torch.dtype, size: int) -> None:
    """Equation 34 pair by pair, in place, and only in the heads that were given."""
    angles = numbers(5, size // 2, seed=1)
    turn = torch.polar(torch.ones_like(angles), angles)
    turn = turn.to(torch.complex64 if dtype is torch.float32 else torch.complex128).unsqueeze(1)
    every = numbers(5, 4, size, dtype=dtype)
    before = every.clone()
    rotate(every[:, :3], turn)
    for row in range(5):
        for head in range(3):
            for pair in range(size // 2):
                a, b = before[row, head, 2 * pair : 2 * pair + 2].double().tolist()
                c, s = math.cos(float(angles[row, pair])), math.sin(float(angles[row, pair]))
                got = every[row, head, 2 * pair : 2 * pair + 2].tolist()
                assert got == pytest.approx([a * c - b * s, a * s + b * c], abs=1e-6)
    assert torch.equal(every[:, 3], before[:, 3])

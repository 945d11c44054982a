"""The few-rows products: equal to torch's composition, the same to the bit at any row count.

On a machine without a GPU the kernels run in triton's interpreter, in float32 and float16 (it
cannot multiply bfloat16).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from paceline.ops.device_attention import NARROW
from paceline.ops.device_linear import (
    TILE,
    Added,
    DeviceProduct,
    Enter,
    Gated,
    Normed,
    prepare,
)
from paceline.ops.layer import TorchOps
from paceline.ops.norm import Residual

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
EPS = 1e-5
REFERENCE = TorchOps(torch.float32)


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(DEVICE)


# Inner and outer sizes that fill whole tiles, that do not, and those of the mini pair.
SIZES = [(64, 64), (128, 192), (80, 33), (320, 512), (200, 130)]


@pytest.mark.parametrize("rows", [1, 2, 6, 17, 33])
@pytest.mark.parametrize(("k", "n"), SIZES)
@pytest.mark.parametrize("biased", [False, True])
def test_a_layers_products_are_torchs(rows: int, k: int, n: int, biased: bool) -> None:
    x, gain = numbers(rows, k, seed=1), numbers(k, seed=2)
    bias = numbers(2 * n, seed=4) if biased else None
    half = None if bias is None else bias[:n]
    w, gates, back = (numbers(*s, seed=3) * 0.1 for s in ((n, k), (2 * n, k), (k, n)))
    after = numbers(k, seed=5)
    stream = Residual(x)
    forms = [
        (
            Normed(gain, EPS, w, half, True, False)(stream),
            REFERENCE.normed(gain, EPS, w, half)(stream),
        ),
        (
            Gated(gain, EPS, gates, bias, True)(stream),
            REFERENCE.gated(gain, EPS, gates, bias)(stream),
        ),
    ]
    inner = numbers(rows, n, seed=6)
    mine = Added(back, None, after, True)(inner, stream)
    theirs = REFERENCE.added(back, None, after)(inner, stream)
    forms.append((mine.hidden, theirs.hidden))
    assert mine.scaled is not None
    assert mine.squares is not None
    forms.append((mine.scaled, theirs.hidden * after))
    forms.append((mine.squares.sum(1), theirs.hidden.pow(2).sum(1)))
    for got, expected in forms:
        torch.testing.assert_close(got, expected, rtol=2e-5, atol=2e-4)


def test_what_a_product_leaves_for_the_next_norm_is_what_it_would_compute_itself() -> None:
    x, gain, w = numbers(5, 96), numbers(96, seed=2), numbers(70, 96, seed=3)
    normed = Normed(gain, EPS, w, None, True, False)
    back = Added(numbers(96, 96, seed=4), None, gain, True)
    stream = back(x, Residual(x))
    assert torch.equal(normed(stream), normed(Residual(stream.hidden)))


def test_many_rows_of_a_wide_model_leave_parts_for_the_next_norm() -> None:
    """More columns than an 8B's output product has, in the dtype whose tiles vary."""
    rows, n, k = 330, 4160, 32
    x, gain = numbers(rows, k).half(), numbers(n, seed=1).half()
    w, residual = numbers(n, k, seed=2).half() * 0.1, numbers(rows, n, seed=3).half()
    got = Added(w, None, gain, True)(x, Residual(residual))
    assert got.squares is not None
    assert got.squares.shape == (rows, n // TILE)
    torch.testing.assert_close(got.squares.sum(1), got.hidden.float().pow(2).sum(1))


@pytest.mark.parametrize("rows", [2, 6, 16, 20, 40])
def test_a_row_is_the_same_to_the_bit_at_any_row_count(rows: int) -> None:
    if rows > 16 and DEVICE.type == "cpu":
        pytest.skip("numpy multiplies wider tiles in another order; a GPU does not")
    x, gain, w = numbers(rows, 160), numbers(160, seed=2), numbers(96, 160, seed=3)
    product = Normed(gain, EPS, w, None, True, True)
    every = product(Residual(x))
    for row in (0, rows // 2, rows - 1):
        alone = product(Residual(x[row : row + 1].contiguous()))
        assert torch.equal(every[row : row + 1], alone)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize(("k", "n"), [(64, 64), (80, 33), (2100, 12), (4200, 7)])
def test_a_drafts_single_rows(rows: int, k: int, n: int) -> None:
    """The form that float32 drafts do not take, tried all the same."""
    x, gain, add = numbers(rows, k, seed=1), numbers(k, seed=2), numbers(rows, n, seed=3)
    w, bias = numbers(2 * n, k, seed=4) * 0.1, numbers(2 * n, seed=5)
    for gated, gained in ((True, True), (False, True), (False, False)):
        used = w if gated else w[:n]
        product = DeviceProduct(
            used, bias if gated else bias[:n], False, gain if gained else None, EPS, gated
        )
        product._alone = True
        got = product.run(Residual(x), None if gated else add, torch.float32).hidden
        h = x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + EPS) * gain if gained else x
        z = h @ used.T + (bias if gated else bias[:n])
        z = torch.nn.functional.silu(z[:, :n]) * z[:, n:] if gated else z + add
        torch.testing.assert_close(got, z, rtol=2e-5, atol=2e-4)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (60, 6), (1, NARROW + 1)])
@pytest.mark.parametrize("steady", [False, True])
def test_the_stream_begins_with_embeddings(shape: tuple[int, int], steady: bool) -> None:
    table, gain = numbers(50, 200), numbers(200, seed=1)
    ids = (torch.arange(shape[0] * shape[1], device=DEVICE) * 3 % 50).view(shape)
    stream = Enter(table, gain, steady)(ids)
    assert torch.equal(stream.hidden, table[ids.view(-1)])
    assert stream.chunk == (shape[1] > NARROW)
    # A draft's single rows make their norm themselves.
    assert (stream.scaled is None) == (stream.chunk or (shape == (1, 1) and not steady))
    if stream.scaled is not None and stream.squares is not None:
        assert torch.equal(stream.scaled, table[ids.view(-1)] * gain)
        torch.testing.assert_close(stream.squares.sum(1), stream.hidden.pow(2).sum(1))


def test_a_long_piece_of_a_prompt_goes_through_torch_and_no_round_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The vendor's products choose by shape, so how many texts run would change a text's bits."""
    d, seen = 64, []
    monkeypatch.setattr(DeviceProduct, "wide", _noting(seen, DeviceProduct.wide))
    gain, table = numbers(d, seed=1), numbers(50, d)
    qkv, back = numbers(48, d, seed=2), numbers(d, 48, seed=3) * 0.1
    gates, down = numbers(96, d, seed=4) * 0.1, numbers(d, 48, seed=5) * 0.1
    results = []
    for shape in ((70, 6), (1, 420)):  # of the same tokens: 70 texts, or one piece
        ids = (torch.arange(420, device=DEVICE) % 50).view(shape)
        x = Enter(table, gain, True)(ids)
        x = Added(back, None, gain, True)(Normed(gain, EPS, qkv, None, True, False)(x), x)
        x = Added(down, None, gain, True)(Gated(gain, EPS, gates, None, True)(x), x)
        results.append(x.hidden)
        assert len(seen) == (0 if shape[0] > 1 else 4)
    torch.testing.assert_close(*results, rtol=2e-5, atol=2e-4)


def _noting(seen: list[int], wide: Any) -> Any:
    return lambda product, x: seen.append(x.shape[0]) or wide(product, x)


def test_float16_rows_come_close() -> None:
    x, gain = numbers(6, 128).half(), numbers(128, seed=1).half()
    w = (numbers(64, 128, seed=2) * 0.1).half()
    got = Normed(gain, EPS, w, None, True, True)(Residual(x))
    expected = REFERENCE.normed(gain.float(), EPS, w.float(), None)(Residual(x.float()))
    assert (got - expected).norm() / expected.norm() < 2e-3


def test_a_row_that_is_not_finite_stays_alone() -> None:
    x, gain, w = numbers(4, 64), numbers(64, seed=1), numbers(64, 64, seed=2)
    x[1] = float("nan")
    got = Normed(gain, EPS, w, None, True, False)(prepare(x, gain))
    assert got[1].isnan().all()
    assert got[[0, 2, 3]].isfinite().all()

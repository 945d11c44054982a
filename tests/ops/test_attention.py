"""A layer's attention over a paged cache, in torch and compiled, against torch's own on whole
texts in float64: grouped heads, odd numbers of key heads, sliding windows, rows of several
lengths in one pass. And a row's result does not depend on what stands beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from paceline.kv.pools import KVPool
from paceline.ops.attention import BLOCK
from paceline.ops.layer import LayerOps, TorchOps, make_ops
from paceline.types import Window

CPU = torch.device("cpu")
LENGTH, PAGES = 180, 3
BF16 = bool(torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())
needs_bf16 = pytest.mark.skipif(not BF16, reason="no oneDNN bfloat16 on this processor")
FAMILIES: dict[str, Callable[[], tuple[LayerOps, torch.dtype]]] = {
    "torch float64": lambda: (TorchOps(torch.float64), torch.float64),
    "torch float32": lambda: (TorchOps(torch.float32), torch.float32),
    "torch bfloat16": lambda: (TorchOps(torch.bfloat16), torch.bfloat16),
    "chosen float32": lambda: (make_ops(torch.float32, CPU), torch.float32),
    "chosen bfloat16": lambda: (make_ops(torch.bfloat16, CPU), torch.bfloat16),
}
ERROR = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}
# Families whose rows are promised to be the same to the bit.
STEADY = [
    pytest.param("torch bfloat16", marks=needs_bf16),
    "chosen float32",
    pytest.param("chosen bfloat16", marks=needs_bf16),
]


@dataclass(frozen=True)
class Shape:
    """Hq, Hkv, D, sliding window, head norms."""

    heads: int
    kv_heads: int
    size: int = 8
    sliding: int | None = None
    normed: bool = False

    def __str__(self) -> str:
        return f"{self.heads}-{self.kv_heads}-{self.size}-{self.sliding}-{self.normed}"


SHAPES = [
    Shape(2, 2),
    Shape(4, 2),
    Shape(6, 2, normed=True),
    Shape(4, 1),
    Shape(12, 2),
    Shape(3, 3),
    Shape(10, 5, 16),
    Shape(9, 3, 12, normed=True),
    Shape(1, 1, 2),
    Shape(4, 2, 64),
    Shape(3, 1, 64, sliding=70),
    Shape(4, 2, sliding=1),
    Shape(4, 2, sliding=5, normed=True),
    Shape(6, 3, 10, sliding=64),
    Shape(8, 4, 32),
]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


class Layer:
    """One layer's attention with its cache, and the texts' qkv as it would come from a product."""

    def __init__(self, family: str, shape: Shape, texts: int = 1, *, shuffled: bool = True) -> None:
        self.ops, self.dtype = FAMILIES[family]()
        self.shape = shape
        spec = self.ops.kv_spec(1, shape.kv_heads, shape.size)
        self.pool = KVPool(spec, texts * PAGES + 1, BLOCK, CPU)
        order = torch.randperm(texts * PAGES, generator=torch.Generator().manual_seed(5))
        if not shuffled:
            order = torch.arange(texts * PAGES)
        self.pages = 1 + order.view(texts, PAGES)
        angles = numbers(LENGTH, shape.size // 2, seed=9) * 3
        self.turns = torch.polar(torch.ones_like(angles), angles)
        kind = torch.complex128 if self.dtype is torch.float64 else torch.complex64
        windows = frozenset({shape.sliding})
        self.plan = self.ops.planner(spec, shape.heads, windows, self.turns.to(kind))
        gains = tuple(
            1 + 0.3 * numbers(shape.size, seed=seed) if shape.normed else None for seed in (7, 8)
        )
        self.gains = gains
        cast = tuple(None if gain is None else gain.to(self.dtype) for gain in gains)
        self.attend = self.ops.attention(spec, shape.heads, cast, 1e-5, shape.sliding)  # type: ignore[arg-type]
        width = (shape.heads + 2 * shape.kv_heads) * shape.size
        self.qkv = numbers(texts, LENGTH, width, seed=3).to(self.dtype)

    def run(self, rows: list[tuple[int, int]], width: int, bound: int | None = None) -> Tensor:
        """Attention of windows of `width` nodes; rows: (text, first position). [B, W, Hq·D].

        bound: positions the host allows for, at least what the window reaches.
        """
        place = torch.tensor([[first + node for node in range(width)] for _, first in rows])
        bounds = tuple(bound or first + width for _, first in rows)
        pages = self.pages[[text for text, _ in rows]]
        address = pages.gather(1, place // BLOCK) * BLOCK + place % BLOCK
        window = Window(place, place, address, place >= 0, bounds, pages, BLOCK)
        texts = torch.tensor([[text] for text, _ in rows])
        qkv = self.qkv[texts, place].reshape(len(rows) * width, -1).contiguous()
        out = self.attend(qkv, *self.pool.layers[0], self.plan(window))
        assert out.dtype == self.dtype
        return out.view(len(rows), width, -1).clone()

    def fill(self, text: int, length: int, chunk: int = 64) -> None:
        """Prefill positions 0 to length - 1."""
        for first in range(0, length, chunk):
            self.run([(text, first)], min(chunk, length - first))

    def expected(self, text: int, length: int) -> Tensor:
        """Of the whole text at once: [length, Hq·D]."""
        shape = self.shape
        heads = self.qkv[text, :length].double().view(length, -1, shape.size)
        parts = heads.split([shape.heads, shape.kv_heads, shape.kv_heads], 1)
        query, key, value = (part.transpose(0, 1) for part in parts)
        turned = []
        for part, gain in zip((query, key), self.gains, strict=True):
            if gain is not None:
                part = part / (part.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
                part = part * gain.to(self.dtype).double()
            pairs = torch.view_as_complex(part.contiguous().view(*part.shape[:-1], -1, 2))
            turned.append(torch.view_as_real(pairs * self.turns[:length]).flatten(-2))
        query, key = turned
        back = torch.arange(length)[:, None] - torch.arange(length)
        mask = (back >= 0) & (back < (shape.sliding or length))
        out = F.scaled_dot_product_attention(query, key, value, mask, enable_gqa=True)
        return out.transpose(0, 1).reshape(length, -1)


def near(got: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    torch.testing.assert_close(got.double(), expected, rtol=ERROR[dtype], atol=ERROR[dtype])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_windows_of_several_texts(family: str, shape: Shape) -> None:
    """Prefill in odd chunks, then windows over texts of different lengths, twice at the same
    place: what a rejected draft wrote is written over."""
    layer = Layer(family, shape, texts=3)
    starts = [3, 70, 130]
    for text, (start, chunk) in enumerate(zip(starts, (64, 7, 33), strict=True)):
        layer.fill(text, start, chunk)
    rows = list(enumerate(starts))
    whole = [layer.expected(text, start + 9) for text, start in rows]
    for width in (1, 9, 4):
        got = layer.run(rows, width)
        for (text, start), out in zip(rows, got, strict=True):
            near(out, whole[text][start : start + width], layer.dtype)


@pytest.mark.parametrize("family", FAMILIES)
def test_prefill_is_the_whole_text(family: str) -> None:
    layer = Layer(family, Shape(6, 3, 16, normed=True))
    whole = layer.expected(0, LENGTH)
    for chunk in (1, 17, 64, LENGTH):
        for first in range(0, LENGTH, chunk):
            width = min(chunk, LENGTH - first)
            out = layer.run([(0, first)], width)[0]
            near(out, whole[first : first + width], layer.dtype)


@pytest.mark.parametrize("family", STEADY)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_row_is_the_same_in_any_window(family: str, shape: Shape) -> None:
    """To the bit: for every width 1 to 9, every place in the window, every bound, alone and
    beside others."""
    layer = Layer(family, shape, texts=2)
    start = 61  # the window crosses a block's border
    layer.fill(0, start, 61)
    layer.fill(1, 120, 50)
    single = []
    for node in range(9):
        single.append(layer.run([(0, start + node)], 1)[0, 0])
    for width in range(2, 10):
        for bound in (None, 128, LENGTH):
            got = layer.run([(0, start)], width, bound)[0]
            for node in range(width):
                assert torch.equal(got[node], single[node]), (width, bound, node)
        got = layer.run([(1, 120), (0, start)], width)[1]
        assert torch.equal(got, torch.stack(single[:width]))
    # Another place in the window: the same position as the last of a window that began earlier.
    for back in range(1, 9):
        got = layer.run([(0, start + 8 - back)], back + 1)[0]
        assert torch.equal(got[-1], single[8])


@pytest.mark.parametrize("family", STEADY)
def test_prefill_chunks_are_the_same_to_the_bit(family: str) -> None:
    """A prompt's cache does not depend on its chunks: what follows sees the same numbers."""
    outs = []
    for chunk in (1, 3, 16, 64, 100):
        layer = Layer(family, Shape(6, 3, 16))
        parts = []
        for first in range(0, 140, chunk):
            parts.append(layer.run([(0, first)], min(chunk, 140 - first))[0])
        outs.append(torch.cat(parts))
    for out in outs[1:]:
        assert torch.equal(out, outs[0])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_where_pages_lie_does_not_show(family: str, shape: Shape) -> None:
    """To the bit, prefill and windows, one text and several."""
    outs = []
    for shuffled in (True, False):
        layer = Layer(family, shape, texts=2, shuffled=shuffled)
        parts = [layer.run([(0, 0)], 130), layer.run([(1, 0)], 70)]
        for width in (9, 1, 4):
            parts.append(layer.run([(1, 70), (0, 130)], width))
            parts.append(layer.run([(0, 130)], width, LENGTH))
        outs.append(torch.cat([part.view(-1) for part in parts]))
    assert torch.equal(*outs)


@pytest.mark.parametrize("family", FAMILIES)
def test_not_a_number_is_seen_and_stays_in_its_text(family: str) -> None:
    layer = Layer(family, Shape(4, 2), texts=2)
    layer.qkv[0, 2] = float("nan")
    layer.fill(0, 8)
    layer.fill(1, 8)
    got = layer.run([(0, 8), (1, 8)], 3)
    assert got[0].isnan().all()
    near(got[1], layer.expected(1, 11)[8:], layer.dtype)
    # Its pages serve another text, although what is not finite stays where that one ends.
    layer.qkv[0, 2:7] = 0.5
    layer.qkv[0, 6] = float("nan")
    layer.fill(0, 8)
    layer.qkv[0, 6] = 0.5
    layer.fill(0, 4)
    near(layer.run([(0, 4)], 2)[0], layer.expected(0, 6)[4:], layer.dtype)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["key", "value", "all"])
@pytest.mark.parametrize("shape", [Shape(4, 2), Shape(3, 1, sliding=5), Shape(6, 3)], ids=str)
def test_a_node_does_not_feel_what_comes_after_it(
    family: str, value: float, part: str, shape: Shape
) -> None:
    """A draft token whose numbers are not finite: the nodes before it are as ever, in the same
    window and in narrower ones after it; those that see it are not finite."""
    layer = Layer(family, shape)
    layer.fill(0, 10)
    first, last = shape.heads * shape.size, (shape.heads + shape.kv_heads) * shape.size
    columns = {"key": slice(first, last), "value": slice(last, None), "all": slice(None)}[part]
    clean = layer.expected(0, 13)
    kept = layer.qkv[0, 13].clone()
    layer.qkv[0, 13, columns] = value
    got = layer.run([(0, 10)], 5)[0]
    near(got[:3], clean[10:], layer.dtype)
    for node in (3, 4):
        assert not got[node].isfinite().all()
    near(layer.run([(0, 10)], 2)[0], clean[10:12], layer.dtype)
    layer.qkv[0, 13] = kept
    near(layer.run([(0, 12)], 3)[0], layer.expected(0, 15)[12:], layer.dtype)

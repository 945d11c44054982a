"""The attention kernel of the GPU path, in Triton's interpreter where there is no GPU, against
torch's own on whole texts in float64: grouped heads, head norms, sliding windows, shuffled pages,
trees. A node's result is the same to the bit in any window, place and batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("triton")

from paceline.ops import device_attention
from paceline.ops.device_attention import (
    DeviceAttention,
    DevicePlanner,
    NarrowPlan,
    Tuning,
    WidePlan,
)
from paceline.ops.layer import TorchOps
from paceline.types import KVSpec, Window

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LENGTH = 180
NAN = float("nan")
# Small, so that short texts have many tiles, chunks and streams.
SMALL = Tuning(tile=16, chunk=32, streams=3, rows=16, stages=1)


@dataclass(frozen=True)
class Shape:
    """Hq, Hkv, D, sliding window, head norms."""

    heads: int
    kv_heads: int
    size: int = 16
    sliding: int | None = None
    normed: bool = False

    def __str__(self) -> str:
        return f"{self.heads}-{self.kv_heads}-{self.size}-{self.sliding}-{self.normed}"


SHAPES = [
    Shape(1, 1),
    Shape(4, 2, 64),
    Shape(3, 1, normed=True),
    Shape(4, 1, 80, normed=True),
    Shape(5, 1, 12),
    Shape(12, 2),
    Shape(7, 1, 6),
    Shape(8, 1, 32, normed=True),
    Shape(4, 2, sliding=1),
    Shape(6, 3, sliding=40, normed=True),
    Shape(2, 1, sliding=97),
]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


class Layer:
    """One layer's attention over texts that lie in shuffled pages, all else of the cache NaN."""

    def __init__(
        self,
        shape: Shape,
        texts: int = 1,
        page_size: int = 48,
        tuning: Tuning = SMALL,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.shape, self.dtype, self.page_size = shape, dtype, page_size
        self.spec = KVSpec(1, shape.kv_heads, shape.size, dtype)
        count = -(-LENGTH // page_size)
        pages = torch.randperm(texts * count, generator=torch.Generator().manual_seed(5)) + 1
        self.pages = pages.view(texts, count).to(DEVICE)
        size = (shape.kv_heads, (texts * count + 1) * page_size, shape.size)
        self.keys = torch.full(size, NAN, dtype=dtype, device=DEVICE)
        self.values = self.keys.clone()
        angles = numbers(LENGTH, shape.size // 2, seed=9) * 3
        self.turns = torch.polar(torch.ones_like(angles), angles).to(DEVICE)
        self.gains = tuple(
            (1 + 0.3 * numbers(shape.size, seed=seed)).to(dtype).to(DEVICE)
            if shape.normed
            else None
            for seed in (7, 8)
        )
        self.planner = DevicePlanner(
            self.spec, shape.heads, frozenset({shape.sliding}), self.turns.cfloat(), tuning
        )
        self.attend = DeviceAttention(
            self.spec, shape.heads, (self.gains[0], self.gains[1]), 1e-5, shape.sliding
        )
        width = (shape.heads + 2 * shape.kv_heads) * shape.size
        self.qkv = numbers(texts, LENGTH, width, seed=3).to(dtype).to(DEVICE)

    def address(self, text: Tensor, place: Tensor) -> Tensor:
        return self.pages[text, place // self.page_size] * self.page_size + place % self.page_size

    def fill(self, text: int, length: int) -> None:
        """Positions 0 to length - 1 as an exact layer would leave them."""
        _, key, value = self.turned(text)
        cells = self.address(torch.tensor(text), torch.arange(length, device=DEVICE))
        self.keys[:, cells] = key[:, :length].to(self.dtype)
        self.values[:, cells] = value[:, :length].to(self.dtype)

    def window(
        self, rows: list[tuple[int, int]], width: int, valid: Tensor | None = None
    ) -> Window:
        """rows: (text, first position)."""
        place = torch.tensor([[first + node for node in range(width)] for _, first in rows])
        texts = torch.tensor([[text] for text, _ in rows])
        place, texts = place.to(DEVICE), texts.to(DEVICE)
        valid = (place >= 0) if valid is None else valid.to(DEVICE)
        node = torch.arange(width, device=DEVICE)
        address = torch.where(valid, self.address(texts, place), node % self.page_size)
        bounds, pages = tuple(n + width for _, n in rows), self.pages[texts[:, 0]]
        return Window(place, place, address, valid, bounds, pages, self.page_size)

    def run(self, rows: list[tuple[int, int]], width: int, valid: Tensor | None = None) -> Tensor:
        """[B, W, Hq·D]."""
        window = self.window(rows, width, valid)
        texts = torch.tensor([[text] for text, _ in rows], device=DEVICE)
        return self.call(window, self.qkv[texts, window.position])

    def call(self, window: Window, qkv: Tensor) -> Tensor:
        batch, width = window.ids.shape
        plan = self.planner.plan(window)
        if isinstance(plan, NarrowPlan):
            plan.out.fill_(NAN)
            plan.partial.fill_(NAN)
        out = self.attend(qkv.reshape(batch * width, -1), self.keys, self.values, plan)
        assert out.dtype == self.dtype
        if isinstance(plan, NarrowPlan):
            assert not plan.counters.any()
        return out.view(batch, width, -1).clone()

    def turned(self, text: int) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value [heads, LENGTH, D] float64 of a whole text."""
        shape = self.shape
        heads = self.qkv[text].double().view(LENGTH, -1, shape.size)
        parts = heads.split([shape.heads, shape.kv_heads, shape.kv_heads], 1)
        query, key, value = (part.transpose(0, 1) for part in parts)
        turned = []
        for part, gain in zip((query, key), self.gains, strict=True):
            if gain is not None:
                part = part / (part.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * gain.double()
            pairs = torch.view_as_complex(part.contiguous().view(*part.shape[:-1], -1, 2))
            turned.append(torch.view_as_real(pairs * self.turns).flatten(-2))
        return turned[0], turned[1], value

    def expected(self, text: int, length: int) -> Tensor:
        """[length, Hq·D] of the whole text at once."""
        query, key, value = (part[:, :length] for part in self.turned(text))
        back = torch.arange(length)[:, None] - torch.arange(length)
        mask = ((back >= 0) & (back < (self.shape.sliding or length))).to(DEVICE)
        out = F.scaled_dot_product_attention(query, key, value, mask, enable_gqa=True)
        return out.transpose(0, 1).reshape(length, -1)


@pytest.fixture
def _ordered_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter's products through BLAS round a row by its place; a GPU's do not."""
    if DEVICE.type == "cuda":
        return
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def create_dot(
        self: InterpreterBuilder, a: TensorHandle, b: TensorHandle, c: TensorHandle, *_: object
    ) -> TensorHandle:
        total = c.data.copy()
        for k in range(a.data.shape[1]):
            total += a.data[:, k : k + 1] * b.data[k]
        return TensorHandle(total, c.dtype.scalar)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)


def near(got: Tensor, expected: Tensor, error: float = 1e-5) -> None:
    torch.testing.assert_close(got.double(), expected, rtol=error, atol=error)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_windows_of_several_texts(shape: Shape) -> None:
    """Twice at the same place: what a rejected draft wrote is written over."""
    layer = Layer(shape, texts=2)
    starts = [5, 131]
    for text, start in enumerate(starts):
        layer.fill(text, start)
    rows = list(enumerate(starts))
    whole = [layer.expected(text, start + 9) for text, start in rows]
    for width in (9, 1, 4):
        got = layer.run(rows, width)
        for (text, start), out in zip(rows, got, strict=True):
            near(out, whole[text][start : start + width])


@pytest.mark.parametrize("shape", [Shape(4, 1), Shape(2, 1, 12, sliding=50, normed=True)], ids=str)
@pytest.mark.parametrize("page_size", [48, 64, 192])
def test_a_text_in_windows_alone(
    shape: Shape, page_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From an empty cache, in windows of every kind of width, the widest of them prefill."""
    monkeypatch.setattr(device_attention, "NARROW", 20)
    layer = Layer(shape, page_size=page_size)
    whole = layer.expected(0, LENGTH)
    first = 0
    for width in (1, 17, 64, 3, 70, 16):
        out = layer.run([(0, first)], width)[0]
        near(out, whole[first : first + width])
        first += width


@pytest.mark.parametrize("shape", [Shape(6, 2, normed=True), Shape(3, 1, 12, sliding=30)], ids=str)
def test_the_torch_form_agrees(shape: Shape) -> None:
    layer = Layer(shape, page_size=192)
    ops = TorchOps(torch.float32)
    spec = ops.kv_spec(1, shape.kv_heads, shape.size)
    plan = ops.planner(spec, shape.heads, frozenset({shape.sliding}), layer.turns.cfloat())
    gains = (layer.gains[0], layer.gains[1])
    attend = ops.attention(spec, shape.heads, gains, 1e-5, shape.sliding)
    cache = torch.zeros(shape.kv_heads // spec.bundle, 2 * 192, spec.bundle * shape.size)
    caches = cache.to(DEVICE), cache.to(DEVICE).clone()
    for first, width in ((0, 40), (40, 6), (43, 1)):
        window = layer.window([(0, first)], width)
        expected = attend(layer.qkv[0, first : first + width].clone(), *caches, plan(window))
        near(layer.run([(0, first)], width)[0], expected.double())


@pytest.mark.parametrize(
    "shape", [Shape(4, 2, normed=True), Shape(3, 1, 12), Shape(5, 1, sliding=37)], ids=str
)
@pytest.mark.parametrize("start", [0, 61, 93])
@pytest.mark.usefixtures("_ordered_products")
def test_a_node_is_the_same_in_any_window(shape: Shape, start: int) -> None:
    """To the bit: every width, every place in the window, alone and beside others."""
    layer = Layer(shape, texts=2)
    layer.fill(0, start)
    layer.fill(1, 120)
    single = [layer.run([(0, start + node)], 1)[0, 0] for node in range(9)]
    for width in (2, 3, 5, 9):
        got = layer.run([(0, start)], width)[0]
        assert torch.equal(got, torch.stack(single[:width])), width
        got = layer.run([(1, 120), (0, start)], width)[1]
        assert torch.equal(got, torch.stack(single[:width])), width
    for back in (1, 4, 8):
        got = layer.run([(0, start + 8 - back)], back + 1)[0]
        assert torch.equal(got[-1], single[8])


@pytest.mark.parametrize("value", [NAN, float("inf")])
@pytest.mark.parametrize("part", ["key", "value", "all"])
@pytest.mark.parametrize("shape", [Shape(4, 2), Shape(3, 1, sliding=5)], ids=str)
@pytest.mark.filterwarnings("ignore:invalid value encountered", "ignore:All-NaN slice")  # NumPy's
def test_a_node_does_not_feel_what_comes_after_it(part: str, value: float, shape: Shape) -> None:
    layer = Layer(shape)
    layer.fill(0, 30)
    first, last = shape.heads * shape.size, (shape.heads + shape.kv_heads) * shape.size
    columns = {"key": slice(first, last), "value": slice(last, None), "all": slice(None)}[part]
    clean = layer.expected(0, 34)
    kept = layer.qkv[0, 33].clone()
    layer.qkv[0, 33, columns] = value
    got = layer.run([(0, 30)], 5)[0]
    near(got[:3], clean[30:33])
    for node in (3, 4):
        assert not got[node].isfinite().all(-1).any()
    near(layer.run([(0, 30)], 2)[0], clean[30:32])
    layer.qkv[0, 33] = kept
    near(layer.run([(0, 32)], 3)[0], layer.expected(0, 35)[32:])


@pytest.mark.parametrize("shape", [Shape(4, 2), Shape(2, 1, sliding=20)], ids=str)
def test_not_a_number_in_prefill(shape: Shape, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows before it and other texts are as ever; those that see it are told."""
    monkeypatch.setattr(device_attention, "NARROW", 64)  # a chunk need not be long
    layer = Layer(shape, texts=2)
    whole = [layer.expected(text, 80) for text in (0, 1)]
    layer.qkv[0, 70, -1] = NAN
    got = layer.run([(0, 0), (1, 0)], 80)
    near(got[1], whole[1])
    if shape.sliding or DEVICE.type == "cuda":  # torch's masks on a CPU are added to the scores
        near(got[0, :70], whole[0][:70])
    assert got[0, 70:].isnan().any(-1).all()


def test_idle_rows_and_nodes_that_are_not_valid() -> None:
    """A row of slot 0 gives zeros and writes nothing; drafts shorter than the window count."""
    layer = Layer(Shape(4, 2), texts=2)
    layer.fill(0, 40)
    before = layer.keys.clone()
    valid = torch.tensor([[False] * 5, [True] * 2 + [False] * 3])
    got = layer.run([(1, 0), (0, 40)], 5, valid)
    assert torch.equal(got[0], torch.zeros_like(got[0]))
    near(got[1, :2], layer.expected(0, 42)[40:])
    assert got.isfinite().all()
    changed = (before.nan_to_num(-9.0) != layer.keys.nan_to_num(-9.0)).any(0).any(-1).nonzero()
    assert set(changed.view(-1).tolist()) <= set(
        layer.address(torch.tensor(0), torch.arange(40, 42, device=DEVICE)).tolist()
    )


@pytest.mark.usefixtures("_ordered_products")
def test_a_window_padded_in_front_and_one_taken_node_by_node() -> None:
    """Windows as `speculation.window` makes them for drafters."""
    layer = Layer(Shape(4, 2), texts=2)
    layer.fill(1, 50)
    window = layer.window([(0, 0), (1, 50)], 6)
    back = torch.tensor([2, 0], device=DEVICE).unsqueeze(1)
    place = torch.where(back > 0, (window.position - back), window.position)
    valid, place = place >= 0, place.clamp(min=0)
    rows = torch.tensor([[0], [1]], device=DEVICE)
    address = torch.where(valid, layer.address(rows, place), 0)
    window = Window(place, place, address, valid, window.bounds, window.pages, window.page_size)
    whole = [layer.expected(0, 4), layer.expected(1, 56)[50:]]
    got = layer.call(window, layer.qkv[rows, place])
    near(got[0, 2:], whole[0])
    near(got[1], whole[1])
    for node in (2, 3):
        here = slice(node, node + 1)
        parts = (window.position[:, here], window.address[:, here], window.valid[:, here])
        step = Window(parts[0], *parts, window.bounds, window.pages, window.page_size)
        alone = layer.call(step, layer.qkv[rows, place[:, here]])
        assert torch.equal(alone, got[:, here])


@pytest.mark.parametrize(
    "shape", [Shape(4, 2, normed=True), Shape(3, 1, 12), Shape(2, 1, sliding=20)], ids=str
)
@pytest.mark.parametrize("root", [0, 33, 96])
def test_trees(shape: Shape, root: int) -> None:
    """A node sees the text before the root and its own branch, of which each node lies where the
    window says, whatever its depth."""
    layer = Layer(shape)
    layer.fill(0, root)
    parents = [-1, 0, 0, 1, 2, 2, 3, 5, 0, 8, 9, 9, 7, 12, 12, 3, 3, 15, 4, 4]
    width = len(parents)
    seen, depth = torch.eye(width, dtype=torch.bool), [0] * width
    for node, parent in enumerate(parents[1:], 1):
        seen[node] |= seen[parent]
        depth[node] = depth[parent] + 1
    place = (root + torch.tensor([depth])).to(DEVICE)
    window = layer.window([(0, root)], width)
    tree = Window(
        place, place, window.address, window.valid, window.bounds, window.pages, window.page_size,
        seen.unsqueeze(0).to(DEVICE),
    )  # fmt: skip
    # Each node has numbers of its own, siblings too.
    qkv = numbers(width, layer.qkv.shape[-1], seed=root).to(layer.dtype).to(DEVICE)
    got = layer.call(tree, qkv.unsqueeze(0))[0]
    for node in range(width):
        branch = seen[node].nonzero().view(-1)
        layer.qkv[0, root : root + len(branch)] = qkv[branch]
        near(got[node], layer.expected(0, root + len(branch))[-1])


@pytest.mark.usefixtures("_ordered_products")
def test_the_row_tile_does_not_show() -> None:
    """Many query rows take several programs; how many does not show in a result."""
    outs = []
    for rows in (16, 32):
        tuning = Tuning(tile=16, chunk=32, streams=3, rows=rows, stages=1)
        layer = Layer(Shape(8, 1), tuning=tuning)
        layer.fill(0, 70)
        outs.append(layer.run([(0, 70)], 9))
    assert torch.equal(outs[0], outs[1])


@pytest.mark.usefixtures("_ordered_products")
@pytest.mark.parametrize("shape", [Shape(4, 2), Shape(2, 1, sliding=50, normed=True)], ids=str)
def test_where_pages_lie_does_not_show(shape: Shape) -> None:
    """To the bit, as the engine cuts work: a page holds half a chunk, or the whole text."""
    outs = []
    for page_size in (64, 192):
        layer = Layer(shape, texts=2, page_size=page_size, tuning=Tuning(stages=1))
        layer.fill(1, 150)
        layer.fill(0, 112)
        parts = [layer.run([(0, first)], 8) for first in (112, 120)]
        parts += [layer.run([(1, 150), (0, 128)], width) for width in (7, 1, 2)]
        outs.append(torch.cat([part.view(-1) for part in parts]))
    assert torch.equal(*outs)


def test_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_attention, "NARROW", 64)
    layer = Layer(Shape(4, 2, normed=True), dtype=torch.bfloat16, page_size=192)
    whole = layer.expected(0, 90)
    near(layer.run([(0, 0)], 70)[0], whole[:70], 3e-2)
    near(layer.run([(0, 70)], 9)[0], whole[70:79], 3e-2)
    near(layer.run([(0, 79)], 1)[0], whole[79:80], 3e-2)


def test_plans_keep_their_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A captured launch holds addresses, so a plan of one size has the same ones every time."""
    monkeypatch.setattr(device_attention, "NARROW", 64)
    layer = Layer(Shape(4, 2), texts=2)
    plans = [layer.planner.plan(layer.window([(0, 9), (1, 5)], width)) for width in (6, 2, 6)]
    for plan in plans:
        assert isinstance(plan, NarrowPlan)
    first, other, again = plans
    for name in ("partial", "tops", "totals", "counters", "out"):
        assert getattr(first, name).data_ptr() == getattr(again, name).data_ptr()
    assert other.partial.data_ptr() == first.partial.data_ptr()  # one arena, the largest
    assert other.counters.data_ptr() != first.counters.data_ptr()
    assert isinstance(layer.planner.plan(layer.window([(0, 0)], 65)), WidePlan)

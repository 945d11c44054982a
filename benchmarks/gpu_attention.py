"""The attention kernel on a GPU: is it right, is it the same to the bit, how fast is it.

Right: random shapes against float64, with NaN wherever nothing may be read. Same: a node's output
and cache in bfloat16 over every width up to 64, places and batches. Fast: graphs of many launches
over caches that do not fit the second cache, microseconds a launch and the share of the time that
reading the keys and values alone takes, for several ways to cut the work; and what a launch adds
between the products of a layer. Last line JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import triton
from torch import Tensor

from paceline.ops.attention import BLOCK
from paceline.ops.device_attention import NARROW, DeviceAttention, DevicePlanner, NarrowPlan, Tuning
from paceline.ops.device_linear import Added, Normed, prepare
from paceline.types import KVSpec, Window

CUDA = torch.device("cuda")
NAN = float("nan")
BANDWIDTH = 4.28e12  # bytes a second, a measured copy on an H200


@dataclass(frozen=True)
class Shape:
    """Hq, Hkv, D, dtype, sliding window, head norms."""

    heads: int
    kv_heads: int
    size: int
    dtype: torch.dtype = torch.bfloat16
    sliding: int | None = None
    normed: bool = False


class Layer:
    """One layer with texts of given lengths in a cache of pages, everything unwritten NaN."""

    def __init__(
        self,
        shape: Shape,
        lengths: list[int],
        page_size: int = BLOCK,
        tuning: Tuning | None = None,
        seed: int = 0,
    ) -> None:
        """lengths: positions of each text, the window's included. page_size 0: one page a text."""
        self.shape = shape
        longest = max(lengths)
        self.page_size = page_size or -(-longest // 128) * 128
        count = -(-longest // self.page_size)
        generator = torch.Generator(CUDA).manual_seed(seed)
        self.generator = generator
        total = len(lengths) * count
        pages = torch.randperm(total, device=CUDA, generator=generator) + 1
        self.pages = pages.view(len(lengths), count)
        cells = (shape.kv_heads, (total + 1) * self.page_size, shape.size)
        self.keys = torch.full(cells, NAN, dtype=shape.dtype, device=CUDA)
        self.values = self.keys.clone()
        angles = torch.rand(longest, shape.size // 2, device=CUDA, generator=generator) * 6.28
        self.turns = torch.polar(torch.ones_like(angles), angles)
        self.gains = tuple(
            (1 + 0.3 * self.draw(shape.size)).to(shape.dtype) if shape.normed else None
            for _ in range(2)
        )
        spec = KVSpec(1, shape.kv_heads, shape.size, shape.dtype)
        self.planner = DevicePlanner(
            spec, shape.heads, frozenset({shape.sliding}), self.turns, tuning
        )
        gains = (self.gains[0], self.gains[1])
        self.attend = DeviceAttention(spec, shape.heads, gains, 1e-5, shape.sliding)

    def draw(self, *size: int) -> Tensor:
        return torch.randn(*size, device=CUDA, generator=self.generator)

    def qkv(self, batch: int, width: int) -> Tensor:
        columns = (self.shape.heads + 2 * self.shape.kv_heads) * self.shape.size
        return self.draw(batch * width, columns).to(self.shape.dtype)

    def address(self, text: Tensor, place: Tensor) -> Tensor:
        return self.pages[text, place // self.page_size] * self.page_size + place % self.page_size

    def fill(self, text: int, length: int) -> None:
        """Random keys and values at positions 0 to length - 1."""
        cells = self.address(torch.tensor(text, device=CUDA), torch.arange(length, device=CUDA))
        for cache in (self.keys, self.values):
            new = self.draw(self.shape.kv_heads, length, self.shape.size)
            cache[:, cells] = new.to(self.shape.dtype)

    def window(self, texts: list[int], starts: list[int], width: int) -> Window:
        place = torch.tensor(starts, device=CUDA)[:, None] + torch.arange(width, device=CUDA)
        text = torch.tensor(texts, device=CUDA)[:, None]
        bounds = tuple(start + width for start in starts)
        return Window(
            place, place, self.address(text, place), place >= 0, bounds,
            self.pages[text[:, 0]], self.page_size,
        )  # fmt: skip

    def run(self, window: Window, qkv: Tensor) -> Tensor:
        plan = self.planner.plan(window)
        if isinstance(plan, NarrowPlan):
            plan.out.fill_(NAN)
            plan.partial.fill_(NAN)
        out = self.attend(qkv, self.keys, self.values, plan)
        if isinstance(plan, NarrowPlan):
            assert not plan.counters.any(), "a counter was left behind"
        return out.view(*window.ids.shape, -1).clone()

    def expected(self, window: Window, qkv: Tensor, row: int) -> Tensor:
        """One row in float64, the cache as it was before: [W, Hq·D]."""
        shape, width = self.shape, window.ids.shape[1]
        place = window.position[row]
        heads = qkv.view(*window.ids.shape, -1, shape.size)[row].double()
        query, key, value = heads.split([shape.heads, shape.kv_heads, shape.kv_heads], 1)
        turned = []
        for part, gain in zip((query, key), self.gains, strict=True):
            if gain is not None:
                part = part / (part.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * gain.double()
            pairs = torch.view_as_complex(part.contiguous().view(*part.shape[:-1], -1, 2))
            turned.append(torch.view_as_real(pairs * self.turns[place, None]).flatten(-2))
        query, key = turned
        root = int(place[0])
        old = torch.arange(root, device=CUDA)
        page = window.pages[row]
        cells = page[old // self.page_size] * self.page_size + old % self.page_size
        keys = torch.cat((self.keys[:, cells].double(), key.transpose(0, 1)), 1)
        values = torch.cat((self.values[:, cells].double(), value.transpose(0, 1)), 1)
        at = torch.cat((old, place))
        seen = at[None, :] <= place[:, None]
        if window.ancestors is not None:
            seen[:, root:] = window.ancestors[row]
        if shape.sliding:
            seen &= at[None, :] > place[:, None] - shape.sliding
        group = shape.heads // shape.kv_heads
        query = query.view(width, shape.kv_heads, group, shape.size).permute(1, 2, 0, 3)
        scores = torch.einsum("hgwd,hnd->hgwn", query, keys) * shape.size**-0.5
        weight = scores.masked_fill(~seen, -math.inf).softmax(-1)
        out = torch.einsum("hgwn,hnd->hgwd", weight, values)
        return out.permute(2, 0, 1, 3).reshape(width, -1)


class Compiling:
    """Stands for the kernel while variants are compiled side by side: launches nothing."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int, int, int]) -> Any:
        return lambda *args, **options: self.kernel.warmup(*args, grid=grid, **options)


def compile_all(jobs: list[tuple[Layer, Window, Tensor]]) -> float:
    """Compile what these launches need; seconds."""
    begun = time.perf_counter()
    with ThreadPoolExecutor(16) as pool, triton.AsyncCompileMode(pool):
        for layer, window, qkv in jobs:
            kernel = layer.attend._kernel
            layer.attend._kernel = Compiling(kernel)
            layer.attend(qkv, layer.keys, layer.values, layer.planner.plan(window))
            layer.attend._kernel = kernel
    return time.perf_counter() - begun


def random_tree(width: int, batch: int, chance: random.Random) -> tuple[Tensor, Tensor]:
    """Depths [B, W] and ancestors-or-self [B, W, W]."""
    seen = torch.eye(width, dtype=torch.bool).repeat(batch, 1, 1)
    for row in range(batch):
        for node in range(1, width):
            seen[row, node] |= seen[row, chance.randrange(node)]
    return (seen.sum(-1) - 1).to(CUDA), seen.to(CUDA)


def cases(chance: random.Random) -> Iterator[tuple[Shape, int, int, int, bool]]:
    """(shape, width, most positions of a text, page size, tree)."""
    sizes = [64, 80, 96, 128, 256, 112, 192, 128]
    for group in range(1, 9):
        for kind in range(3):
            dtype = torch.float32 if kind == 1 and group % 2 else torch.bfloat16
            size = sizes[(group + kind * 3) % len(sizes)]
            kv_heads = chance.choice([1, 2, 4, 8])
            sliding = chance.choice([1, 37, 100, 1000]) if kind == 1 else None
            shape = Shape(kv_heads * group, kv_heads, size, dtype, sliding, chance.random() < 0.5)
            width = chance.choice([1, 2, 3, 5, 6, 9, 16, 17, 31, 40, 64])
            width = (1, width, chance.choice([64, 33]))[kind]
            most = chance.choice([50, 700, 5000, 32768])
            yield shape, width, most, chance.choice([0, 64, 256]), kind == 2 and group % 2 == 0


def check(result: dict[str, Any]) -> None:
    """Random shapes against float64."""
    chance = random.Random(7)
    jobs, trees = [], []
    for shape, width, most, page_size, tree in cases(chance):
        batch = chance.choice([1, 3, 17, 64])
        while batch > 1 and batch * most * shape.kv_heads * shape.size > 3e8:
            batch //= 2
        starts = [chance.randrange(most - 1) for _ in range(batch)]
        starts[0] = max(0, most - width - chance.randrange(3))
        layer = Layer(shape, [start + width for start in starts], page_size, seed=len(jobs))
        for text, start in enumerate(starts):
            layer.fill(text, start)
        window = layer.window(list(range(batch)), starts, width)
        if tree:
            depth, seen = random_tree(width, batch, chance)
            place = window.position[:, :1] + depth
            window = replace(window, position=place, ancestors=seen)
        jobs.append((layer, window, layer.qkv(batch, width)))
        trees.append(tree)
    result["check_compile_s"] = compile_all(jobs)
    worst = {"float32": 0.0, "bfloat16": 0.0}
    for layer, window, qkv in jobs:
        rows = {0, window.ids.shape[0] - 1, chance.randrange(window.ids.shape[0])}
        expected = {row: layer.expected(window, qkv, row) for row in rows}
        got = layer.run(window, qkv)
        assert got.isfinite().all(), (layer.shape, window.ids.shape)
        for row, wanted in expected.items():
            error = (got[row].double() - wanted).abs().amax() / wanted.pow(2).mean().sqrt()
            name = str(layer.shape.dtype).removeprefix("torch.")
            worst[name] = max(worst[name], float(error))
            bound = 5e-2 if name == "bfloat16" else 1e-4
            where = f"{layer.shape} {tuple(window.ids.shape)} root {int(window.position[row, 0])}"
            assert error < bound, f"{where} page {layer.page_size}: off by {float(error)}"
    result["checked"] = len(jobs)
    result["worst_error_in_rms"] = worst
    print(f"checked {len(jobs)} shapes, {sum(trees)} trees; worst error / rms {worst}")


def wide(result: dict[str, Any]) -> None:
    """Prefill chunks against float64: first, with a past, sliding."""
    for sliding in (None, 500):
        layer = Layer(Shape(32, 8, 128, sliding=sliding, normed=True), [2000])
        layer.fill(0, 1000)
        for start, width in ((0, 777), (1000, 700)):
            window, qkv = layer.window([0], [start], width), layer.qkv(1, width)
            wanted = layer.expected(window, qkv, 0)
            got = layer.run(window, qkv)[0].double()
            # Of each node apart: the first of a text are averages of few values, large ones, and
            # rounding one of them to bfloat16 is a tenth of what is usual for all.
            usual = wanted.pow(2).mean(-1).sqrt()
            error = float(((got - wanted).abs().amax(-1) / usual).amax())
            assert error < 5e-2, (sliding, start, error)
            layer.fill(0, 1000)
    layer = Layer(Shape(4, 1, 64), [200])
    window, qkv = layer.window([0], [0], 100), layer.qkv(1, 100)
    wanted = layer.expected(window, qkv, 0)
    qkv[70, -1] = NAN
    got = layer.run(window, qkv)[0]
    assert (got[:70].double() - wanted[:70]).abs().amax() < 0.1
    assert got[70:].isnan().any(-1).all()
    result["wide"] = "right"
    print("wide: right")


def same(result: dict[str, Any]) -> None:
    """A node's output and cache, to the bit."""
    shapes = [
        Shape(32, 8, 128), Shape(32, 8, 64), Shape(16, 8, 128, normed=True),
        Shape(32, 8, 128, sliding=300), Shape(8, 1, 64, torch.float32),
    ]  # fmt: skip
    lengths = [1100, 30, 700, 2000]
    layers = [Layer(shape, lengths) for shape in shapes]
    jobs = []
    for layer in layers:
        for width in (1, 2, 4, 5, 8, 9, 17, 33, 65, 129):
            jobs.append((layer, layer.window([0], [0], width), layer.qkv(1, width)))
    result["same_compile_s"] = compile_all(jobs)
    compared, differing = 0, []
    for layer in layers:
        for text, length in enumerate(lengths):
            layer.fill(text, length)
        numbers = layer.qkv(1, NARROW)
        for start in (0, 990, 1024):
            single, cells = [], []
            for node in range(NARROW):
                window = layer.window([0], [start + node], 1)
                single.append(layer.run(window, numbers[node : node + 1])[0, 0])
                cells.append(layer.keys[:, window.address[0, 0]].clone())
            alone = torch.stack(single)
            for width in (*range(1, 65), 96, 128, 160, 255, NARROW):
                first = (width * 7) % (NARROW - width + 1)
                texts, starts = ([0], [start + first]) if width % 3 else ([3, 0, 2], [7, 0, 600])
                if len(texts) > 1:
                    starts[1] = start + first
                row = texts.index(0)
                qkv = layer.qkv(len(texts), width)
                qkv.view(len(texts), width, -1)[row] = numbers[first : first + width]
                window = layer.window(texts, starts, width)
                got = layer.run(window, qkv)[row]
                compared += width
                keys = layer.keys[:, window.address[row]].transpose(0, 1)
                if not torch.equal(got, alone[first : first + width]) or not torch.equal(
                    keys, torch.stack(cells[first : first + width])
                ):
                    differing.append((str(layer.shape), start, width))
    result["bits_compared"], result["bits_differ"] = compared, differing
    print(f"same: {compared} nodes compared, windows that differ: {len(differing)} {differing[:8]}")


SERVED = {  # name: shape, width
    "8b.w1": (Shape(32, 8, 128), 1),
    "8b.w6": (Shape(32, 8, 128), 6),
    "1b.w1": (Shape(32, 8, 64), 1),
}
BASE = Tuning()
TUNINGS = {
    "base": BASE,
    "plain": replace(BASE, pdl=False),
    "c64": replace(BASE, chunk=64),
    "c64s8": replace(BASE, chunk=64, streams=8),
    "c128s8": replace(BASE, chunk=128, streams=8),
    "c256": replace(BASE, chunk=256),
    "c256s8": replace(BASE, chunk=256, streams=8),
    "warps8": replace(BASE, warps=8),
}
# (batch, context) of the table.
PLACES = [(1, 16), (1, 128), (1, 400), (1, 640), (1, 2048), (8, 640), (8, 16384), (32, 640),
          (32, 16384)]  # fmt: skip


class Around:
    """The products before and after a layer's attention, their weights four times over."""

    def __init__(self, shape: Shape, width: int) -> None:
        wide = (shape.heads + 2 * shape.kv_heads) * shape.size
        narrow, kind = shape.heads * shape.size, shape.dtype
        gain = torch.ones(narrow, device=CUDA)
        self.x = prepare(torch.randn(width, narrow, device=CUDA).to(kind), gain)
        self.before, self.after = [], []
        for _ in range(4):
            before = (torch.randn(wide, narrow, device=CUDA) / narrow**0.5).to(kind)
            after = (torch.randn(narrow, narrow, device=CUDA) / narrow**0.5).to(kind)
            # A draft's single rows need no promise about other widths.
            self.before.append(Normed(gain, 1e-5, before, None, width > 1, False))
            self.after.append(Added(after, None, gain, width > 1))
        self.middle = torch.randn(width, narrow, device=CUDA).to(kind)


def timed(
    layer: Layer,
    window: Window,
    caches: list[tuple[Tensor, Tensor]],
    qkv: Tensor,
    around: Around | None = None,
    attending: bool = True,
) -> float:
    """Microseconds a launch, in a graph of one launch for each cache and at least 24. around:
    each launch between two products; not attending: the products alone."""
    plan = layer.planner.plan(window)
    rounds = max(1, -(-24 // len(caches)))

    def launches() -> None:
        for turn, (keys, values) in enumerate(caches * rounds):
            if around is None:
                layer.attend(qkv, keys, values, plan)
                continue
            middle, inside = around.middle, around.before[turn % 4](around.x)
            if attending:
                middle = layer.attend(inside, keys, values, plan)
            around.after[turn % 4](middle, around.x)

    launches()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launches()
    graph.replay()
    best = math.inf
    for _ in range(4):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        best = min(best, begin.elapsed_time(end))
    return best * 1e3 / (len(caches) * rounds)


def speed(result: dict[str, Any], places: list[tuple[int, int]]) -> None:
    """Two tables of times: launches of their own, and what one adds between two products."""
    jobs = []
    for shape, width in SERVED.values():
        for tuning in TUNINGS.values():
            layer = Layer(shape, [200], tuning=tuning)
            # Batches have wider tiles of rows.
            for batch in {1 if width == 1 else min(batch, 3) for batch, _ in places}:
                window = layer.window([0] * batch, [100] * batch, width)
                jobs.append((layer, window, layer.qkv(batch, width)))
    result["speed_compile_s"] = compile_all(jobs)
    result["tunings"] = {name: asdict(tuning) for name, tuning in TUNINGS.items()}
    table: dict[str, dict[str, list[float]]] = {}
    print("microseconds a launch (share of the bound); between: what it adds to two products")
    print("".ljust(24) + "".join(name.rjust(14) for name in TUNINGS))
    for name, (shape, width) in SERVED.items():
        around = Around(shape, width)
        for batch, context in places:
            size = 2 * batch * shape.kv_heads * context * shape.size * shape.dtype.itemsize
            layer = Layer(shape, [context + width] * batch)
            cells = layer.keys.shape
            caches = [
                (
                    torch.randn(cells, device=CUDA, dtype=shape.dtype),
                    torch.randn(cells, device=CUDA, dtype=shape.dtype),
                )
                for _ in range(max(2, min(64, int(2e8 / size))))
            ]
            window = layer.window(list(range(batch)), [context] * batch, width)
            qkv = layer.qkv(batch, width)
            for outer in (None, around) if batch == 1 else (None,):
                line = f"{name} b{batch} {context}" + (" between" if outer else "")
                row = table[line] = {}
                without = timed(layer, window, caches, qkv, outer, False) if outer else 0.0
                for label, tuning in TUNINGS.items():
                    layer.planner = DevicePlanner(
                        KVSpec(1, shape.kv_heads, shape.size, shape.dtype), shape.heads,
                        frozenset({None}), layer.turns, tuning,
                    )  # fmt: skip
                    micro = timed(layer, window, caches, qkv, outer) - without
                    row[label] = [round(micro, 2), round(size / BANDWIDTH * 1e6 / micro, 3)]
                texts = "".join("{:7.2f} ({:4.2f})".format(*row[label]) for label in TUNINGS)
                print(line.ljust(24) + texts, flush=True)
            del caches
    result["times"] = table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", default="check,wide,same,speed")
    parser.add_argument("--places", default="", help="batch x context, as 1x640,8x2048")
    options = parser.parse_args()
    result: dict[str, Any] = {
        "benchmark": "gpu_attention",
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
    }
    parts = {"check": check, "wide": wide, "same": same}
    for name in options.parts.split(","):
        begun = time.perf_counter()
        try:
            if name == "speed":
                given = [part.split("x") for part in options.places.split(",") if part]
                speed(result, [(int(b), int(c)) for b, c in given] or PLACES)
            else:
                parts[name](result)
        except Exception as error:  # the other parts are worth their time
            result.setdefault("failed", {})[name] = repr(error)[:500]
            print(f"{name} FAILED: {error!r}", flush=True)
        torch.cuda.synchronize()
        print(f"{name}: {time.perf_counter() - begun:.1f} s", flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()

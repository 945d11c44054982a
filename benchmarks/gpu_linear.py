"""The few-rows products on a GPU: are they right, the same to the bit, and how fast.

Right: random shapes, forms and row counts against float64. Same: a row of a bfloat16 product
alone and among up to 576 others, for every product of an 8B and a 1B Llama, and cuBLAS's rows
beside it. Fast: microseconds in a CUDA graph over weights that do not fit the second cache, and
the share of the bandwidth, for torch's product and ours. Last line JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import triton

from paceline.ops.compiling import compiling
from paceline.ops.device_linear import (
    TILE,
    Added,
    DeviceProduct,
    Gated,
    Normed,
    Tiles,
    choose_tiles,
)
from paceline.ops.norm import Residual

BANDWIDTH = 4.28e12  # bytes a second, a measured copy on an H200
EPS = 1e-5
SHAPES = {  # name: (n, k, form)
    "8b.qkv": (6144, 4096, "normed"),
    "8b.o": (4096, 4096, "added"),
    "8b.gate_up": (14336, 4096, "gated"),
    "8b.down": (4096, 14336, "added"),
    "8b.head": (128256, 4096, "head"),
    "1b.qkv": (3072, 2048, "normed"),
    "1b.o": (2048, 2048, "added"),
    "1b.gate_up": (8192, 2048, "gated"),
    "1b.down": (2048, 8192, "added"),
    "1b.head": (128256, 2048, "head"),
}
BYTES = 1 << 30  # of distinct weights in a timed graph
ROWS = (2, 6, 9, 16, 17, 32, 64, 96, 128, 192, 288, 320, 384, 576)  # of part `same`


def randn(*shape: int, dtype: torch.dtype = torch.bfloat16, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(*shape, device="cuda", dtype=dtype) * scale


class Case:
    """One product, its input, and what torch makes of them."""

    def __init__(
        self, n: int, k: int, form: str, rows: int, steady: bool = True,
        dtype: torch.dtype = torch.bfloat16, biased: bool = False,
    ) -> None:  # fmt: skip
        wide = 2 * n if form == "gated" else n
        self.n, self.k, self.form = n, k, form
        self.w = randn(wide, k, dtype=dtype, scale=k**-0.5)
        self.bias = randn(wide, dtype=dtype) if biased else None
        self.gain, self.after = randn(k, dtype=dtype), randn(n, dtype=dtype)
        self.x, self.residual = randn(rows, k, dtype=dtype), randn(rows, n, dtype=dtype)
        self.product = self.make(self.w, steady)

    def make(self, w: torch.Tensor, steady: bool) -> DeviceProduct:
        if self.form == "gated":
            return Gated(self.gain, EPS, w, self.bias, steady)
        if self.form == "added":
            return Added(w, self.bias, self.after, steady)
        return Normed(self.gain, EPS, w, self.bias, steady, self.form == "head")

    def run(self, product: Any, rows: int | None = None) -> torch.Tensor:
        x = self.x[:rows]
        if self.form == "added":
            out: torch.Tensor = product(x, Residual(self.residual[:rows])).hidden
            return out
        out = product(Residual(x))
        return out

    def alone(self) -> torch.Tensor:
        """The first three rows, each written with no others behind it."""
        return torch.cat([self.run(self.product, rows)[-1:] for rows in (1, 2, 3)])

    def reference(self) -> torch.Tensor:
        """In float64, with the rounding of the normed input to its dtype left in."""
        x, w = self.x.double(), self.w.double()
        bias = None if self.bias is None else self.bias.double()
        if self.form == "added":
            return F.linear(x, w, bias) + self.residual.double()
        scale = torch.rsqrt(x.pow(2).mean(1, keepdim=True) + EPS)
        z = F.linear((x * self.gain.double()) * scale, w, bias)
        return F.silu(z[:, : self.n]) * z[:, self.n :] if self.form == "gated" else z

    def torchs(self, w: torch.Tensor) -> torch.Tensor:
        return F.linear(self.x, w, self.bias)


def check(cases: int) -> dict[str, float]:
    """The greatest relative error (norm of the difference over the norm) by dtype and form."""
    draw, worst = random.Random(0), {}
    for _ in range(cases):
        dtype = draw.choice((torch.bfloat16, torch.bfloat16, torch.float32))
        form = draw.choice(("normed", "added", "gated", "head"))
        rows = draw.choice((1, 2, 3, 6, 9, 16, 17, 32, 33, 48, 64, 65, 100, 288, 576))
        n, k = draw.randrange(8, 700), 8 * draw.randrange(2, 300)
        case = Case(n, k, form, rows, draw.random() < 0.5, dtype, draw.random() < 0.3)
        want, got = case.reference(), case.run(case.product).double()
        error = ((got - want).norm() / want.norm()).item()
        assert error < (1e-2 if dtype is torch.bfloat16 else 1e-5), (form, rows, n, k, dtype, error)
        key = f"{str(dtype)[6:]} {form}"
        worst[key] = max(worst.get(key, 0.0), error)
    return worst


def same() -> list[dict[str, Any]]:
    """Per product and row count: rows equal to the bit to the same rows alone; cuBLAS's too."""
    out = []
    for name, (n, k, form) in SHAPES.items():
        case = Case(n, k, form, max(ROWS))
        alone, theirs = case.alone(), F.linear(case.x[:1], case.w)
        for rows in ROWS:
            got = case.run(case.product, rows)[:3]
            out.append({
                "product": name, "rows": rows,
                "identical": torch.equal(got, alone[: len(got)]),
                "cublas_identical": bool(torch.equal(F.linear(case.x[:rows], case.w)[:1], theirs)),
            })  # fmt: skip
    return out


def timed(fill: Callable[[], Any], repeats: int = 7) -> float:
    """Median seconds of a replay of the graph that `fill` records."""
    fill()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        fill()
    times = []
    for _ in range(repeats):
        a, b = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        a.record()
        graph.replay()
        b.record()
        b.synchronize()
        times.append(a.elapsed_time(b) / 1e3)
    return statistics.median(times)


def speed(rows_wanted: tuple[int, ...]) -> list[dict[str, Any]]:
    out = []
    for name, (n, k, form) in SHAPES.items():
        for rows in rows_wanted:
            steady = not (name.startswith("1b") and rows <= 2)
            case = Case(n, k, form, rows, steady)
            bytes_ = case.w.numel() * 2
            copies = [case.w] + [case.w.clone() for _ in range(max(1, min(16, BYTES // bytes_)))]
            made = [case.make(w, steady) for w in copies]
            ours = timed(lambda c=case, m=made: [c.run(p) for p in m]) / len(copies)
            theirs = timed(lambda c=case, w=copies: [c.torchs(one) for one in w]) / len(copies)
            out.append({"product": name, "rows": rows, "us": ours * 1e6,
                        "torch_us": theirs * 1e6, "share": bytes_ / ours / BANDWIDTH,
                        "torch_share": bytes_ / theirs / BANDWIDTH})  # fmt: skip
            share = f"({bytes_ / ours / BANDWIDTH:.2f})"
            print(f"{name:11s} rows {rows:3d}: {ours * 1e6:7.2f} us {share}"
                  f"  torch, product alone: {theirs * 1e6:7.2f}", flush=True)  # fmt: skip
            del case, copies, made
        torch.cuda.empty_cache()
    return out


def candidates(rows: int, form: str) -> list[Tiles]:
    """Ways to cut a product of so many rows, few enough to try them all."""
    found = []
    blocks = [b for b in (16, 32, 64, 128, 256) if min(rows, 512) / 4 <= b < 2 * max(16, rows)]
    for block, columns in itertools.product(blocks, (TILE, 2 * TILE)):
        for inner, depth, warps in itertools.product((64, 128), (3, 4, 5, 7), (4, 8)):
            weights = columns * (2 if form == "gated" else 1)
            size = 2 * depth * inner * (weights + block)
            few = block * weights < 128 * 64 and warps == 8
            many = block * weights > 128 * 128 and warps == 4
            if columns > TILE and (form == "added" or block < 64):
                continue
            if 60_000 < size < 225_000 and not few and not many and block * weights <= 256 * 128:
                found.append(Tiles(block, columns, inner, depth, warps))
    return found


def tiles(rows_wanted: tuple[int, ...], only: str) -> list[dict[str, Any]]:
    """For every product and number of rows: microseconds of each way to cut it, the best first,
    and whether the first three rows' bits are those of each alone."""
    out = []
    cases = {
        (name, rows): Case(n, k, form, rows, True)
        for name, (n, k, form) in SHAPES.items() for rows in rows_wanted
        if name.startswith(only)
    }  # fmt: skip
    with compiling(torch.device("cuda")):
        for (_, rows), case in cases.items():
            case.alone()
            for way in [*candidates(rows, case.form)]:
                case.product.tiles = way
                case.run(case.product)
    for (name, rows), case in cases.items():
        case.product.tiles = None
        alone = case.alone()
        size = case.w.numel() * 2
        copies = [case.w] + [case.w.clone() for _ in range(max(1, min(12, BYTES // size)))]
        made = [case.make(w, True) for w in copies]
        usual = choose_tiles(rows, case.n, case.form == "gated", False, case.form == "added")
        theirs = timed(lambda c=case, w=copies: [c.torchs(one) for one in w], 5) / len(copies)
        found = []
        for way in {usual: None} | dict.fromkeys(candidates(rows, case.form)):
            for product in made:
                product.tiles = way
            try:
                same = torch.equal(case.run(made[0])[:3], alone)
                micro = timed(lambda c=case, m=made: [c.run(p) for p in m], 4) / len(copies) * 1e6
                found.append([round(micro, 2), same, *dataclasses.astuple(way)])
            except Exception as problem:
                found.append([1e9, False, *dataclasses.astuple(way), repr(problem)[:80]])
        line = {"product": name, "rows": rows, "torch_us": round(theirs * 1e6, 2),
                "usual": found[0], "ways": sorted(found)[:6], "tried": len(found),
                "all_same": all(one[1] for one in found if one[0] < 1e9)}  # fmt: skip
        out.append(line)
        print(f"{name:11s} {rows:3d} torch {line['torch_us']:7.2f} usual {found[0][0]:7.2f} "
              f"{line['all_same']} best {line['ways'][:3]}", flush=True)  # fmt: skip
        del copies, made
        torch.cuda.empty_cache()
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", default="check,same,speed")
    parser.add_argument("--cases", type=int, default=120)
    parser.add_argument("--rows", default="1,2,6,9,16,32,64,128,288")
    parser.add_argument("--only", default="", help="part tiles: products whose names begin so")
    parser.add_argument("--out")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    result: dict[str, Any] = {
        "benchmark": "gpu_linear", "torch": torch.__version__, "triton": triton.__version__,
        "device": torch.cuda.get_device_name(), "failed": {},
    }  # fmt: skip
    parts: dict[str, Callable[[], Any]] = {
        "check": lambda: check(arguments.cases),
        "same": same,
        "speed": lambda: speed(tuple(int(rows) for rows in arguments.rows.split(","))),
        "tiles": lambda: tiles(
            tuple(int(rows) for rows in arguments.rows.split(",")), arguments.only
        ),
    }
    for part in arguments.parts.split(","):
        began = time.time()
        try:
            with torch.inference_mode():
                result[part] = parts[part]()
        except Exception as problem:
            result["failed"][part] = repr(problem)
        print(f"{part}: {time.time() - began:.0f} s {result['failed'].get(part, '')}", flush=True)
    if "same" in result:
        result["differ"] = [row for row in result["same"] if not row["identical"]]
    if arguments.out:
        with open(arguments.out, "w") as file:
            json.dump(result, file, indent=1)
    print(
        json.dumps(
            {key: value for key, value in result.items() if key not in ("same", "speed", "tiles")}
        )
    )


if __name__ == "__main__":
    main()

"""Fused drawing and accepting on a GPU: the same tokens as the reference's, and the time it takes.

First equality: hashes to the bit, noise by its rounding, draws and verdicts over random shapes and
parameters; every draw that differs is listed with the gap between the two tokens' scores. Then
microseconds a call inside a CUDA graph, the reference beside it. Last line JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from paceline.ops import triton_noise
from paceline.ops.choose import FusedChooser
from paceline.speculation.choose import Chooser, ReferenceChooser, Terms
from paceline.speculation.noise import GOLDEN, Stream, gumbel, keys, mix_
from paceline.speculation.sampling import SamplingTensors, distribution
from paceline.speculation.verify import RULES
from paceline.types import Draft, SamplingFlags

REFERENCE = ReferenceChooser()
SHAPES = [(1, 1), (1, 6), (1, 9), (8, 6)]  # B, W: R = 1, 6, 9, 48
CALLS, REPLAYS = 20, 30

_key, _hashed, _gumbel = triton_noise.key, triton_noise.hashed, triton_noise.gumbel


@triton.jit
def noise_kernel(seeds, places, hashes, noises, size, BLOCK: tl.constexpr):
    row, token = tl.program_id(1), tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row_key = _key(tl.load(seeds + row), tl.load(places + row))
    mask = token < size
    tl.store(hashes + row * size + token, _hashed(row_key, token).to(tl.int64), mask=mask)
    tl.store(noises + row * size + token, _gumbel(row_key, token, True), mask=mask)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def compare_noise(rows: int, vocab: int) -> dict[str, Any]:
    """Hashes must be equal; of the noise, how many numbers are not, and by how many roundings."""
    seeds = torch.randint(-(2**63), 2**63 - 1, (rows,), device="cuda")
    places = torch.randint(0, 2**20, (rows,), device="cuda")
    hashes = torch.empty(rows, vocab, dtype=torch.int64, device="cuda")
    noises = torch.empty(rows, vocab, device="cuda")
    noise_kernel[(triton.cdiv(vocab, 1024), rows)](seeds, places, hashes, noises, vocab, BLOCK=1024)
    row_keys = keys(seeds, Stream.TARGET, places[:, None])
    tokens = torch.arange(1, vocab + 1, device="cuda")
    want = (mix_(row_keys + tokens * GOLDEN) >> 32) & 0xFFFFFFFF
    theirs = gumbel(row_keys, vocab, torch.float32)[:, 0]
    return {
        "hashes": rows * vocab,
        "hashes_unequal": int((hashes != want).sum()),
        "noise_unequal": int((noises != theirs).sum()),
        "noise_greatest_difference": float((noises - theirs).abs().max()),
    }


def parameters(rows: list[dict[str, Any]]) -> SamplingTensors:
    """Sampling tensors of the sizes that the engine's slots have."""

    def column(name: str, default: float) -> Tensor:
        return torch.tensor([float(row.get(name, default)) for row in rows], device="cuda")

    ids = torch.zeros(len(rows), 300, dtype=torch.int64)
    values = torch.zeros(len(rows), 300)
    stops = torch.full((len(rows), 64), -1)
    for b, row in enumerate(rows):
        for n, (token, value) in enumerate(row.get("bias", {}).items()):
            ids[b, n], values[b, n] = token, value
        for n, token in enumerate(row.get("stops", ())):
            stops[b, n] = token
    return SamplingTensors(
        temperature=column("temperature", 1.0),
        top_k=column("top_k", 0).long(),
        top_p=column("top_p", 1.0),
        min_p=column("min_p", 0.0),
        repetition=column("repetition", 1.0),
        presence=column("presence", 0.0),
        frequency=column("frequency", 0.0),
        bias_ids=ids.cuda(),
        bias_values=values.cuda(),
        stop_ids=stops.cuda(),
        min_position=column("min_position", 0).long(),
        processed=column("processed", 0).bool(),
    )


def random_case(source: random.Random) -> tuple[Terms, Tensor, Tensor]:
    """Terms, logits [B, W, V] and positions [B, W]."""
    batch, width = source.choice([1, 1, 2, 4, 8]), source.randint(1, 9)
    vocab = source.choice([1, 77, 1000, 32000, 50257, 128256, 151936, source.randint(2, 160000)])
    flags = SamplingFlags(
        draws=source.random() < 0.8,
        bias=source.random() < 0.3,
        min_tokens=source.random() < 0.3,
        truncation=source.random() < 0.4,
        top_k=source.random() < 0.3,
        top_p=source.random() < 0.3,
    )
    rows = [
        {
            "temperature": source.choice([0.0, 0.1, 0.8, 1.0, 1.5]),
            "bias": {source.randrange(vocab): source.uniform(-9, 9) for _ in range(9)},
            "stops": [source.randrange(vocab) for _ in range(3)],
            "min_position": source.choice([0, 10**6]) if vocab > 9 else 0,
            "min_p": source.choice([0.0, 0.05]),
            "top_k": source.choice([0, 50]),
            "top_p": source.choice([1.0, 0.9]),
        }
        for _ in range(batch)
    ]
    for row in rows:
        row["stops"] = list(dict.fromkeys(row["stops"]))
    seeds = torch.tensor([source.getrandbits(63) for _ in rows], device="cuda")
    logits = torch.randn(batch, width, vocab, device="cuda") * source.choice([0.5, 3.0, 12.0])
    if source.random() < 0.3:
        logits = logits.bfloat16().float()  # many exact ties
    position = torch.tensor([[source.randrange(9000)] for _ in rows], device="cuda")
    position = position + torch.arange(width, device="cuda")
    return Terms(RULES["match"], parameters(rows), flags, seeds), logits, position


def gaps(terms: Terms, logits: Tensor, position: Tensor, own: Tensor, want: Tensor) -> list[float]:
    """How much better the reference's token is than the kernel's, where they differ."""
    scores = distribution(logits, terms.params, terms.flags, position + 1, None, one_hot=False)
    if terms.flags.draws:
        scores = scores + gumbel(
            keys(terms.seeds, Stream.TARGET, position + 1), logits.shape[2], scores.dtype
        )
    chosen = [scores.gather(2, tokens.unsqueeze(2)).squeeze(2) for tokens in (own, want)]
    gap: list[float] = (chosen[1] - chosen[0])[own != want].tolist()
    return gap


def compare_draws(cases: int, seed: int) -> dict[str, Any]:
    """Tokens of every row of logits, and verdicts on drafts that are right for a while."""
    source = random.Random(seed)
    fused = FusedChooser()
    draws, verdicts, wrong, unequal = 0, 0, 0, []
    for _ in range(cases):
        terms, logits, position = random_case(source)
        batch, width, vocab = logits.shape
        length = position[:, 0] + 1
        want, _ = REFERENCE.propose(terms, logits, length, 0, None)
        own, _ = fused.propose(terms, logits, length, 0, None)
        draws += own.numel()
        unequal += gaps(terms, logits, position, own, want)
        # A draft of the kernels' own tokens, so that a draw apart is not counted again here.
        tokens = own[:, :-1].clone()
        spoiled = torch.rand(tokens.shape, device="cuda") < 0.15
        tokens[spoiled] = (tokens[spoiled] + 1) % vocab
        count = torch.randint(0, width, (batch,), device="cuda")
        node = torch.arange(width - 1, device="cuda")
        agree = (tokens == own[:, :-1]) & (node < count[:, None])
        accepted = agree.cumprod(1).sum(1)
        kept = own * (torch.arange(width, device="cuda") <= accepted[:, None])
        judged = fused.judge(terms, logits, Draft(tokens, count, count * 0), position, None)
        verdicts += batch
        same = (
            (judged.tokens == kept).all(1) & (judged.accepted == accepted) & ~judged.broken.any(1)
        )
        same &= judged.evaluated == torch.minimum(accepted + 1, count)
        wrong += int((~same).sum())
    return {
        "cases": cases,
        "draws": draws,
        "draws_unequal": len(unequal),
        "gaps": sorted(unequal, reverse=True)[:20],
        "verdicts": verdicts,
        "verdicts_unequal": wrong,
    }


def time_graph(call: Callable[[], object]) -> float:
    """Microseconds of one call among CALLS in a CUDA graph: the median of REPLAYS."""
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        for _ in range(2):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            call()
    times = []
    for _ in range(REPLAYS):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        graph.replay()
        ended.record()
        ended.synchronize()
        times.append(began.elapsed_time(ended) * 1e3 / CALLS)
    return round(statistics.median(times), 2)


def time_choosers(vocab: int, deadline: float) -> list[dict[str, Any]]:
    """judge and propose by shape and temperature; blocks and programmatic launch as variants."""
    variants: list[tuple[str, Chooser]] = [("fused", FusedChooser())]
    variants += [(f"block {size}", FusedChooser(block=size)) for size in (512, 2048, 8192)]
    variants += [("pdl", FusedChooser(pdl=True)), ("reference", REFERENCE)]
    figures: list[dict[str, Any]] = []
    for batch, width in SHAPES:
        logits = torch.randn(batch, width, vocab, device="cuda") * 3
        position = (100 + torch.arange(width, device="cuda")).expand(batch, width).contiguous()
        count = torch.full((batch,), width - 1, device="cuda")
        draft = Draft(torch.zeros(batch, width - 1, dtype=torch.int64, device="cuda"), count, count)
        length = position[:, 0].contiguous()
        for heat in (0.0, 0.8):
            params = parameters([{"temperature": heat}] * batch)
            terms = Terms(RULES["match"], params, SamplingFlags(draws=heat > 0), count)
            line: dict[str, Any] = {"R": batch * width, "B": batch, "temperature": heat}
            for name, chooser in variants:
                if time.monotonic() > deadline:
                    break
                try:
                    line[f"judge {name}"] = time_graph(
                        partial(chooser.judge, terms, logits, draft, position, None)
                    )
                    line[f"propose {name}"] = time_graph(
                        partial(chooser.propose, terms, logits[:, :1], length, 3, None)
                    )
                except Exception as error:  # one variant that a machine lacks is no reason to stop
                    line[f"{name} error"] = repr(error)[:300]
                    torch.cuda.synchronize()
            say(json.dumps(line))
            figures.append(line)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--vocab", type=int, default=128256)
    parser.add_argument("--cases", type=int, default=150, help="random cases compared")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=50, help="variants stop after this")
    args = parser.parse_args()
    began = time.monotonic()
    torch.manual_seed(args.seed)
    with torch.inference_mode():
        noise = compare_noise(32, args.vocab)
        say(json.dumps(noise))
        draws = compare_draws(args.cases, args.seed)
        say(json.dumps(draws))
        figures = time_choosers(args.vocab, began + args.seconds)
    ok = not noise["hashes_unequal"] and not draws["verdicts_unequal"]
    ok &= all(gap < 1e-5 for gap in draws["gaps"])
    result = {
        "ok": ok,
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "vocab": args.vocab,
        "noise": noise,
        "draws": draws,
        "us": figures,
        "seconds": round(time.monotonic() - began, 1),
    }
    print(json.dumps(result))
    sys.exit(not ok)


if __name__ == "__main__":
    main()

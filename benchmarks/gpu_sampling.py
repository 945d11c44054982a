"""What drawing a token takes on a GPU, and whether the kernels' scores are torch's. See README.md.

`same` holds the truncating kernels against torch on random logits; `speed` times a draw in a graph;
`rounds` writes texts of one kind after the other and tells a round's time.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from typing import Any

import torch
from calibrated import add_pair_options, make_ready
from gpu_common import Bench, digits, fixed, median, open_engine, prompts, quiesce, say
from harness import Job, Parts, add_options, choose_parts, measure, shrink
from torch import Tensor

from paceline import Engine
from paceline.ops.choose import FusedChooser
from paceline.speculation.choose import Chooser, ReferenceChooser, Terms
from paceline.speculation.sampling import SamplingTensors, distribution
from paceline.speculation.verify import RULES
from paceline.types import Draft, SamplingFlags

SMALL = {
    "vocab": 700, "slots": 3, "new_tokens": 12, "prompt_tokens": 20, "repeats": 1, "k": 2,
    "target_shape": "", "draft_shape": "",
}  # fmt: skip
SIZES = ((1, 1), (1, 6), (4, 6), (16, 3))  # rows and nodes that are compared
TIMED = ((1, 1), (1, 6), (16, 6), (64, 1), (64, 6))
IN_TORCH = 64  # positions at once up to which torch's own form is timed
# Spread of the logits; of the third and the fifth every tenth is −inf.
LAWS = ("1", "2", "4, in bfloat16", "0.3", "8", "2, whole numbers")
TEMPERATURES = (0.2, 0.5, 0.8, 1.1, 0.0)
TOP_K, TOP_P = (0, 1, 20, 50, 1000, 100_000), (1.0, 0.9, 0.95, 0.5, 0.999, 1e-5)
MIN_P = (0.0, 0.0, 0.05)
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "temperature": {"temperature": 0.8},
    "top_p": {"temperature": 0.8, "top_p": 0.95},
    "top_k, top_p": {"temperature": 0.8, "top_k": 50, "top_p": 0.95},
    "log-probabilities": {"temperature": 0.8, "logprobs": 5},
    "penalty": {"temperature": 0.8, "repetition_penalty": 1.1},
}


def logits_of(bench: Bench, law: int, rows: int, width: int) -> Tensor:
    """Random logits [rows, width, vocabulary] of one of `LAWS`, float32."""
    x = torch.randn(rows, width, bench.options.vocab, device=bench.device)
    x *= (1.0, 2.0, 4.0, 0.3, 8.0, 2.0)[law]
    if law in (2, 4):
        x[torch.rand_like(x) < 0.1] = -torch.inf
        x[..., 0] = 0.0
    if law == 2:
        return x.bfloat16().float()
    return x.round() if law == 5 else x


def terms_of(
    bench: Bench,
    flags: SamplingFlags,
    temperature: list[float],
    top_k: list[int],
    top_p: list[float],
    min_p: list[float],
) -> Terms:
    """A row of parameters for each entry."""
    rows, device = len(temperature), bench.device

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device)

    zeros, ones = column([0.0] * rows), column([1.0] * rows)
    ids = torch.zeros(rows, 4, dtype=torch.int64, device=device)
    params = SamplingTensors(
        temperature=column(temperature),
        top_k=torch.tensor(top_k, device=device),
        top_p=column(top_p),
        min_p=column(min_p),
        repetition=ones,
        presence=zeros,
        frequency=zeros,
        bias_ids=ids,
        bias_values=ids.float(),
        stop_ids=ids - 1,
        min_position=ids[:, 0],
        processed=ids[:, 0] > 0,
    )
    return Terms(RULES["match"], params, flags, torch.arange(rows, device=device) * 7919)


def window(bench: Bench, rows: int, width: int) -> tuple[Draft, Tensor]:
    """A draft of zeros, none of which is to be accepted, and the nodes' positions."""
    none = torch.zeros(rows, dtype=torch.int64, device=bench.device)
    draft = Draft(none.unsqueeze(1).expand(rows, width - 1).contiguous(), none, none)
    return draft, torch.arange(width, device=bench.device).expand(rows, width) + 10


DRAWN = SamplingFlags(draws=True, bias=True, min_tokens=True)


def same(bench: Bench) -> dict[str, Any]:
    """Scores to the bit, and the tokens drawn from them."""
    torch.manual_seed(1)
    flags = replace(DRAWN, truncation=True, processed=True)
    fused, reference = FusedChooser(native=bench.cuda), ReferenceChooser()
    result = {"rows": 0, "differ": 0, "draws_differ": 0, "laws": LAWS, "where": list[Any]()}
    for law in range(len(LAWS)):
        for rows, width in SIZES:
            logits = logits_of(bench, law, rows, width)
            every = range(rows)
            terms = terms_of(
                bench,
                flags,
                [TEMPERATURES[i % len(TEMPERATURES)] for i in every],
                [TOP_K[(i + law) % len(TOP_K)] for i in every],
                [TOP_P[(5 * i + law) % len(TOP_P)] for i in every],
                [MIN_P[i % len(MIN_P)] for i in every],
            )
            draft, position = window(bench, rows, width)
            mine = fused.judge(terms, logits, draft, position, None)
            theirs = reference.judge(terms, logits, draft, position, None)
            want = distribution(logits, terms.params, flags, position + 1, one_hot=False)
            assert mine.scores is not None
            # A greedy row has no noise, so that it need not be cut to its best.
            drawn = (terms.params.temperature > 0).view(-1, 1, 1)
            got = torch.where(drawn, mine.scores, mine.scores.argmax(-1, True))
            wrong = (got != torch.where(drawn, want, want.argmax(-1, True))).any(-1)
            result["rows"] += rows * width
            result["differ"] += int(wrong.sum())
            result["draws_differ"] += int((mine.tokens[:, 0] != theirs.tokens[:, 0]).sum())
            if wrong.any():
                result["where"].append([LAWS[law], rows, width])
    say(f"  {result['rows']} rows, {result['differ']} differ")
    return result


def speed(bench: Bench) -> dict[str, Any]:
    """Microseconds of judging a window, replayed as a graph: medians of `repeats`. `stale`: kinds
    of which the last replay's tokens are not the first run's."""
    found: dict[str, Any] = {"vocab": bench.options.vocab, "us": {}, "stale": list[str]()}
    if not bench.cuda:
        return found | {"skipped": "a graph needs a GPU"}
    whole = replace(DRAWN, truncation=True)
    kinds = {"without": (DRAWN, 0, 1.0), "unused": (whole, 0, 1.0), "top_p": (whole, 0, 0.95),
             "top_k, top_p": (whole, 50, 0.95)}  # fmt: skip
    for rows, width in TIMED:
        logits = logits_of(bench, 1, rows, width)
        for name, (flags, k, p) in kinds.items():
            terms = terms_of(bench, flags, [0.8] * rows, [k] * rows, [p] * rows, [0.0] * rows)
            choosers: dict[str, Chooser] = {"": FusedChooser()}
            if name == "top_k, top_p" and rows * width <= IN_TORCH:
                choosers[" in torch"] = ReferenceChooser()
            for form, chooser in choosers.items():
                key = f"{rows} x {width}, {name}{form}"
                found["us"][key], fresh = _graph_us(bench, chooser, terms, logits)
                if not fresh:
                    found["stale"].append(key)
                say(f"  {key}: {found['us'][key]} µs")
    return found


def _graph_us(bench: Bench, chooser: Chooser, terms: Terms, logits: Tensor) -> tuple[float, bool]:
    """(Time of a replay, whether it still draws what was drawn before it was recorded)."""
    draft, position = window(bench, *logits.shape[:2])

    def work() -> Tensor:
        return chooser.judge(terms, logits, draft, position, None).tokens

    first = work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tokens = work()
    times = []
    for _ in range(max(3, bench.options.repeats)):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(50):
            graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 50 * 1e3)
    return digits(median(times), 4), bool(torch.equal(tokens, first))


def rounds(bench: Bench) -> dict[str, Any]:
    """Milliseconds of a round, one text and as many as there are slots, plain and with k drafts."""
    o = bench.options
    engine = open_engine(bench, o.k, slots=o.slots, max_length=o.prompt_tokens + o.new_tokens + 64)
    asked = prompts(bench, o.slots, o.prompt_tokens)
    result: dict[str, Any] = {"ms": {}}
    for count in (1, o.slots):
        for k in (0, o.k):
            engine.fix_k(k)
            for _ in range(o.repeats):  # in turns, so that a slow moment slows all alike
                for name, more in KINDS.items():
                    took = _round_ms(engine, asked[:count], o.new_tokens, more)
                    key = f"{count} at a time, K = {k}, {name}"
                    result["ms"].setdefault(key, []).append(took)
            bench.keep(result)
            for name in KINDS:
                key = f"{count} at a time, K = {k}, {name}"
                say(f"  {key}: {result['ms'][key]} ms")
    return result


def _round_ms(engine: Engine, asked: list[list[int]], tokens: int, more: dict[str, Any]) -> float:
    before, began = engine.stats(), time.perf_counter()
    handles = [engine.submit(ids, fixed(tokens, seed=1, **more)) for ids in asked]
    for handle in handles:
        handle.result(300)
    quiesce(engine)
    after = engine.stats()
    spent = after.decode_seconds - before.decode_seconds
    assert 0 < spent <= time.perf_counter() - began
    return digits(1e3 * spent / (after.rounds - before.rounds), 4)


PARTS: Parts = {"same": same, "speed": speed, "rounds": rounds}


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add_options(parser, PARTS, 300.0)
    add_pair_options(add)
    add("--vocab", type=int, default=128256, help="tokens of the random logits")
    add("--slots", type=int, default=64)
    add("--k", type=int, default=5)
    add("--prompt-tokens", type=int, default=64)
    add("--new-tokens", type=int, default=96)
    add("--repeats", type=int, default=2)
    options = parser.parse_args()
    shrink(options, SMALL)
    choose_parts(parser, options, PARTS)
    return options


def summary(results: dict[str, Any]) -> dict[str, Any]:
    """The last line."""
    parts = results["parts"]
    kept = {"same": ("rows", "differ", "draws_differ"), "speed": ("us", "stale"), "rounds": ("ms",)}
    told = {
        name: {key: parts[name][key] for key in keys if key in parts[name]}
        for name, keys in kept.items()
        if name in parts
    }
    return {"benchmark": "gpu_sampling", "machine": results["machine"]} | told


def main() -> None:
    """Measure and print the result."""
    options = parse()
    make_ready(options)
    measure(Job("gpu_sampling", __file__, PARTS, summary), options)


if __name__ == "__main__":
    main()

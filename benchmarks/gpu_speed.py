"""Parts `bandwidth`, `stream` and `mini` of `gpu_round.py`: what a user sees, the memory's rate.

A text is timed by its events through `Engine.stream`: the first brings one token (TTFT), the rate
is that of the tokens behind it.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from gpu_common import (
    Bench,
    Watch,
    digits,
    first_difference,
    fixed,
    free,
    median,
    open_engine,
    prompts,
    quiesce,
    round_bytes,
    say,
    settle,
    shares,
    step_bytes,
)  # fmt: skip

from paceline import Engine, SamplingParams
from paceline.engine.capture import CapturedRounds


def bandwidth(bench: Bench) -> dict[str, Any]:
    """Copy rate by a kernel, counting bytes read and written, and a large product's rate."""
    size = (1 << 30) if bench.cuda else (1 << 22)  # elements of four bytes
    found = _copies(bench, size)
    free(bench)
    side = 8192 if bench.cuda else 256
    x, y = (torch.randn(side, side, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    product = 2 * side**3 / _timed(bench, lambda: x @ y)
    bench.rate = found["add_kernel"] if bench.cuda else bench.rate
    return {
        "bytes_per_second": {name: digits(rate) for name, rate in found.items()},
        "rate_used": digits(bench.rate),
        "bf16_product_flops": digits(product),
        "bytes": 4 * size,
        "product_side": side,
    }


def _copies(bench: Bench, size: int) -> dict[str, float]:
    a = torch.randn(size, device=bench.device)
    b = torch.empty_like(a)
    return {
        "add_kernel": 8 * size / _timed(bench, lambda: torch.add(a, 0, out=b)),
        "copy": 8 * size / _timed(bench, lambda: b.copy_(a)),
        "read_only_sum": 4 * size / _timed(bench, lambda: a.sum()),
    }


def _timed(bench: Bench, work: Any, repeats: int = 15) -> float:
    for _ in range(3):
        work()
    watch = Watch(bench.device)
    watch.mark()
    for _ in range(repeats):
        work()
        watch.mark()
    return median(watch.seconds())


@dataclass(slots=True)
class Text:
    """One text as a user got it. rounds: events; seconds: behind the first event."""

    ids: list[int]
    rounds: int
    ttft: float
    seconds: float
    drafted: int
    evaluated: int
    accepted: int

    @property
    def rate(self) -> float:
        return (len(self.ids) - 1) / self.seconds if self.seconds else 0.0


def write(bench: Bench, engine: Engine, ids: list[int], params: SamplingParams, k: int) -> Text:
    """Write one text and time it."""
    settle(bench)
    totals = engine.stats()
    before = (totals.drafted, totals.evaluated, totals.accepted)
    out: list[int] = []
    rounds, first = 0, 0.0
    began = time.perf_counter()
    for event in engine.stream(ids, params, k=k):
        out += event.token_ids
        rounds += bool(event.token_ids)
        if rounds == 1 and not first:
            first = time.perf_counter()
    ended = time.perf_counter()
    quiesce(engine)
    totals = engine.stats()
    counted = (totals.drafted, totals.evaluated, totals.accepted)
    gained = (after - was for was, after in zip(before, counted, strict=True))
    return Text(out, rounds, first - began, ended - first, *gained)


def figures(texts: list[Text]) -> dict[str, Any]:
    """Medians over texts, and counts over all of them."""
    evaluated, drafted = sum(t.evaluated for t in texts), sum(t.drafted for t in texts)
    accepted, rounds = sum(t.accepted for t in texts), sum(t.rounds - 1 for t in texts)
    behind = sum(len(t.ids) - 1 for t in texts)  # a text's first round has no draft yet
    return {
        "tok_s": digits(median(t.rate for t in texts)),
        "tok_s_each": [digits(t.rate, 4) for t in texts],
        "ttft_ms": digits(median(t.ttft for t in texts) * 1e3),
        "round_ms": digits(median(t.seconds / max(1, t.rounds - 1) for t in texts) * 1e3),
        "tokens_per_round": digits(behind / rounds) if rounds else None,
        "acceptance_rate": digits(accepted / evaluated) if evaluated else None,
        "draft_efficiency": digits(accepted / drafted) if drafted else None,
        "rounds": rounds,
        "tokens": sum(len(t.ids) for t in texts),
    }


def compared(texts: list[Text], others: list[Text]) -> dict[str, Any]:
    """Whether two lists of texts are the same, token by token."""
    differ = [first_difference(a.ids, b.ids) for a, b in zip(texts, others, strict=True)]
    return {
        "identical": all(place is None for place in differ),
        "tokens_compared": sum(len(t.ids) for t in others),
        "first_differences": [[i, p] for i, p in enumerate(differ) if p is not None],
    }


def stream(bench: Bench) -> dict[str, Any]:
    """Plain and speculative text of the pair, batch 1, greedy, turn by turn in one run."""
    o = bench.options
    length, tokens = o.prompt_tokens, o.new_tokens
    params, asked = fixed(tokens), prompts(bench, o.prompts, length)
    room = {"slots": 1, "max_length": length + tokens}
    average = length + tokens // 2
    plain = open_engine(bench, 0, **room)
    result: dict[str, Any] = {
        "prompt_tokens": length, "new_tokens": tokens, "prompts": len(asked), "repeats": o.repeats,
    }  # fmt: skip
    headline = open_engine(bench, o.k, **room)
    for engine, k in ((plain, 0), (headline, o.k)):
        write(bench, engine, asked[-1], params, k)  # warms clocks and caches
    ours: list[Text] = []
    theirs: list[Text] = []
    for repeat in range(o.repeats):
        for number, ids in enumerate(asked):
            turns = [(plain, 0, ours), (headline, o.k, theirs)]
            for engine, k, into in turns if (number + repeat) % 2 else turns[::-1]:
                into.append(write(bench, engine, ids, params, k))
    step = step_bytes(o.target, o.dtype, 1, average)
    result["plain"] = figures(ours) | shares(bench, step, _per_round(ours))
    result[f"k={o.k}"] = _speculative(bench, theirs, ours, o.k, average)
    say(f"  plain {result['plain']['tok_s']}, k = {o.k} {result[f'k={o.k}']['tok_s']} tok/s")
    bench.keep(result)
    del plain, headline, engine, turns
    free(bench)
    others = [k for k in o.ks if k != o.k]
    if not others:
        return result
    widest = open_engine(bench, max(others), capture=not bench.cuda, **room)
    if bench.cuda:  # by itself an engine records those draft lengths that its policy chooses from
        loop = widest._loop
        rounds = widest._driver.ask(lambda: CapturedRounds(loop.machine, others))
        widest._driver.ask(lambda: setattr(loop, "rounds", rounds))
        del loop, rounds
    for k in others:
        try:
            write(bench, widest, asked[-1], fixed(64), k)
            chosen = asked[: o.other_prompts]
            spec = [write(bench, widest, ids, params, k) for ids in chosen]
            result[f"k={k}"] = _speculative(bench, spec, ours[: len(spec)], k, average)
            say(f"  k = {k}: {result[f'k={k}']['tok_s']} tok/s")
        except Exception as error:
            result[f"k={k}"] = {"error": repr(error)}
        bench.keep(result)
    speeds = {k: result[f"k={k}"].get("tok_s", 0.0) for k in {*others, o.k}}
    result["best_k"] = max(speeds, key=lambda k: speeds[k])
    result["identical"] = all(result[f"k={k}"].get("identical") for k in speeds)
    return result


def _per_round(texts: list[Text]) -> float:
    return median(t.seconds / max(1, t.rounds - 1) for t in texts)


def _speculative(
    bench: Bench, texts: list[Text], plain: list[Text], k: int, context: int
) -> dict[str, Any]:
    seconds = _per_round(texts)
    size = sum(round_bytes(bench, 1, context, k))
    accepted = 0.8
    nominal = (1 - accepted ** (k + 1)) / (1 - accepted)
    return {
        **figures(texts),
        **shares(bench, size, seconds),
        **compared(texts, plain),
        "speedup": digits(figures(texts)["tok_s"] / figures(plain)["tok_s"]),
        # What this round's time gives where exactly four of five are accepted.
        "tok_s_at_acceptance_0.8": digits(nominal / seconds),
    }


def mini(bench: Bench) -> dict[str, Any]:
    """The bundled pair: in float32 the CPU's own text, in bfloat16 how fast."""
    result: dict[str, Any] = {}
    texts = json.loads(Path(bench.options.mini_texts).read_text(encoding="utf-8"))
    params = SamplingParams(max_tokens=texts["max_tokens"])
    pair = {"draft": "mini-draft", "device": str(bench.device), "slots": 1, "k": bench.options.k}
    pair |= {} if bench.cuda else {"threads": 1}
    with Engine("mini-target", dtype="float32", **pair) as engine:
        for k in (0, bench.options.k):
            rows, same, compared_tokens = [], 0, 0
            for number, (ids, wanted) in enumerate(
                zip(texts["prompts"], texts["texts"], strict=True)
            ):
                got = write(bench, engine, ids, params, k).ids
                place = first_difference(got, wanted)
                same += place is None
                compared_tokens += len(wanted) if place is None else place + 1
                if place is not None:
                    rows.append(_margin(engine, ids, got, wanted, place) | {"prompt": number})
            result[f"float32 k={k}"] = {
                "identical": same, "of": len(texts["texts"]),
                "tokens_compared": compared_tokens, "differences": rows,
            }  # fmt: skip
            say(f"  float32, k = {k}: {same} of {len(texts['texts'])} texts are the CPU's")
    del engine
    free(bench)
    chosen = texts["prompts"][: bench.options.mini_prompts]
    with Engine("mini-target", dtype="bfloat16", **pair) as engine:
        for k in (0, bench.options.k):
            write(bench, engine, chosen[0], params, k)
        plain, spec = [], []
        for ids in chosen:
            plain.append(write(bench, engine, ids, params, 0))
            spec.append(write(bench, engine, ids, params, bench.options.k))
    result["bfloat16 plain"] = figures(plain)
    result[f"bfloat16 k={bench.options.k}"] = figures(spec) | compared(spec, plain)
    return result


def _margin(
    engine: Engine, ids: list[int], got: list[int], wanted: list[int], place: int
) -> dict[str, Any]:
    """How near to a tie the place is where two texts part."""
    if place >= min(len(got), len(wanted)):
        return {"place": place, "margin": None}
    logits = engine.score([*ids, *got[:place]])[-1]
    margin = (logits[got[place]] - logits[wanted[place]]).abs().item()
    return {"place": place, "margin": digits(margin)}


def mini_prompts() -> list[str]:
    """The bundled held-out prompts."""
    rows = (files("paceline") / "assets" / "prompts.jsonl").read_text(encoding="utf-8")
    return [json.loads(line)["prompt"] for line in rows.splitlines()]

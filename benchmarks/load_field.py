"""Part `field` of `load.py`: batches handed over at once, beside the goals' values."""

from __future__ import annotations

import time
from typing import Any

from gpu_common import Bench, digits, fixed, median, prompts, quiesce, say, steer
from load_clients import LOOK, Text
from load_engine import named, opened

from paceline import Engine

# The goals' reference values, tokens a second: measured by others with vLLM 0.26 on the same type
# of GPU, the same shapes and acceptance, plain and with five drafts. Not reproduced here.
VLLM = {1: {"plain": 205.0, "k=5": 106.0}, 8: {"plain": 1563.0, "k=5": 1175.0},
        32: {"plain": 5528.0, "k=5": 3778.0}}  # fmt: skip
CLAIMS = {1: ("k=5", 3.0), 8: ("plain", 1.5), 32: ("plain", 1.0)}
FIELD_ACCEPTANCE = 0.73


def field(bench: Bench) -> dict[str, Any]:
    """Batches handed over at once, as the reference values were taken: tokens by the wall clock."""
    o = bench.options
    engine, heads, pilots = opened(bench)
    heads.put(engine, FIELD_ACCEPTANCE)
    names = [*(named(k) for k in o.field_ks), "adaptive"]
    result: dict[str, Any] = {
        "opening": bench.shared["opening"], "acceptance": FIELD_ACCEPTANCE, "batches": {},
    }  # fmt: skip
    for batch in o.field_batches:
        asked = prompts(bench, batch, o.field_prompt, seed=9)
        rates: dict[str, list[float]] = {name: [] for name in names}
        steer(engine, pilots["adaptive"])
        _batch(engine, asked, max(2, o.field_tokens // 8))  # warms, and tells the acceptance
        for repeat in range(o.field_repeats):
            for name in names if repeat % 2 else names[::-1]:
                steer(engine, pilots[name])
                rates[name].append(_batch(engine, asked, o.field_tokens))
        told: dict[str, Any] = {
            name: {"tok_s": digits(median(each)), "tok_s_each": [digits(r) for r in each]}
            for name, each in rates.items()
        }
        if not o.small:  # of other shapes
            told |= _beside(batch, told["adaptive"]["tok_s"])
        result["batches"][str(batch)] = told
        bench.keep(result)
        say(f"  batch {batch}: { {n: told[n]['tok_s'] for n in names} }; {told.get('claim')}")
    result["summary"] = result["batches"]
    return result


def _batch(engine: Engine, asked: list[list[int]], tokens: int) -> float:
    """Tokens a second of so many texts, from asking to the last one's end."""
    began = time.perf_counter()
    texts = [Text((i, 0), engine.submit(ids, fixed(tokens)), began) for i, ids in enumerate(asked)]
    while not all(text.done for text in texts):
        time.sleep(LOOK)
        now = time.perf_counter()
        for text in texts:
            text.look(now)
    ended = max(text.stamps[-1][0] for text in texts)
    quiesce(engine)
    return sum(len(text.ids) for text in texts) / (ended - began)


def _beside(batch: int, rate: float) -> dict[str, Any]:
    """The reference values, and whether the goal set by them is met."""
    if batch not in VLLM:
        return {}
    against, factor = CLAIMS[batch]
    reference = VLLM[batch][against]
    return {
        "vllm_0.26": VLLM[batch],
        "claim": {
            "against": f"vLLM {against}", "asked": factor, "ratio": digits(rate / reference, 4),
            "met": rate >= factor * reference,
        },
    }  # fmt: skip

"""Part `check` of `load.py`: weights whose text depends on every layer put into the engine that was
measured, and texts written many at once held against the same requests each run alone.

The recorded rounds are those that were timed. Differences are located, each with the margin by
which the token that the request alone wrote was ahead.
"""

from __future__ import annotations

from typing import Any

import torch
from calibrated import decoders, roughen
from gpu_common import Bench, digits, first_difference, fixed, prompts, quiesce, say, steer
from gpu_weights import randomize
from load_engine import opened

from paceline import Engine, SamplingParams
from paceline.speculation.noise import Stream, gumbel, keys

_LISTED = 20


def check(bench: Bench) -> dict[str, Any]:
    """Ordinary layers under a law that can be drafted, then nothing but ordinary weights."""
    engine, heads, pilots = opened(bench)
    o = bench.options
    heads.put(engine, 0.8)
    result: dict[str, Any] = {}
    params = [
        fixed(o.check_tokens, temperature=0.8 * (i % 2), seed=500 + i)
        for i in range(o.check_requests)
    ]
    lengths = o.prompt_lengths
    asked = [prompts(bench, 1, lengths[i % len(lengths)], seed=900 + i)[0]
             for i in range(o.check_requests)]  # fmt: skip
    widest = f"k={max(o.ks)}"
    for name, names in (("drafted", ["adaptive", widest]), ("random", ["adaptive", widest])):
        if name == "drafted":
            drawn = roughen(engine, seed=11)
        else:
            drawn = {"parameters_drawn": randomize(decoders(engine)["target"], seed=12)}
        result[name] = drawn | {"requests": len(asked)}
        steer(engine, pilots["plain"])
        pairs = list(zip(asked, params, strict=True))
        alone = [engine.generate([ids], p)[0].token_ids for ids, p in pairs]
        for setting in names:
            steer(engine, pilots[setting])
            before = engine.stats()
            handles = [engine.submit(ids, p) for ids, p in pairs]
            together = [handle.result().token_ids for handle in handles]
            quiesce(engine)
            after = engine.stats()
            tested = after.evaluated - before.evaluated
            told = _compare(engine, asked, params, alone, together)
            told["acceptance_rate"] = digits((after.accepted - before.accepted) / max(1, tested), 3)
            result[name][setting] = told
            bench.keep(result)
            say(f"  {name} weights, {setting}: {told['identical']} of {told['of']} texts as alone, "
                f"acceptance {told['acceptance_rate']}")  # fmt: skip
    result["summary"] = {
        name: {s: [t["identical"], t["of"], t["largest_margin"]] for s, t in told.items()
               if isinstance(t, dict)}
        for name, told in result.items()
    }  # fmt: skip
    return result


def _compare(
    engine: Engine,
    asked: list[list[int]],
    params: list[SamplingParams],
    alone: list[tuple[int, ...]],
    together: list[tuple[int, ...]],
) -> dict[str, Any]:
    same, tokens, differ = 0, 0, []
    for number, (a, b) in enumerate(zip(alone, together, strict=True)):
        place = first_difference(a, b)
        same += place is None
        tokens += len(a) if place is None else place + 1
        if place is not None:
            found = margin(engine, [*asked[number], *a[:place]], params[number], a[place], b[place])
            differ.append({"request": number, "place": place, "margin": found})
    differ.sort(key=lambda one: -one["margin"])
    return {
        "identical": same, "of": len(alone), "tokens_compared": tokens,
        "largest_margin": differ[0]["margin"] if differ else None, "differences": differ[:_LISTED],
    }  # fmt: skip


@torch.inference_mode()
def margin(engine: Engine, text: list[int], params: SamplingParams, mine: int, other: int) -> float:
    """How far token `mine` is ahead of `other` behind `text`, in logits; of a drawn text with the
    noise of its seed, at temperature 1."""
    logits = engine.score(text)[-1]
    if params.temperature:
        seed = torch.tensor([params.seed], device=logits.device)
        place = torch.tensor([[len(text)]], device=logits.device)
        noise = gumbel(keys(seed, Stream.TARGET, place), logits.shape[0], logits.dtype)
        logits = logits / params.temperature + noise.view(-1)
    return digits((logits[mine] - logits[other]).item(), 3)

"""Acceptance of the exported pair as it is served: what the engine itself accepts at a fixed K.

The same prompts as evaluate.py, through paceline's public names: bfloat16, the draft's weights of
eight bits, the rule `match`, natural stops. evaluate.py replays rounds from float32 agreement
instead; the two must tell the same story. Every text is written without speculation too, and must
be the same.

    python recipes/mini/served.py
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from agreement import repeated
from corpus import HERE
from evaluate import MOST, STOPS
from paceline import Completion, Engine, SamplingParams
from prompts import draw

HEATS = (0.0, 0.8)


def figures(rows: list[Completion]) -> dict[str, object]:
    """Counts of the engine, summed over completions."""
    stats = [done.stats for done in rows]
    drafted, rounds = sum(s.drafted for s in stats), sum(s.rounds for s in stats)
    evaluated, accepted = sum(s.evaluated for s in stats), sum(s.accepted for s in stats)
    emitted = sum(s.emitted for s in stats)
    return {
        "completions": len(rows),
        "tokens": emitted,
        "acceptance_rate": accepted / max(1, evaluated),
        "draft_efficiency": accepted / max(1, drafted),
        "tokens_per_round": emitted / max(1, rounds),
    }


def measure(engine: Engine, prompts: list[str], heat: float) -> dict[str, object]:
    """Complete every prompt with and without speculation; group by how the text ended."""
    every: list[Completion] = []
    fresh: list[Completion] = []
    again = tokens = unequal = 0
    for seed, prompt in enumerate(prompts):
        params = SamplingParams(temperature=heat, seed=seed, max_tokens=MOST, stop=STOPS)
        done, plain = engine.generate(prompt, params)[0], engine.generate(prompt, params, k=0)[0]
        unequal += done.token_ids != plain.token_ids
        ids = [*engine.tokenizer.encode(prompt), *done.token_ids]
        flags = repeated(torch.tensor([ids]))[0, len(ids) - len(done.token_ids) :]
        again, tokens = again + int(flags.sum()), tokens + len(flags)
        every.append(done)
        if done.finish == "stop" and not flags.any():
            fresh.append(done)
    return {
        "unequal_texts": unequal,
        "share_of_tokens_repeated": again / max(1, tokens),
        "all": figures(every),
        "natural_stop": figures([done for done in every if done.finish == "stop"]),
        "natural_stop_without_repeats": figures(fresh),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path(".data"))
    parser.add_argument("--target", default="mini-target", help="exported checkpoint")
    parser.add_argument("--draft", default="mini-draft", help="exported checkpoint")
    parser.add_argument("--count", type=int, default=160, help="prompts drawn by prompts.py's rule")
    parser.add_argument("--k", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    began = time.monotonic()
    prompts = [row["prompt"] for row in draw(args.data, args.count)]
    result: dict[str, object] = {"k": args.k, "dtype": "bfloat16"}
    options = {"k": args.k, "threads": args.threads, "slots": 1, "device": "cpu"}
    with Engine(args.target, draft=args.draft, **options) as engine:
        for heat in HEATS:
            result[f"temperature {heat}"] = measure(engine, prompts, heat)
            print(heat, f"{time.monotonic() - began:.0f} s", flush=True)
    (HERE / "results" / "served.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()

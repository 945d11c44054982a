"""Held-out loss, next-token accuracy and acceptance of the pair, on a CPU.

The target continues held-out prompts (greedy, and sampled with seeded Gumbel noise) until a
natural stop or 256 new tokens; the draft is then asked at every position with the same noise, and
the rounds of a fixed-K engine are replayed from its answers. Stops are found in the text.

    python recipes/mini/evaluate.py --target .data/target --drafts .data/drafts
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from agreement import figures, repeated
from corpus import HERE
from data import END_ID, load_ids
from model import DRAFTS, TARGET, Llama, choose, load
from prompts import draw
from train_target import evaluate

STOPS = ("\ndef ", "\nclass ", "\n@", "\nif __name__", "<|endoftext|>")


@dataclass(frozen=True, slots=True)
class Completion:
    """One continuation: ids [P + n] on the CPU, its prompt length and how it ended."""

    ids: Tensor
    prompt: int
    stopped: bool
    seed: int
    text: str


@torch.no_grad()
def complete(
    target: Llama, tokenizer: Tokenizer, prompt: str, heat: float, seed: int, most: int = 256
) -> Completion:
    """Continue `prompt` until a stop (kept) or `most` new tokens."""
    ids = tokenizer.encode(prompt).ids
    start, stopped = len(ids), False
    cache = target.new_cache(1, start + most)
    temperature = torch.tensor([heat])
    logits = target.logits(target(torch.tensor([ids]), cache)[:, -1])
    while len(ids) < start + most and not stopped:
        position = len(ids)
        ids.append(int(choose(logits, temperature, seed, position)))
        # One character before the completion, so that a stop may begin right at its start.
        text = prompt[-1] + tokenizer.decode(ids[start:], skip_special_tokens=False)
        stopped = ids[-1] == END_ID or any(stop in text for stop in STOPS)
        if not stopped and len(ids) < start + most:
            logits = target.step(torch.tensor(ids[-1:]), cache, position)
    text = tokenizer.decode(ids[start:], skip_special_tokens=False)
    return Completion(torch.tensor(ids), start, stopped, seed, text)


@torch.no_grad()
def agreement(draft: Llama, completion: Completion, heat: float) -> list[bool]:
    """Whether the draft, with the target's noise, names each token of the completion."""
    ids, temperature = completion.ids[None], torch.tensor([heat])
    logits = draft.logits(draft(ids[:, :-1]))[:, completion.prompt - 1 :]
    return [
        bool(choose(logits[:, i], temperature, completion.seed, completion.prompt + i)[0] == token)
        for i, token in enumerate(ids[0, completion.prompt :].tolist())
    ]


def acceptance(completions: list[Completion], draft: Llama, heat: float) -> dict[str, object]:
    """Figures over all completions, those that stop, and those that stop and repeat nothing."""
    agree = [agreement(draft, c, heat) for c in completions]
    again = [repeated(c.ids[None])[0, c.prompt :] for c in completions]
    stopped = [a for a, c in zip(agree, completions, strict=True) if c.stopped]
    fresh = [
        a for a, c, r in zip(agree, completions, again, strict=True) if c.stopped and not r.any()
    ]
    total = sum(len(r) for r in again)
    return {
        "completions": len(completions),
        "stopped": len(stopped),
        "share_of_tokens_repeated": sum(int(r.sum()) for r in again) / max(1, total),
        "all": figures(agree),
        "natural_stop": figures(stopped),
        "natural_stop_without_repeats": figures(fresh),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path(".data"))
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--drafts", type=Path, required=True, help="a folder of candidates")
    parser.add_argument("--count", type=int, default=192, help="prompts drawn by prompts.py's rule")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--name", default="evaluate", help="of the file under results/")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    began = time.monotonic()
    tokenizer = Tokenizer.from_file(str(args.data / "tokenizer" / "tokenizer.json"))
    target = load(args.target, TARGET).eval()
    drafts = {n: load(args.drafts / n, s) for n, s in DRAFTS.items() if (args.drafts / n).exists()}
    held = torch.from_numpy(load_ids(args.data / "held_out.u16.xz"))
    result: dict[str, object] = {
        "held_out": {
            "target": evaluate(target, held, 1024, rows=2),
            **{n: evaluate(d, held, 1024, rows=2) for n, d in drafts.items()},
        }
    }
    rows = draw(args.data, args.count)
    for heat in (0.0, 0.8, 1.0):
        completions = [
            complete(target, tokenizer, row["prompt"], heat, seed=i) for i, row in enumerate(rows)
        ]
        result[f"temperature {heat}"] = {
            n: acceptance(completions, d, heat) for n, d in drafts.items()
        }
        if heat < 1:
            result[f"samples {heat}"] = [
                {
                    "id": r["id"],
                    "stopped": c.stopped,
                    "prompt_end": r["prompt"][-200:],
                    "text": c.text,
                }
                for r, c in zip(rows[:16], completions, strict=False)
            ]
        print(heat, f"{time.monotonic() - began:.0f} s", flush=True)
        (HERE / "results" / f"{args.name}.json").write_text(json.dumps(result, indent=1) + "\n")
    summary = {
        n: {
            heat: {g: f.get("k", {}).get("5") for g, f in part[n].items() if isinstance(f, dict)}
            for heat, part in result.items()
            if heat.startswith("temperature") and isinstance(part, dict)
        }
        for n in drafts
    }
    print(json.dumps({"held_out": result["held_out"], "k5": summary}))


if __name__ == "__main__":
    main()

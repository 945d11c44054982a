"""Held-out loss, next-token accuracy and acceptance of the pair, on a CPU.

The target continues held-out prompts (greedy, and sampled with seeded Gumbel noise) until a
natural stop or 256 new tokens; the draft is then asked at every position with the same noise, and
the rounds of a fixed-K engine are replayed from its answers. Stops are found in the text. The
bfloat16 weights are multiplied in float32: bfloat16 logits tie too often to compare choices.

    python recipes/mini/evaluate.py --target .data/target --drafts .data/drafts
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from agreement import figures, repeated
from corpus import HERE
from data import load_ids
from model import DRAFTS, TARGET, Block, Llama, choose, load, rms_norm
from prompts import draw
from train_target import evaluate

MOST = 256  # new tokens
BATCH = 32
STOPS = ("\ndef ", "\nclass ", "\n@", "\nif __name__", "<|endoftext|>")


@dataclass(frozen=True, slots=True)
class Completion:
    """One continuation: ids [P + n] on the CPU, its prompt length and how it ended."""

    ids: Tensor
    prompt: int
    stopped: bool
    text: str


@torch.no_grad()
def advance(
    target: Llama, tokens: Tensor, cache: Tensor, slot: int, place: Tensor, hidden: Tensor
) -> Tensor:
    """Logits [B, V] after one token a row, at text positions `place`, in cache slot `slot`."""
    x = F.embedding(tokens[:, None], target.embed).to(target.dtype)
    cos, sin = target.cos[place, None, None], target.sin[place, None, None]  # [B, 1, 1, D]
    mask = ~hidden[:, None, None, : slot + 1]
    for i, block in enumerate(target.blocks):
        assert isinstance(block, Block)
        x = block.step(x, cos, sin, cache[i], slot, mask)
    return target.logits(rms_norm(x, target.norm))[:, 0]


@torch.no_grad()
def complete(
    target: Llama, tokenizer: Tokenizer, prompts: list[str], heat: float, seed: int
) -> list[Completion]:
    """Continue a batch of prompts until each has a stop (kept) or MOST new tokens.

    Prompts end in the same cache slot, whatever their length; the slots before a shorter one are
    hidden, and its rotary positions start at 0.
    """
    encoded = [tokenizer.encode(prompt).ids for prompt in prompts]
    lengths = torch.tensor([len(ids) for ids in encoded])
    width, rows = int(lengths.max()), len(prompts)
    cache = target.new_cache(rows, width + MOST)
    hidden = torch.arange(width + MOST) < (width - lengths)[:, None]
    logits = torch.empty(rows, target.shape.vocab)
    for row, ids in enumerate(encoded):
        own = target.new_cache(1, len(ids))
        logits[row] = target.logits(target(torch.tensor([ids]), own)[:, -1])[0]
        cache[:, :, row, :, width - len(ids) : width] = own[:, :, 0]
        cache[:, :, row, :, : width - len(ids)] = 0
    new: list[list[int]] = [[] for _ in prompts]
    done = [False] * rows
    for i in range(MOST):
        tokens = choose(logits, torch.full((rows,), heat), seed, i)
        for row, token in enumerate(tokens.tolist()):
            if done[row]:
                continue
            new[row].append(token)
            # From the prompt's last character on: a stop may begin where the completion does.
            tail = tokenizer.decode(new[row][-16:], skip_special_tokens=False)
            text = prompts[row][-1] + tail if len(new[row]) <= 16 else tail
            done[row] = any(stop in text for stop in STOPS)
        if all(done):
            break
        if i + 1 < MOST:
            logits = advance(target, tokens, cache, width + i, lengths + i, hidden)
    return [
        Completion(torch.tensor(ids + made), len(ids), stopped, tokenizer.decode(made, False))
        for ids, made, stopped in zip(encoded, new, done, strict=True)
    ]


@torch.no_grad()
def agreement(
    draft: Llama, completions: list[Completion], heat: float, seed: int
) -> list[list[bool]]:
    """Whether the draft, with the target's noise, names each token of a batch of completions."""
    vocab, rows = draft.shape.vocab, len(completions)
    logits = torch.zeros(rows, MOST, vocab)
    for row, c in enumerate(completions):
        answer = draft.logits(draft(c.ids[None, :-1]))[0, c.prompt - 1 :]
        logits[row, : len(answer)] = answer
    agree: list[list[bool]] = [[] for _ in completions]
    for i in range(max(len(c.ids) - c.prompt for c in completions)):
        tokens = choose(logits[:, i], torch.full((rows,), heat), seed, i).tolist()
        for row, c in enumerate(completions):
            if c.prompt + i < len(c.ids):
                agree[row].append(tokens[row] == int(c.ids[c.prompt + i]))
    return agree


def acceptance(batches: list[list[Completion]], draft: Llama, heat: float) -> dict[str, object]:
    """Figures over all completions, those that stop, and those that stop and repeat nothing."""
    agree = [a for i, batch in enumerate(batches) for a in agreement(draft, batch, heat, seed=i)]
    completions = [c for batch in batches for c in batch]
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
    parser.add_argument("--count", type=int, default=160, help="prompts drawn by prompts.py's rule")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--name", default="evaluate", help="of the file under results/")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    began = time.monotonic()
    tokenizer = Tokenizer.from_file(str(args.data / "tokenizer" / "tokenizer.json"))
    target = load(args.target, TARGET, torch.float32)
    names = [name for name in DRAFTS if (args.drafts / name).exists()]
    drafts = {n: load(args.drafts / n, DRAFTS[n], torch.float32) for n in names}
    held = torch.from_numpy(load_ids(args.data / "held_out.u16.xz"))
    result: dict[str, object] = {
        "held_out": {
            "target": evaluate(target, held, 1024, rows=2),
            **{n: evaluate(d, held, 1024, rows=2) for n, d in drafts.items()},
        }
    }
    rows = draw(args.data, args.count)
    parts = [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)]
    for heat in (0.0, 0.8, 1.0):
        batches = [
            complete(target, tokenizer, [row["prompt"] for row in part], heat, seed=i)
            for i, part in enumerate(parts)
        ]
        result[f"temperature {heat}"] = {n: acceptance(batches, d, heat) for n, d in drafts.items()}
        if heat < 1:
            result[f"samples {heat}"] = [
                {
                    "id": r["id"],
                    "stopped": c.stopped,
                    "prompt_end": r["prompt"][-200:],
                    "text": c.text,
                }
                for r, c in zip(rows[:16], batches[0], strict=False)
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

"""Writes the texts that part `mini` of `gpu_round.py` compares with: the bundled target's greedy
ones in float32 on a CPU, as token ids. Run it where there is time; the last line is JSON."""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from gpu_speed import mini_prompts

from paceline import Engine, SamplingParams


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--max-tokens", type=int, default=192)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    asked = random.Random(options.seed).sample(mini_prompts(), options.prompts)
    params = SamplingParams(max_tokens=options.max_tokens)
    with Engine("mini-target", dtype="float32", device="cpu", threads=1, slots=1) as engine:
        ids = [engine.tokenizer.encode(text) for text in asked]
        texts = [list(engine.generate(prompt, params)[0].token_ids) for prompt in ids]
    content = {"max_tokens": options.max_tokens, "prompts": ids, "texts": texts}
    options.out.write_text(json.dumps(content) + "\n", encoding="utf-8")
    print(json.dumps({"prompts": len(ids), "tokens": sum(map(len, texts))}))


if __name__ == "__main__":
    main()

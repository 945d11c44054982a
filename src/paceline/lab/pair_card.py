"""The README.md of a calibrated checkpoint, written for whoever finds the folder alone."""

from __future__ import annotations

import math
from typing import Any

from paceline.lab.pair_law import FILLER, MOST_K, TOP, Law, geometric
from paceline.lab.pair_shapes import Shape
from paceline.lab.pair_weights import code_length


def card(
    role: str, shape: Shape, law: Law, stated: dict[str, Any], own_vocab: int, command: str
) -> str:
    """Return the card. stated: what config.json says; own_vocab: the shape's before the pair's."""
    greedy, warm = stated["greedy"], stated["temperature_1"]
    asked = stated["acceptance_asked"]
    other = "draft" if role == "target" else "target"
    changed = "" if own_vocab == shape.vocab else (
        f" The shape's own vocabulary has {own_vocab:,} tokens; it was given the target's."
    )  # fmt: skip
    rows = "\n".join(
        f"| {k} | {geometric(asked, k):.4f} | {greedy['tokens_per_round'][str(k)]:.4f} | "
        f"{greedy['acceptance_in_rounds'][str(k)]:.4f} | {warm['tokens_per_round'][str(k)]:.4f} |"
        for k in range(1, MOST_K + 1)
    )
    sizes = (
        f"{shape.vocab:,} tokens, {shape.layers} layers of {shape.hidden}, bfloat16, untied head, "
        f"{shape.weight_bytes() / 1e9:.2f} GB"
    )
    second, rejected = TOP - law.p_gap[0], int((~law.agree).sum())
    likely = 1 / (1 + math.exp(-law.p_gap[0]))
    unk, bos, eos, pad = range(shape.vocab - 4, shape.vocab)
    return f"""---
library_name: transformers
tags: [speculative-decoding, benchmark]
---

# A calibrated {role}: for measuring, not for text

The shape of {shape.name} with made-up weights. It has learnt nothing: its texts are invented
words. paceline {stated["paceline"]} made it, to measure what speculative decoding costs and gains
at a known acceptance, together with the {other} in the folder beside it:

    {command}

{sizes}.{changed}

## What is promised

| acceptance | |
|---|---|
| asked for | {asked:g} |
| greedy: share of the cycle's tokens on which draft and target agree | {greedy["acceptance"]:.6f} |
| temperature 1, `reject` (1 − TV) | {warm["acceptance_reject"]:.6f} |
| temperature 1, `match` (both draw with one Gumbel noise) | {warm["acceptance_match"]:.6f} |
| temperature 1, `block` | at least `reject`'s |

Acceptance is conditional: of the draft tokens whose predecessors in the round were all accepted,
the share accepted. Tokens per round with K draft tokens in each, in long texts; the greedy
figures come from walking the cycle, the others from the Markov chain over the classes:

| K | (1 − α^(K+1)) / (1 − α) | greedy | acceptance in greedy rounds | temperature 1 |
|---|---|---|---|---|
{rows}

A short greedy text sees a part of the cycle and differs by chance; `calibration.json` says which
tokens of the cycle are rejected, so that any text's count can be had exactly.

## The law

Tokens fall into {law.classes} classes, and the next token depends on the class of the last one
alone. Each class has two successors of its own. The target gives its first a logit of {TOP:g} and
its second {second:g} (probabilities {likely:.4f} and {1 - likely:.4f}). The draft prefers the
second in {rejected} of the classes, and in the others the first, less strongly than the target.
A token that is nobody's successor has {FILLER:g} after its own class; every other logit is 0, and
all these tokens together have a probability below 1e-7.

* **Greedy**: a cycle of {law.classes} tokens, each followed by the next. Any prompt enters it with
  the first new token, and after {law.classes} tokens the text repeats. Special tokens never come.
* **Other temperatures** change the acceptance: the successors' logits in `calibration.json` give
  the law there too.

`calibration.json` has `class_of_token` (a class for each token id) and for each class i `first`
and `second` (token ids), `target_logits` and `draft_logits` (of these two) and `agree` (both
models prefer the first). The token `first[i]` is of class i + 1, the last one's of class 0.
Special ids: unk {unk}, bos {bos}, eos {eos}, pad {pad}.

## How it is made

Embeddings are ±64: for each class a row of a Hadamard matrix, so that classes are orthogonal. The
weights that write to the residual stream (`o_proj`, `down_proj`) have 2^-30 of the ordinary
scale, so that the stream stays the embedding to the bit in bfloat16 and float32, the final norm
gives ±1, and a head row of ±(logit / {code_length(shape)}) gives the logit exactly. All other
weights are random at ordinary scale: time and memory traffic are the shape's own.

**The right text therefore says nothing about attention, caches or positions being right**: check
those on an ordinary model. Seed {stated["seed"]}; paceline's docs/pairs.md has the rest.
"""

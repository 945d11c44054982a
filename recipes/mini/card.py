"""Write the model card and the list of packages beside the checkpoints.

Owns the card's words; every figure is read from the JSON under results/, none is typed in.

    python recipes/mini/card.py --candidate d
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from corpus import HERE
from model import DRAFTS, TARGET, Shape
from prompts import ASSETS

K = "5"


def read(name: str) -> dict[str, Any]:
    """One result file."""
    path = HERE / "results" / f"{name}.json"
    if not path.exists():
        raise SystemExit(f"{path} is missing: run the step that writes it first (see README.md)")
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def size(shape: Shape, parameters: int) -> str:
    return (
        f"{parameters / 1e6:.1f}M parameters: {shape.layers} layers, hidden {shape.hidden}, "
        f"{shape.heads} heads of {shape.head_dim} ({shape.kv_heads} for keys and values), "
        f"intermediate {shape.intermediate}, vocabulary {shape.vocab}, tied embeddings"
    )


def acceptance_table(evaluation: dict[str, Any], names: list[str]) -> str:
    """A row per candidate and temperature: acceptance and tokens per round at fixed K."""
    lines = [
        "| draft | temperature | completions | stopped | acceptance, those that stop | tokens per "
        "round | acceptance without repeats | acceptance, all |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in names:
        for heat in ("0.0", "0.8", "1.0"):
            part = evaluation[f"temperature {heat}"][name]
            stop, fresh = part["natural_stop"], part["natural_stop_without_repeats"]
            lines.append(
                f"| {name} | {heat} | {part['completions']} | {part['stopped']} "
                f"| {stop['k'][K]['acceptance_rate']:.3f} "
                f"| {stop['k'][K]['tokens_per_round']:.2f} "
                f"| {fresh['k'][K]['acceptance_rate']:.3f} "
                f"| {part['all']['k'][K]['acceptance_rate']:.3f} |"
            )
    return "\n".join(lines)


def served_table(served: dict[str, Any], evaluation: dict[str, Any], name: str) -> str:
    """The engine's own counts, the replayed figure beside each."""
    lines = [
        "| temperature | completions | counted | tokens | acceptance, engine | replayed | tokens "
        "per round, engine | replayed |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for heat in ("0.0", "0.8"):
        part = served[f"temperature {heat}"]
        for group, label in (
            ("natural_stop", "those that stop"),
            ("natural_stop_without_repeats", "of them without repeats"),
            ("all", "all"),
        ):
            mine, other = part[group], evaluation[f"temperature {heat}"][name][group]["k"][K]
            lines.append(
                f"| {heat} | {mine['completions']} | {label} | {mine['tokens']} "
                f"| {mine['acceptance_rate']:.3f} | {other['acceptance_rate']:.3f} "
                f"| {mine['tokens_per_round']:.2f} | {other['tokens_per_round']:.2f} |"
            )
    return "\n".join(lines)


def unequal(served: dict[str, Any]) -> str:
    """How many texts differed with and without speculation."""
    parts = [served[f"temperature {heat}"] for heat in ("0.0", "0.8")]
    count = sum(part["unequal_texts"] for part in parts)
    total = sum(part["all"]["completions"] for part in parts)
    return f"{count or 'none'} of {total}"


def card(candidate: str) -> str:
    """The model card of both checkpoints."""
    corpus, target, evaluation = read("corpus"), read("target"), read("evaluate")
    served = read("served")
    train, held = corpus["train"], corpus["held_out"]
    drafts = {**read("distill_first")["parameters"], **read("distill_second")["parameters"]}
    names = [n for n in sorted(drafts) if n in evaluation["temperature 0.0"]]
    repeats = {
        heat: evaluation[f"temperature {heat}"][candidate]["share_of_tokens_repeated"]
        for heat in ("0.0", "0.8", "1.0")
    }
    used = [p for p in corpus["packages"] if p["files"] and p["group"] == "train"]
    unseen = [p for p in corpus["packages"] if p["files"] and p["group"] == "held_out"]
    losses = evaluation["held_out"]
    return f"""---
license: apache-2.0
language: code
library_name: transformers
---

# The mini pair

Two small language models of Python code that were trained for each other, so that speculative
decoding can be shown and tested with no download. They complete a few lines plausibly; they are not
a programming assistant, do not follow instructions, and should not be relied on for anything.

* **mini-target**: {size(TARGET, target["parameters"])}.
  transformers' `LlamaConfig` refuses a hidden size that the number of heads does not divide, so
  its `config.json` says `mistral` with no sliding window: the same computation, the same names.
* **mini-draft**: {size(DRAFTS[candidate], drafts[candidate])}.
  It is candidate `{candidate}` of the table below.

Both share a byte-level BPE tokenizer with {TARGET.vocab} entries and take up to
{TARGET.positions} tokens.
How they were made, step by step: `recipes/mini/` in the source tree.

## Training

Text: {train["files"]} files, {train["characters"] / 1e6:.0f} million characters of Python from
{len(used)} packages under MIT, BSD, Apache-2.0, PSF and similar licences (tests
{train["test_share"]:.0%}); `PACKAGES.md` names every one with version and licence. The target saw
{target["tokens"] / 1e6:.0f} million tokens in {target["seconds"] / 60:.1f} minutes on one
{target["device"]}; the draft was distilled from it on that text and on the target's own
continuations.

Held out, as whole packages: {", ".join(p["name"] for p in unseen)} ({held["files"]} files;
{held["dropped_for_ten_shared_lines"]} further ones were dropped because they share ten or more
lines with the training text).

## Figures on held-out code

| model | loss, nats a token | next-token accuracy |
| --- | --- | --- |
| mini-target | {losses["target"]["loss"]:.3f} | {losses["target"]["accuracy"]:.3f} |
| mini-draft | {losses[candidate]["loss"]:.3f} | {losses[candidate]["accuracy"]:.3f} |

Acceptance rate (accepted / evaluated) at K = {K} on completions of held-out code: the target writes
until a natural stop (`<|endoftext|>`, or `def`, `class`, `@`, `if __name__` in column 0) or 256
tokens; greedy at temperature 0, else both models draw with the same noise. {repeats["0.0"]:.0%} of
the tokens of greedy completions lie in a run of 32 tokens that appeared before
({repeats["0.8"]:.0%} at temperature 0.8, {repeats["1.0"]:.0%} at 1.0): a model this small loops
when it is not stopped. The last two columns leave out completions with such a run, and count all of
them, stopped or not.

{acceptance_table(evaluation, names)}

The rows above are replayed from float32 agreement (`evaluate.py`). The same prompts written by the
engine itself (`served.py`: bfloat16, the draft's weights of eight bits, rule `match`, K = {K}; its
stop strings begin after the prompt), each also without speculation: {unequal(served)} texts
differed.

{served_table(served, evaluation, candidate)}

Candidates `b` and `c` never saw a text of more than 512 tokens and fail beyond; `a` and `d` did.

## Prompts

`prompts.jsonl` holds 64 prompts cut from the held-out packages by a seeded draw; `NOTICE` has their
licences.
"""


def package_list() -> str:
    """Every package whose text was used, with version, licence and number of files."""
    rows = sorted((p for p in read("corpus")["packages"]), key=lambda p: (p["group"], p["name"]))
    lines = ["# Packages", "", "| package | version | licence | files | use |"]
    lines.append("| --- | --- | --- | --- | --- |")
    for row in rows:
        use = "training" if row["group"] == "train" else "held out"
        if row["licence"].startswith("refused"):
            use = "not used"
        lines.append(
            f"| {row['name']} | {row['version']} | {row['licence']} | {row['files']} | {use} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--candidate", required=True, choices=sorted(DRAFTS))
    parser.add_argument("--out", type=Path, default=ASSETS)
    args = parser.parse_args()
    (args.out / "README.md").write_text(card(args.candidate))
    (args.out / "PACKAGES.md").write_text(package_list())


if __name__ == "__main__":
    main()

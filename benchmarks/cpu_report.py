"""What cpu_pair.py reports of one dtype: every contestant's figures and the promised ratios."""

from __future__ import annotations

import argparse
from typing import Any

import cpu_figures as figures
from cpu_arena import Arena
from cpu_figures import Samples

# claim: (numerator's group, denominator's group, aim, wish)
CLAIMS = {
    "plain_vs_transformers": ("plain", "transformers", 2.5, 4.0),
    "speculative_vs_plain": ("speculative", "plain", 2.0, 2.5),
    "speculative_vs_assisted": ("speculative", "assisted", 3.0, None),
    "speculative_vs_openvino": ("speculative", "openvino", 1.0, 1.5),
}


def claims(samples: Samples, arena: Arena, prompts: list[int], seed: int) -> dict[str, Any]:
    """Return the ratios that the project promises, and those of every draft length.

    Judged on the writing; the ratio with the prompt included and the times to the first token
    stand beside it. Where a group has several contestants its fastest stands for it, by the same
    rate.
    """
    rates = {"writing": lambda s: s.writing_rate, "prompt_included": lambda s: s.rate}
    result: dict[str, Any] = {}
    for claim, (above, below, aim, wish) in CLAIMS.items():
        entry: dict[str, Any] = {"aim": aim, "wish": wish}
        for label, rate in rates.items():
            best = {}
            for group in (above, below):
                scored = [
                    (figures.median(rate(s) for s in samples.of(c.name, prompts)) or 0.0, c.name)
                    for c in arena.contestants
                    if c.group == group
                ]
                best[group] = max(scored)[1] if scored else None
            one, other = best[above], best[below]
            if one is None or other is None:
                continue
            entry[label] = {
                "of": one,
                "to": other,
                **(figures.ratio(samples, one, other, rate, prompts, seed) or {}),
            }
            if above == "speculative":
                entry[label]["by_k"] = {
                    c.request["k"]: figures.ratio(samples, c.name, other, rate, prompts, seed)
                    for c in arena.contestants
                    if c.group == above
                }
        for label in rates:
            reached = entry.get(label, {}).get("ratio")
            entry["met" if label == "writing" else f"met_{label}"] = (
                None if reached is None else reached >= aim
            )
        entry["first_token_ms"] = {
            entry["writing"][role]: figures.first_token_ms(
                samples.of(entry["writing"][role], prompts)
            )
            for role in ("of", "to")
            if "writing" in entry
        }
        result[claim] = entry
    return result


def report(
    options: argparse.Namespace, arena: Arena, prompts: list[dict[str, Any]], samples: Samples
) -> dict[str, Any]:
    """Return the figures of one dtype."""
    numbers, plain = list(range(len(prompts))), arena.contestants[0].name
    shares = {
        c.name: [
            figures.repeated_share(row["ids"], samples.text(c.name, n))
            for n, row in enumerate(prompts)
        ]
        for c in arena.contestants
    }
    tokens = [len(samples.text(plain, n)) for n in numbers]
    fresh = [n for n in numbers if not any(share[n] for share in shares.values())]
    contestants = {}
    for c in arena.contestants:
        contestants[c.name] = {
            **figures.summary(samples.of(c.name)),
            "repeated_text_share": figures.rounded(
                sum(r * len(samples.text(c.name, n)) for n, r in enumerate(shares[c.name]))
                / sum(len(samples.text(c.name, n)) for n in numbers), 4
            ),
            "against_paceline": figures.agreement(samples, plain, c.name, numbers),
            "same_text_each_repeat": figures.steady(samples, c.name),
        }  # fmt: skip
    own = [c.name for c in arena.contestants if c.engine == "paceline"]
    natural = [row["natural"] for row in prompts]
    return {
        "threads": arena.threads,
        "identical": all(
            contestants[name]["against_paceline"]["equal"] == 1
            and contestants[name]["same_text_each_repeat"]
            for name in own
        ),
        "claims": claims(samples, arena, numbers, options.seed),
        "contestants": contestants,
        "prompts": [
            {"id": row["id"], "prompt_tokens": len(row["ids"]), "new_tokens": tokens[n],
             "natural_end": row["natural"], "repeated": figures.rounded(shares[plain][n])}
            for n, row in enumerate(prompts)
        ],
        "natural_ends": None if None in natural else sum(natural),
        "repeated_text_share": contestants[plain]["repeated_text_share"],
        "without_repeats": {
            "prompts": len(fresh),
            "claims": claims(samples, arena, fresh, options.seed) if fresh else None,
            "contestants": {
                c.name: figures.summary(samples.of(c.name, fresh)) for c in arena.contestants
            } if fresh else None,
        },
        "idle_contestants_busy_cores": figures.rounded(
            sum(s.idle_cores * s.run["seconds"] for s in samples.rows)
            / sum(s.run["seconds"] for s in samples.rows), 4
        ),
        "other_busy_cores": figures.rounded(
            figures.median(s.other_cores for s in samples.rows), 3
        ),
        "absent": arena.absent,
        "versions": {k: v for e in arena.engines.values() for k, v in e.info["versions"].items()},
    }  # fmt: skip

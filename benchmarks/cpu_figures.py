"""From timed samples to figures: rates, paired ratios with bootstrap intervals, equality of texts.

Knows nothing of engines. A sample is one text written by one contestant for one (prompt, repeat).
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

REPEAT = 32  # tokens of a run that counts as repeated text
RESAMPLES = 2000


@dataclass(slots=True)
class Sample:
    """One timed text. own_cores: cores that the contestant kept busy; other_cores: busy cores
    beside them; idle_cores: of those, what the waiting contestants used."""

    contestant: str
    prompt: int
    repeat: int
    run: dict[str, Any]
    own_cores: float
    other_cores: float
    idle_cores: float

    @property
    def rate(self) -> float | None:
        """Tokens a second of the whole generation loop, reading the prompt included."""
        return len(self.run["ids"]) / self.run["seconds"] if self.run["ids"] else None

    @property
    def writing_rate(self) -> float | None:
        """Tokens a second after the first piece of text."""
        first, tokens = self.run["first_seconds"], len(self.run["ids"]) - self.run["first_tokens"]
        if first is None or tokens <= 0:
            return None
        return tokens / (self.run["seconds"] - first)


@dataclass(slots=True)
class Samples:
    """All samples of one dtype."""

    rows: list[Sample] = field(default_factory=list)

    def of(self, contestant: str, prompts: Iterable[int] | None = None) -> list[Sample]:
        """Return one contestant's samples, of `prompts` alone where they are given."""
        wanted = None if prompts is None else set(prompts)
        return [
            s
            for s in self.rows
            if s.contestant == contestant and (wanted is None or s.prompt in wanted)
        ]

    def text(self, contestant: str, prompt: int) -> list[int]:
        """Return the tokens of the first repeat."""
        ids: list[int] = self.of(contestant, [prompt])[0].run["ids"]
        return ids


def rounded(value: float | None, digits: int = 3) -> float | None:
    """Round for JSON; None stays None."""
    return None if value is None else round(value, digits)


def median(values: Iterable[float | None]) -> float | None:
    """Return the median of what is there."""
    there = [v for v in values if v is not None]
    return statistics.median(there) if there else None


def first_token_ms(rows: Sequence[Sample]) -> float | None:
    """Return the median time to the first piece of text: reading the prompt and one round."""
    times = [s.run["first_seconds"] for s in rows]
    return rounded(median(None if t is None else 1e3 * t for t in times), 1)


def summary(rows: Sequence[Sample]) -> dict[str, Any]:
    """Return one contestant's figures."""
    rates = sorted(s.rate for s in rows if s.rate is not None)
    runs = [s.run for s in rows]

    def total(key: str) -> int | None:
        values = [run[key] for run in runs]
        return None if any(v is None for v in values) else sum(values)

    tokens, rounds = sum(len(run["ids"]) for run in runs), total("rounds")
    drafted, evaluated, accepted = total("drafted"), total("evaluated"), total("accepted")
    return {
        "tok_s": rounded(median(rates), 1),
        "tok_s_quartiles": [
            rounded(rates[int(share * (len(rates) - 1))], 1) for share in (0.25, 0.75) if rates
        ],
        "tok_s_writing": rounded(median(s.writing_rate for s in rows), 1),
        "first_token_ms": first_token_ms(rows),
        "tokens": tokens,
        "seconds": rounded(sum(run["seconds"] for run in runs), 2),
        "tokens_per_round": rounded(tokens / rounds if rounds else None),
        "acceptance_rate": rounded(accepted / evaluated if evaluated else None, 4),
        "draft_efficiency": rounded(accepted / drafted if drafted else None, 4),
        "own_busy_cores": rounded(median(s.own_cores for s in rows), 2),
        "other_busy_cores": rounded(median(s.other_cores for s in rows), 2),
    }  # fmt: skip


def ratio(
    samples: Samples,
    numerator: str,
    denominator: str,
    rate: Callable[[Sample], float | None],
    prompts: Sequence[int],
    seed: int,
) -> dict[str, Any] | None:
    """Return the median over (prompt, repeat) of the quotient of two rates, with a 95% interval.

    Both rates of a quotient were taken in the same turn, so a busy spell meets both. The
    bootstrap draws prompts, and for each drawn prompt its repeats, with replacement.
    """
    below = {(s.prompt, s.repeat): rate(s) for s in samples.of(denominator, prompts)}
    quotients: dict[int, list[float]] = {}
    for s in samples.of(numerator, prompts):
        mine, theirs = rate(s), below.get((s.prompt, s.repeat))
        if mine is not None and theirs:
            quotients.setdefault(s.prompt, []).append(mine / theirs)
    groups = list(quotients.values())
    if not groups:
        return None
    draw = random.Random(seed)
    medians = sorted(
        statistics.median(
            [
                q
                for group in draw.choices(groups, k=len(groups))
                for q in draw.choices(group, k=len(group))
            ]
        )
        for _ in range(RESAMPLES)
    )
    return {
        "ratio": rounded(statistics.median([q for group in groups for q in group])),
        "interval": [
            rounded(medians[int(share * (RESAMPLES - 1))]) for share in (0.025, 0.975)
        ],
        "prompts": len(groups),
    }  # fmt: skip


def repeated_share(prompt: Sequence[int], ids: Sequence[int]) -> float:
    """Return the share of `ids` that lie in a 32-gram seen earlier in prompt and text."""
    line = [*prompt, *ids]
    flags = [False] * len(line)
    seen: set[tuple[int, ...]] = set()
    for end in range(REPEAT, len(line) + 1):
        gram = tuple(line[end - REPEAT : end])
        if gram in seen:
            flags[end - REPEAT : end] = [True] * REPEAT
        seen.add(gram)
    own = flags[len(prompt) :]
    return sum(own) / len(own) if own else 0.0


def agreement(samples: Samples, one: str, other: str, prompts: Sequence[int]) -> dict[str, Any]:
    """Return the share of equal texts and where the first unequal ones part."""
    parted = []
    for prompt in prompts:
        a, b = samples.text(one, prompt), samples.text(other, prompt)
        if a != b:
            same = next(
                (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y),
                min(len(a), len(b)),
            )
            parted.append({"prompt": prompt, "token": same, "of": [len(a), len(b)]})
    return {
        "equal": rounded((len(prompts) - len(parted)) / len(prompts)),
        "first_difference": parted[0] if parted else None,
        "median_first_difference": median(float(p["token"]) for p in parted),
    }


def steady(samples: Samples, contestant: str) -> bool:
    """Return whether every repeat wrote the same text."""
    return all(s.run["ids"] == samples.text(contestant, s.prompt) for s in samples.of(contestant))

"""What a run comes to, in two sentences that somebody who decides can read."""

from __future__ import annotations

from collections.abc import Sequence

from paceline.lab.bench_record import Contestant, Load
from paceline.lab.bench_result import Comparison, Figures, Interval


def verdict(
    contestants: Sequence[Contestant],
    figures: Sequence[Figures],
    comparisons: Sequence[Comparison],
    measured: int,
    planned: int,
) -> tuple[str, ...]:
    """Whether speculation pays, and whether what was compared is sound."""
    return (_pays(contestants, figures), _sound(comparisons, measured, planned))


def _pays(contestants: Sequence[Contestant], figures: Sequence[Figures]) -> str:
    """The fastest speculating contestant of the first engine that has a plain one, load by load."""
    engines = {c.name: c for c in contestants}
    whole = [f for f in figures if f.category is None and f.speedup is not None]
    if not whole:
        return (
            "Whether speculation pays cannot be said: no contestant was measured beside the plain "
            "decoding of its own engine."
        )
    home = engines[whole[0].contestant].family
    parts: list[tuple[Figures, Interval]] = []
    for load in dict.fromkeys(f.load.name for f in whole):
        rows = [f for f in whole if f.load.name == load and engines[f.contestant].family == home]
        if not rows:
            continue
        best = max(rows, key=lambda f: f.speedup.value if f.speedup else 0.0)
        assert best.speedup is not None
        parts.append((best, best.speedup))
    said = [f"with {_in_words(best.load)} {_gain(best, gain)}" for best, gain in parts]
    over = parts[0][0].over
    if all(_clearly(gain, 1) for _, gain in parts):
        head = "Speculation pays"
    elif all(_clearly(gain, -1) for _, gain in parts):
        head = "Speculation does not pay"
    elif any(_clearly(gain, 1) for _, gain in parts):
        head = "Speculation pays under some loads"
    else:
        head = "Whether speculation pays is not settled by these texts"
    return f"{head}: {'; '.join(said)}, each over {over} on the same prompts."


def _in_words(load: Load) -> str:
    if load.kind == "closed":
        return "one text at a time" if load.concurrency == 1 else f"{load.concurrency} at a time"
    if load.kind == "poisson":
        return f"{load.rate:g} requests a second"
    return f"the recorded requests ({load.name})"


def _gain(best: Figures, gain: Interval) -> str:
    if gain.low is None or gain.high is None:
        few = "too few prompts for an interval"
        return f"{best.contestant} is fastest, {gain.value:.2f} times as fast ({few})"
    return (
        f"{best.contestant} is fastest, {gain.value:.2f} times as fast "
        f"({gain.low:.2f} to {gain.high:.2f} with 95\u00a0% confidence)"
    )


def _clearly(gain: Interval, side: int) -> bool:
    """Whether the whole interval lies above 1 (side 1) or below it (-1)."""
    if gain.low is None or gain.high is None:
        return False
    return gain.low > 1 if side > 0 else gain.high < 1


def _sound(comparisons: Sequence[Comparison], measured: int, planned: int) -> str:
    binding = [c for c in comparisons if c.binding]
    texts, same = sum(c.texts for c in binding), sum(c.same for c in binding)
    if not binding:
        told = "No text could be held against the plain decoding of its own engine"
    elif same == texts:
        head = "The one speculative text is" if texts == 1 else f"All {texts} speculative texts are"
        told = f"{head} the plain decoding's own"
    else:
        apart = ", ".join(f"{c.contestant} in {c.texts - c.same}" for c in binding
                          if c.same < c.texts)  # fmt: skip
        told = f"{texts - same} of {texts} speculative texts differ from plain decoding's ({apart})"
    if measured >= planned:
        return f"{told}; everything was measured."
    return f"{told}; {measured} of {planned} texts were measured."

"""Tests of a sample against a known law: G-test, its power, and Holm's correction.

Pure arithmetic on counts and expected probabilities, in float64 on torch's special functions;
knows nothing of engines or rules.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import torch

Name = TypeVar("Name", bound=Hashable)
ALPHA = 1e-3  # of all tests of a report together
POWER = 0.9
LEAST_EXPECTED = 5.0


@dataclass(frozen=True, slots=True)
class GTest:
    """One G-test. least_total_variation: a law farther than that from the expected one, over
    these bins, would have been rejected at `alpha` with probability `power` or more."""

    statistic: float
    bins: int
    samples: int
    p_value: float
    total_variation: float
    least_total_variation: float


def chi2_sf(x: float, df: float) -> float:
    """Return P(X > x) for X chi-squared with df degrees of freedom."""
    if x <= 0:
        return 1.0
    half = torch.tensor([df / 2, x / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


def noncentral_sf(x: float, df: float, noncentrality: float) -> float:
    """Return P(X > x) for X noncentral chi-squared: a Poisson mixture of chi-squared laws."""
    mean = noncentrality / 2
    if mean <= 0:
        return chi2_sf(x, df)
    reach = int(12 * math.sqrt(mean) + 30)
    j = torch.arange(max(0, int(mean) - reach), int(mean) + reach, dtype=torch.float64)
    weight = (j * math.log(mean) - mean - torch.lgamma(j + 1)).exp()
    tail = torch.special.gammaincc(df / 2 + j, torch.full_like(j, x / 2))
    return float((weight * tail).sum())


def _bisect(rising: Callable[[float], float], goal: float, high: float) -> float:
    """Return x with rising(x) = goal, doubling `high` until it is beyond."""
    low = 0.0
    while rising(high) < goal:
        low, high = high, 2 * high
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < goal else (low, middle)
    return high


@lru_cache(maxsize=4096)
def least_total_variation(samples: int, bins: int, alpha: float, power: float) -> float:
    """Return the total variation d such that every law at least d away is rejected with `power`.

    With n samples the noncentrality is n·χ², and χ² = Σ δ²/p is at least 4·d² for any deviation
    δ of total variation d (Cauchy and Schwarz), so the bound holds for all of them.
    """
    if bins < 2 or samples == 0:
        return 1.0
    df = bins - 1
    critical = _bisect(lambda x: -chi2_sf(x, df), -alpha, df + 10.0)
    needed = _bisect(lambda nc: noncentral_sf(critical, df, nc), power, 10.0)
    return min(1.0, math.sqrt(needed / samples) / 2)


def g_test(
    counts: Sequence[float], expected: Sequence[float], alpha: float = ALPHA, power: float = POWER
) -> GTest:
    """Return the G-test of `counts` against probabilities `expected` (they sum to 1).

    Bins expected to hold fewer than five are pooled into one (Cochran's rule), which takes the
    next smallest too while it is itself below five. Williams' (1976) correction for small counts.
    A token that cannot occur but did fails at once: p is 0.
    """
    n = float(sum(counts))
    if n == 0:
        return GTest(0.0, 0, 0, 1.0, 0.0, 1.0)
    pairs = sorted(zip(expected, counts, strict=True), reverse=True)
    if any(p <= 0 and c > 0 for p, c in pairs):
        return GTest(math.inf, len(pairs), int(n), 0.0, 1.0, 1.0)
    kept: list[tuple[float, float]] = []
    pool = (0.0, 0.0)
    for p, c in reversed(pairs):  # smallest first
        if p * n < LEAST_EXPECTED or 0 < pool[0] * n < LEAST_EXPECTED:
            pool = (pool[0] + p, pool[1] + c)
        else:
            kept.append((p, c))
    if pool[0] > 0 and pool[0] * n < LEAST_EXPECTED and kept:
        smallest = kept.pop(0)
        pool = (pool[0] + smallest[0], pool[1] + smallest[1])
    if pool[0] > 0:
        kept.append(pool)
    total = sum(p for p, _ in kept)
    kept = [(p / total, c) for p, c in kept]
    bins = len(kept)
    tv = sum(abs(c / n - p) for p, c in kept) / 2
    least = least_total_variation(int(n), bins, alpha, power)
    if bins < 2:
        return GTest(0.0, bins, int(n), 1.0, tv, least)
    g = 2 * sum(c * math.log(c / (n * p)) for p, c in kept if c > 0)
    g /= 1 + (sum(1 / p for p, _ in kept) - 1) / (6 * n * (bins - 1))
    return GTest(g, bins, int(n), chi2_sf(g, bins - 1), tv, least)


def g_test_of(
    observed: Mapping[Name, int], expected: Mapping[Name, float], alpha: float = ALPHA
) -> GTest:
    """`g_test` of counts by name; a name without an expected probability has probability 0."""
    names = list(observed.keys() | expected.keys())
    counts = [observed.get(name, 0) for name in names]
    return g_test(counts, [expected.get(name, 0.0) for name in names], alpha)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for all being tested at once (Holm 1979), in the given order."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, worst = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = worst
    return adjusted

"""Numbers from numbers: percentiles, ratios of sums, and their intervals by bootstrap.

Knows nothing of what was measured.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paceline.lab.bench_result import Interval, Percentiles

FEWEST = 5  # prompts below which an interval would say nothing
_RESAMPLES = 4000
_LEVEL = 0.95


def percentiles(values: Sequence[float]) -> Percentiles | None:
    """p50, p95 and p99, interpolated; None of nothing."""
    if not values:
        return None
    p50, p95, p99 = (float(np.percentile(values, q)) for q in (50, 95, 99))
    return Percentiles(p50, p95, p99, len(values))


def ratio_of_sums(above: Sequence[float], below: Sequence[float]) -> Interval | None:
    """sum(above) / sum(below), with the interval from drawing prompts anew.

    One entry a prompt in both. None where nothing is below.
    """
    if not below or sum(below) <= 0:
        return None
    value = sum(above) / sum(below)
    if len(below) < FEWEST:
        return Interval(value)
    a, b = np.asarray(above, float), np.asarray(below, float)
    chosen = _draws(len(b))
    return _interval(value, a[chosen].sum(1) / b[chosen].sum(1))


def ratio_of_rates(
    done: Sequence[float],
    seconds: Sequence[float],
    other_done: Sequence[float],
    other_seconds: Sequence[float],
) -> Interval | None:
    """(sum(done) / sum(seconds)) / (the same of the other), paired: entry i of all four is of one
    prompt, and prompts are drawn anew together. None where a rate is not positive."""
    if min(sum(column) for column in (done, seconds, other_done, other_seconds)) <= 0:
        return None
    value = (sum(done) / sum(seconds)) / (sum(other_done) / sum(other_seconds))
    if len(done) < FEWEST:
        return Interval(value)
    chosen = _draws(len(done))
    sums = [np.asarray(x, float)[chosen].sum(1) for x in (done, seconds, other_done, other_seconds)]
    d, s, od, os = sums
    sound = (s > 0) & (od > 0) & (os > 0)
    return _interval(value, (d[sound] / s[sound]) / (od[sound] / os[sound]))


def _draws(count: int) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """Prompts with replacement, [resamples, count]; the same for the same count."""
    return np.random.default_rng(0).integers(0, count, (_RESAMPLES, count))


def _interval(value: float, drawn: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Interval:
    tail = (1 - _LEVEL) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Interval(value, float(low), float(high))

"""Measured seconds as a whole grid over rows, draft tokens and context. Pure; see `engine.cost`."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["verify", "draft"]
KINDS: tuple[Kind, ...] = ("verify", "draft")


@dataclass(frozen=True, slots=True)
class Point:
    """One measurement: seconds to verify k draft tokens a row (a window of k + 1), or to draft k,
    at `context` committed positions a row. A draft of 0 is a drafter that only observes."""

    kind: Kind
    rows: int
    k: int
    context: int
    seconds: float


class Grid:
    """One kind's measured points as a whole grid over (rows, k): seconds at context 0 and seconds
    a position, neither falling with rows or k, and straight lines between."""

    def __init__(self, kind: Kind, points: Iterable[Point]) -> None:
        found: dict[int, dict[int, dict[int, float]]] = {}
        for point in points:
            if point.kind == kind:
                row = found.setdefault(point.rows, {})
                row.setdefault(point.k, {})[point.context] = point.seconds
        if kind == "draft":  # no drafts take no time, unless that was measured
            for row in found.values():
                row.setdefault(0, {0: 0.0})
        self.sizes = sorted(found)
        self.ks = sorted({k for row in found.values() for k in row})
        self._windows = [k + 1 for k in self.ks]
        slopes = [{k: _slope(at) for k, at in found[size].items()} for size in self.sizes]
        known = [{k: x for k, x in row.items() if x is not None} for row in slopes]
        for lines in known:
            if kind == "draft" and lines:  # nor do they take any in a longer context
                lines.setdefault(0, 0.0)
        # A longer window reads the cache no more often, so there what is known last goes on.
        known = [row | ({self.ks[-1]: row[max(row)]} if row else {}) for row in known]
        self._slope = _monotone(_filled(known, self.sizes, self.ks))
        bases = [
            {k: _base(at, self._slope[i][self.ks.index(k)]) for k, at in found[size].items()}
            for i, size in enumerate(self.sizes)
        ]
        self._base = _monotone(_filled(bases, self.sizes, self.ks))

    def at(self, rows: int, k: int) -> tuple[float, float]:
        """(Seconds at context 0, seconds a position); 0 where nothing was measured."""
        if not self.sizes:
            return 0.0, 0.0
        base, slope = (
            _along(self.sizes, [_along(self._windows, row, k + 1) for row in grid], rows)
            for grid in (self._base, self._slope)
        )
        return base, slope


def _slope(at: dict[int, float]) -> float | None:
    low, high = min(at), max(at)
    return max(0.0, (at[high] - at[low]) / (high - low)) if high > low else None


def _base(at: dict[int, float], slope: float) -> float:
    """Seconds at context 0; never less than half of the least measured."""
    low = min(at)
    return max(at[low] - slope * low, at[low] / 2)


def _filled(rows: list[dict[int, float]], sizes: list[int], ks: list[int]) -> list[list[float]]:
    """The whole grid: gaps in a row along its ks, rows without any along the sizes."""
    known = [i for i, row in enumerate(rows) if row]
    if not known:
        return [[0.0] * len(ks) for _ in rows]
    whole = {
        i: [_along([k + 1 for k in sorted(row)], [row[k] for k in sorted(row)], k + 1) for k in ks]
        for i, row in enumerate(rows)
        if row
    }
    at = [sizes[i] for i in known]
    return [
        whole.get(i) or [_along(at, [whole[j][c] for j in known], size) for c in range(len(ks))]
        for i, size in enumerate(sizes)
    ]


def _along(xs: Sequence[int], ys: Sequence[float], x: float) -> float:
    """Straight lines through the points; before the first its value, after the last in proportion
    to it (x above 0), which is rather too much than too little."""
    if x <= xs[0]:
        return ys[0]
    if x >= xs[-1]:
        return ys[-1] * x / xs[-1]
    right = bisect_left(xs, x)
    rise = (ys[right] - ys[right - 1]) / (xs[right] - xs[right - 1])
    return ys[right - 1] + rise * (x - xs[right - 1])


def _monotone(grid: list[list[float]]) -> list[list[float]]:
    """The grid made to fall nowhere: neighbours that do are averaged, first along k, then along
    the rows, and what is left of it is lifted."""
    if not grid:
        return grid
    grid = [_rising(row) for row in grid]
    grid = [list(row) for row in zip(*(_rising(column) for column in zip(*grid, strict=True)),
                                     strict=True)]  # fmt: skip
    for i, row in enumerate(grid):
        for j in range(len(row)):
            above = grid[i - 1][j] if i else 0.0
            row[j] = max(row[j], above, row[j - 1] if j else 0.0)
    return grid


def _rising(values: Iterable[float]) -> list[float]:
    """The nearest sequence that never falls (pool adjacent violators)."""
    pools: list[tuple[float, int]] = []
    for value in values:
        total, count = value, 1
        while pools and pools[-1][0] / pools[-1][1] > total / count:
            before = pools.pop()
            total, count = total + before[0], count + before[1]
        pools.append((total, count))
    return [total / count for total, count in pools for _ in range(count)]

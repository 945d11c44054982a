"""Cells of noise: where a draw or a comparison decides alike, in exact fractions.

A Gumbel vector over V tokens enters a draw only through e = exp(−gumbel) / Σ exp(−gumbel), which
is uniform on the simplex; argmax(log w + gumbel) is argmin e/w, so the noise that draws one token
is a convex polygon with rational corners and its probability an area. A uniform number is the
same thing on the segment (u, 1 − u). Vocabularies of two and three only. Knows nothing of rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

Point = tuple[Fraction, ...]
Cell = tuple[Point, ...]  # the corners of a convex region of the simplex, in order


def simplex(size: int) -> Cell:
    """Return the whole simplex of 2 or 3 coordinates."""
    assert size in (2, 3), "cells are exact for two and three tokens"
    return tuple(tuple(Fraction(int(i == j)) for j in range(size)) for i in range(size))


def measure(cell: Cell) -> Fraction:
    """Return the probability of a cell; the whole simplex has 1."""
    if len(cell) < len(cell[0]) if cell else True:
        return Fraction(0)
    if len(cell[0]) == 2:
        return abs(cell[0][0] - cell[1][0])
    turns = zip(cell, cell[1:] + cell[:1], strict=True)
    return abs(sum((a[0] * b[1] - b[0] * a[1] for a, b in turns), Fraction(0)))


def clip(cell: Cell, normal: Sequence[Fraction]) -> Cell:
    """Return the part of a cell where normal · e >= 0 (Sutherland and Hodgman 1974)."""
    side = [sum((n * x for n, x in zip(normal, p, strict=True)), Fraction(0)) for p in cell]
    out: list[Point] = []
    for i, corner in enumerate(cell):
        j = (i + 1) % len(cell)
        if side[i] >= 0:
            out.append(corner)
        if side[i] * side[j] < 0:
            t = side[i] / (side[i] - side[j])
            out.append(tuple(a + t * (b - a) for a, b in zip(corner, cell[j], strict=True)))
    return tuple(dict.fromkeys(out))


@lru_cache(maxsize=100_000)
def by_token(cell: Cell, weights: tuple[Fraction, ...]) -> tuple[tuple[int, Cell], ...]:
    """Split a cell by the token that argmax(log weights + gumbel) draws, empty parts left out."""
    parts = []
    for x, w in enumerate(weights):
        part = cell if w > 0 else ()
        for k, other in enumerate(weights):
            if part and k != x and other > 0:
                normal = [Fraction(0)] * len(weights)
                normal[k], normal[x] = w, -other  # e_x / w_x <= e_k / w_k
                part = clip(part, normal)
        if measure(part) > 0:
            parts.append((x, part))
    return tuple(parts)


@lru_cache(maxsize=100_000)
def by_threshold(cell: Cell, threshold: Fraction) -> tuple[tuple[bool, Cell], ...]:
    """Split a segment (u, 1 − u) by u < threshold, empty parts left out."""
    below = (threshold - 1, threshold)  # threshold · (u + v) − u >= 0
    parts = (True, clip(cell, below)), (False, clip(cell, [-x for x in below]))
    return tuple((side, part) for side, part in parts if measure(part) > 0)


@lru_cache(maxsize=100_000)
def points(cell: Cell) -> tuple[tuple[float, ...], ...]:
    """Return the centre of a cell, then a point next to each corner, as floats.

    Regions that decide alike are convex: a rule that decides alike next to all corners decides
    so in all of the cell.
    """
    size = len(cell[0])
    centre = [sum((p[i] for p in cell), Fraction(0)) / len(cell) for i in range(size)]
    near = Fraction(63, 64)
    corners = [[c + near * (x - c) for c, x in zip(centre, p, strict=True)] for p in cell]
    return tuple(tuple(float(x) for x in point) for point in (centre, *corners))

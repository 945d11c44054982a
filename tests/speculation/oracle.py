"""Plain Python loops over float64 numbers: what `paceline.speculation` must compute."""

from __future__ import annotations

import math
from collections.abc import Sequence

Vector = list[float]


def softmax(scores: Sequence[float]) -> Vector:
    best = max(scores)
    weights = [math.exp(s - best) for s in scores]
    total = sum(weights)
    return [w / total for w in weights]


def argmax(values: Sequence[float]) -> int:
    return max(range(len(values)), key=lambda i: (values[i], -i))


def log(x: float) -> float:
    return math.log(x) if x > 0 else -math.inf


def draw(weights: Sequence[float], gumbel: Sequence[float] | None) -> int:
    noise = gumbel if gumbel is not None else [0.0] * len(weights)
    return argmax([log(w) + g for w, g in zip(weights, noise, strict=True)])


def distribution(
    logits: Sequence[float],
    prompt: Sequence[int],
    output: Sequence[int],
    *,
    position: int = 0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition: float = 1.0,
    presence: float = 0.0,
    frequency: float = 0.0,
    bias: dict[int, float] | None = None,
    stop_ids: Sequence[int] = (),
    min_position: int = 0,
) -> Vector:
    """Probabilities of the next token after prompt + output, step by step as documented."""
    x = list(logits)
    for token, value in (bias or {}).items():
        x[token] += value
    if position < min_position:
        for token in stop_ids:
            x[token] = -math.inf
    for token in set(prompt) | set(output):
        x[token] = x[token] * repetition if x[token] < 0 else x[token] / repetition
    for token in set(output):
        x[token] -= presence + frequency * list(output).count(token)
    if temperature == 0:
        best = argmax(x)
        return [float(i == best) for i in range(len(x))]
    x = [value / temperature for value in x]
    ranked = sorted(range(len(x)), key=lambda i: (-x[i], i))
    if top_k > 0:
        for i in ranked[top_k:]:
            x[i] = -math.inf
    if top_p < 1:
        p, mass = softmax(x), 0.0
        for n, i in enumerate(ranked):
            if n and mass >= top_p:
                x[i] = -math.inf
            mass += p[i]
    p = softmax(x)
    floor = min_p * max(p)
    return softmax([-math.inf if value < floor else s for s, value in zip(x, p, strict=True)])


Outcome = tuple[list[int], int]


def match(
    p: Sequence[Vector], tokens: Sequence[int], count: int, gumbel: Sequence[Vector] | None
) -> Outcome:
    out: list[int] = []
    for j in range(count + 1):
        own = draw(p[j], gumbel[j] if gumbel else None)
        out.append(own)
        if j == count or own != tokens[j]:
            return out, j
    raise AssertionError


def residual(p: Vector, q: Vector, weight: float = 1.0) -> Vector:
    return [max(weight * a - b, 0.0) for a, b in zip(p, q, strict=True)]


def reject(
    p: Sequence[Vector],
    q: Sequence[Vector],
    tokens: Sequence[int],
    count: int,
    accept: Sequence[float],
    gumbel: Sequence[float] | None,
) -> Outcome:
    """Leviathan et al. 2023, algorithm 1. gumbel: of the one token that is drawn."""
    for j in range(count):
        x = tokens[j]
        if accept[j] >= min(1.0, p[j][x] / q[j][x]):
            return [*tokens[:j], draw(residual(p[j], q[j]), gumbel)], j
    return [*tokens[:count], draw(p[count], gumbel)], count


def block(
    p: Sequence[Vector],
    q: Sequence[Vector],
    tokens: Sequence[int],
    count: int,
    accept: Sequence[float],
    gumbel: Sequence[float] | None,
) -> Outcome:
    """Sun et al. 2024, algorithm 2."""
    weights = [1.0]
    for j in range(count):
        weights.append(min(weights[-1] * p[j][tokens[j]] / q[j][tokens[j]], 1.0))
    n = 0
    for i in range(1, count + 1):
        if i == count:
            h = weights[i]
        else:
            z = sum(residual(p[i], q[i], weights[i]))
            h = z / (z + 1 - weights[i]) if z > 0 else 0.0
        if accept[i - 1] < h:
            n = i
    if n == count:
        return [*tokens[:n], draw(p[n], gumbel)], n
    return [*tokens[:n], draw(residual(p[n], q[n], weights[n]), gumbel)], n

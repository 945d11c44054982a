"""Builders of sampling parameters and random distributions for the tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from paceline.speculation.sampling import SamplingTensors
from paceline.types import SamplingFlags

F64 = torch.float64
ALL = SamplingFlags(draws=True, penalties=True, bias=True, truncation=True, min_tokens=True)


def params(rows: list[dict[str, Any]]) -> SamplingTensors:
    """One row a dict, with the keywords of `oracle.distribution`."""

    def column(name: str, default: float) -> Tensor:
        return torch.tensor([row.get(name, default) for row in rows], dtype=F64)

    n = max([1, *(len(row.get("bias", {})) for row in rows)])
    m = max([1, *(len(row.get("stop_ids", ())) for row in rows)])
    bias = [list(row.get("bias", {}).items()) + [(0, 0.0)] * n for row in rows]
    stops = [list(row.get("stop_ids", ())) + [-1] * m for row in rows]
    return SamplingTensors(
        temperature=column("temperature", 1.0),
        top_k=column("top_k", 0).long(),
        top_p=column("top_p", 1.0),
        min_p=column("min_p", 0.0),
        repetition=column("repetition", 1.0),
        presence=column("presence", 0.0),
        frequency=column("frequency", 0.0),
        bias_ids=torch.tensor([[i for i, _ in row[:n]] for row in bias]),
        bias_values=torch.tensor([[x for _, x in row[:n]] for row in bias], dtype=F64),
        stop_ids=torch.tensor([row[:m] for row in stops]),
        min_position=column("min_position", 0).long(),
        processed=column("processed", 0).bool(),
    )


def random_scores(generator: torch.Generator, *shape: int, sharp: float = 2.0) -> Tensor:
    """Random log-weights, about a fifth of the tokens removed, never all."""
    scores = torch.randn(*shape, generator=generator, dtype=F64) * sharp
    removed = torch.rand(*shape, generator=generator) < 0.2
    removed.scatter_(-1, scores.argmax(-1, keepdim=True), False)
    return scores.masked_fill_(removed, -torch.inf)

"""What the host reads of one round, as plain lists, and how it leaves the device.

A verdict is read directly where the round has just run; a captured round packs it into one array,
so that one copy brings all of it to the host.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from paceline.types import Logprobs, Verdict

# Columns of a packed verdict after its W tokens.
_COLUMNS = 7


@dataclass(frozen=True, slots=True)
class Report:
    """One round, a list entry a row; see `Verdict` for the fields. logprobs stay tensors on the
    host, because few rows ask for them."""

    tokens: list[list[int]]
    n: list[int]
    drafted: list[int]
    source: list[int]
    accepted: list[int]
    evaluated: list[int]
    ended: list[int]
    failed: list[int]
    logprobs: Logprobs | None = None

    @classmethod
    def read(cls, verdict: Verdict) -> Self:
        """Wait for a verdict and read it."""
        return cls(
            verdict.tokens.tolist(),
            verdict.n.tolist(),
            verdict.drafted.tolist(),
            verdict.source.tolist(),
            verdict.accepted.tolist(),
            verdict.evaluated.tolist(),
            verdict.ended.tolist(),
            verdict.failed.tolist(),
            verdict.logprobs,
        )

    @classmethod
    def unpack(cls, packed: Tensor, logprobs: Logprobs | None) -> Self:
        """Read what `pack` made, [B, W + 7] on the host."""
        width = packed.shape[1] - _COLUMNS
        n, drafted, source, accepted, evaluated, ended, failed = packed[:, width:].t().tolist()
        tokens = packed[:, :width].tolist()
        return cls(tokens, n, drafted, source, accepted, evaluated, ended, failed, logprobs)


def pack(verdict: Verdict) -> Tensor:
    """A verdict without its log-probabilities as one array [B, W + 7] int64."""
    columns = (
        verdict.n,
        verdict.drafted,
        verdict.source,
        verdict.accepted,
        verdict.evaluated,
        verdict.ended,
        verdict.failed,
    )
    return torch.cat((verdict.tokens, *(column.unsqueeze(1) for column in columns)), 1)

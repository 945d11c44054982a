"""What the host reads of one round, as plain lists, from the verdict's one array."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from paceline.types import REPORT, Logprobs


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
    def read(cls, report: Tensor, logprobs: Logprobs | None) -> Self:
        """Read `Verdict.report`, [B, W + 8]; waits for it where it is on a device."""
        width = report.shape[1] - len(REPORT)
        rows: list[list[int]] = report.tolist()
        columns = [[row[width + place] for row in rows] for place in range(len(REPORT) - 1)]
        n, drafted, source, accepted, evaluated, ended, failed = columns
        tokens = [row[:width] for row in rows]
        return cls(tokens, n, drafted, source, accepted, evaluated, ended, failed, logprobs)

"""No drafter: plain decoding through the same round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from paceline.drafters.base import Drafter, Draw
from paceline.types import Draft, Needs, Rows


@dataclass(frozen=True, slots=True)
class NoneOptions:
    """Nothing to choose."""


class NoDrafter(Drafter):
    """Proposes nothing, ever."""

    name: ClassVar[str] = "none"
    Options: ClassVar[type[NoneOptions]] = NoneOptions
    needs = Needs(most=0)

    def __init__(self, options: NoneOptions | None = None) -> None:
        self.options = options or NoneOptions()

    def propose(self, rows: Rows, k: int, draw: Draw) -> Draft:
        """Return a draft of count 0 for every row."""
        tokens = rows.length.new_zeros(rows.length.shape[0], k)
        return Draft(tokens, torch.zeros_like(rows.length), torch.zeros_like(rows.length))

"""No drafter: plain decoding through the same round."""

from __future__ import annotations

from typing import ClassVar

import torch

from paceline.drafters.base import Drafter, Draw
from paceline.types import Draft, Needs, Rows


class NoDrafter(Drafter):
    """Proposes nothing, ever."""

    name: ClassVar[str] = "none"
    needs = Needs(most=0)

    def propose(self, rows: Rows, k: int, draw: Draw) -> Draft:
        """Return a draft of count 0 for every row."""
        tokens = rows.length.new_zeros(rows.length.shape[0], k)
        return Draft(tokens, torch.zeros_like(rows.length), torch.zeros_like(rows.length))

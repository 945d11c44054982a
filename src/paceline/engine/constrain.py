"""Rows that a grammar binds: before a round, which tokens may come at every place of its window.

The one thing that makes the host wait for a draft. The rule sees the target's distribution with
the other tokens taken out, so every rule stays exact; a draft is replaced by what the grammar
forces only under `match`, where any draft will do.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from paceline.engine.round import Machine
from paceline.engine.sequence import Sequence

FORCED = "forced"  # the source of a token that the grammar left no choice about


@dataclass(slots=True)
class Constrainer:
    """Writes masks, and forced drafts, into the slots."""

    machine: Machine

    def prepare(self, rows: list[Sequence], k: int, widest: int) -> list[int]:
        """Masks for a window of up to k draft tokens, or of what is forced: at most `widest`.

        Returns, per row, how many draft tokens are forced. No round of a bound row may be in
        flight.
        """
        forced = [0] * len(rows)
        bound = [place for place, row in enumerate(rows) if row.request.constraint is not None]
        slots = self.machine.slots
        index = torch.tensor([rows[place].slot for place in bound], device=slots.limits.device)
        drafts = slots.draft_tokens[index].tolist()
        counts = slots.draft_count[index].tolist()
        for place, draft, count in zip(bound, drafts, counts, strict=True):
            sequence = rows[place]
            constraint = sequence.request.constraint
            assert constraint is not None
            room = max(0, min(widest, sequence.limit - len(sequence.tokens) - 1))
            drafted = draft[: min(count, k)]
            if widest and self.machine.rule.name == "match" and sequence.k:
                must = constraint.forced()[:room]
                if must and must != drafted[: len(must)]:
                    drafted = must
                    self._replace(sequence.slot, must)
                    forced[place] = len(must)
            masks = constraint.masks(drafted).to(slots.limits.device)
            slots.masks[sequence.slot, : masks.shape[0]] = masks
        return forced

    def _replace(self, slot: int, tokens: list[int]) -> None:
        slots = self.machine.slots
        slots.draft_tokens[slot, : len(tokens)] = torch.tensor(tokens)
        slots.draft_count[slot] = len(tokens)
        slots.draft_source[slot] = len(self.machine.drafter.sources)

"""How a drafter draws: the request's own distribution and the noise of the rule.

Under `match` the draft is drawn with the very noise that the target will meet at that position;
under `reject` and `block` with a stream of its own. Drafters hold neither.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from paceline.speculation.sampling import History, SamplingTensors, distribution, draw
from paceline.speculation.verify import Rule
from paceline.types import SamplingFlags


@dataclass(frozen=True, slots=True)
class ProposalDraw:
    """`drafters.base.Draw` for one round. seeds, length [B] int64 (committed tokens);
    prompt_seen, counts [B, V] or None where no row has a penalty."""

    rule: Rule
    params: SamplingTensors
    flags: SamplingFlags
    seeds: Tensor
    length: Tensor
    prompt_seen: Tensor | None
    counts: Tensor | None

    def step(self, logits: Tensor, drafted: Tensor) -> tuple[Tensor, Tensor | None]:
        """See `Draw.step`. logits [B, V]; drafted [B, j]."""
        tokens, scores = self._draw(logits.unsqueeze(1), drafted, drafted.shape[1])
        return tokens[:, 0], None if scores is None else scores[:, 0]

    def block(self, logits: Tensor) -> tuple[Tensor, Tensor | None]:
        """See `Draw.block`. logits [B, K, V]."""
        return self._draw(logits, logits.new_zeros(logits.shape[0], 0, dtype=torch.int64), 0)

    def _draw(self, logits: Tensor, drafted: Tensor, first: int) -> tuple[Tensor, Tensor | None]:
        node = torch.arange(first, first + logits.shape[1], device=logits.device)
        position = self.length.unsqueeze(1) + node  # [B, K]
        scores = distribution(
            logits, self.params, self.flags, position, self._history(drafted), self.rule.needs_q
        )
        noise = None
        if self.flags.draws:
            vocab = logits.shape[-1]
            noise = self.rule.proposal(self.seeds, self.length - 1, position, vocab, scores.dtype)
        return draw(scores, noise), scores if self.rule.needs_q else None

    def _history(self, drafted: Tensor) -> History | None:
        """Counts as they stand after `drafted`, for one node that sees all of it."""
        if self.prompt_seen is None or self.counts is None:
            return None
        ones = torch.ones_like(drafted, dtype=self.counts.dtype)
        counts = self.counts.scatter_add(1, drafted, ones)
        root = drafted.new_zeros(drafted.shape[0], 1)
        return History(self.prompt_seen, counts, root, None)

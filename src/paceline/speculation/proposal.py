"""How a drafter draws: the request's own distribution and the noise of the rule.

Under `match` the draft is drawn with the very noise that the target will meet at that position;
under `reject` and `block` with a stream of its own. Drafters hold neither.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from paceline.speculation.choose import Chooser, Terms
from paceline.speculation.sampling import History


@dataclass(frozen=True, slots=True)
class ProposalDraw:
    """`drafters.base.Draw` for one round. length [B] int64, committed tokens; prompt_seen,
    counts [B, V] or None where no row has a penalty."""

    chooser: Chooser
    terms: Terms
    length: Tensor
    prompt_seen: Tensor | None
    counts: Tensor | None

    def step(
        self, logits: Tensor, drafted: Tensor, out: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """See `Draw.step`. logits [B, V]; drafted [B, j]."""
        tokens, scores = self.chooser.propose(
            self.terms,
            logits.unsqueeze(1),
            self.length,
            drafted.shape[1],
            self._history(drafted),
            None if out is None else out.unsqueeze(1),
        )
        return tokens[:, 0], None if scores is None else scores[:, 0]

    def block(self, logits: Tensor) -> tuple[Tensor, Tensor | None]:
        """See `Draw.block`. logits [B, K, V]."""
        none = logits.new_zeros(logits.shape[0], 0, dtype=torch.int64)
        return self.chooser.propose(self.terms, logits, self.length, 0, self._history(none))

    def _history(self, drafted: Tensor) -> History | None:
        """Counts as they stand after `drafted`, for one node that sees all of it."""
        if self.prompt_seen is None or self.counts is None:
            return None
        ones = torch.ones_like(drafted, dtype=self.counts.dtype)
        counts = self.counts.scatter_add(1, drafted, ones)
        root = drafted.new_zeros(drafted.shape[0], 1)
        return History(self.prompt_seen, counts, root, None)

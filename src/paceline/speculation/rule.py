"""What a rule of verification is: the noise it wants and the verdict it gives.

One round: window node j in 0..K has scores[:, j], the target's log-weights for the token after
it; draft token j+1 is draft.tokens[:, j], drawn from draft.scores[:, j]; a row's count is how
many of them are there, and everything past it is padding that changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from paceline.types import Draft, RuleName


@dataclass(frozen=True, slots=True)
class VerifyNoise:
    """The random numbers of one round, handed in.

    gumbel: [B, W, V], or [B, 1, V] for a rule that draws one token a round, or None where every
    row is greedy. accept: uniforms [B, K], or None where the rule compares or nothing is drawn.
    """

    gumbel: Tensor | None = None
    accept: Tensor | None = None


class Rule(Protocol):
    """How a draft is verified. Instances are in `RULES`.

    needs_q: the rule reads draft.scores and tells one-hot scores from others, so the drafter
    stores what it drew from and `distribution(..., one_hot=True)` feeds it. keeps_text: the text
    is the same whatever is drafted, so that drafts may be cut, replaced and made as long as pays.
    compares: at every node it draws the target's own token with the noise of `proposal`, and
    accepts the draft while it equals that; so whoever draws may compare at once.
    """

    @property
    def name(self) -> RuleName: ...

    @property
    def needs_q(self) -> bool: ...

    @property
    def keeps_text(self) -> bool: ...

    @property
    def compares(self) -> bool: ...

    def noise(
        self,
        seeds: Tensor,
        root_position: Tensor,
        position: Tensor,
        vocab_size: int,
        dtype: torch.dtype,
        draws: bool,
    ) -> VerifyNoise:
        """Return the noise of one round.

        seeds, root_position [B] int64; position [B, W] int64, absolute, of the token drawn after
        each node; draws: some row has a temperature above 0, else there is nothing to draw.
        """
        ...

    def proposal(
        self,
        seeds: Tensor,
        root_position: Tensor,
        position: Tensor,
        vocab_size: int,
        dtype: torch.dtype,
    ) -> Tensor:
        """Return the Gumbel noise [B, W', V] with which a drafter draws tokens at position [B, W'].

        root_position [B]: of the round that will verify the draft.
        """
        ...

    def verify(
        self, scores: Tensor, draft: Draft, noise: VerifyNoise
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return (tokens [B, W], accepted [B], evaluated [B]), all int64.

        scores [B, W, V]: log-weights, −inf where removed. tokens[b, :accepted[b]] are accepted
        draft tokens, tokens[b, accepted[b]] is the target's own (its draw, the residual's or the
        bonus token), and 0 follows. evaluated = min(accepted + 1, count): the draft tokens whose
        predecessors were all accepted. Raises ConfigError for a tree under reject and block.
        """
        ...


def check_shapes(scores: Tensor, draft: Draft) -> None:
    """Assert the shapes of one round."""
    b, w, v = scores.shape
    assert draft.tokens.shape == (b, w - 1), "a window is the root and K draft tokens"
    assert draft.count.shape == (b,)
    assert draft.scores is None or draft.scores.shape == (b, w - 1, v)

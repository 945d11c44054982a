"""The rules of verification: the only place in the program that accepts a token.

`match` here, `reject` and `block` in rejection.py: pure functions over fixed shapes, each with the
noise it wants. Greedy is the one-hot distribution through the same formulas. Knows nothing of
models, slots, ends of sequences or limits; what it returns has not been cut.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from paceline.speculation.noise import Stream, gumbel, keys
from paceline.speculation.rejection import Block, Reject
from paceline.speculation.rule import Rule, VerifyNoise, check_shapes
from paceline.speculation.sampling import draw
from paceline.types import Draft, RuleName

__all__ = ["RULES", "Block", "Match", "Reject", "Rule", "VerifyNoise"]


@dataclass(frozen=True, slots=True)
class Match:
    """Draw the target's own token at every node; accept the draft while it equals it.

    The draw depends on seed and absolute position alone, so the text is a function of target,
    parameters and seed: the draft decides only how many of the draws count. A drafter that
    samples with the same noise (`proposal`) agrees most often: at least (1 − TV) / (1 + TV)
    (Daliri, Musco, Suresh 2024, arXiv 2408.07978, theorem 3 on Gumbel sampling).
    """

    name: RuleName = "match"
    needs_q: bool = False
    keeps_text: bool = True
    compares: bool = True

    def noise(
        self,
        seeds: Tensor,
        root_position: Tensor,
        position: Tensor,
        vocab_size: int,
        dtype: torch.dtype,
        draws: bool,
    ) -> VerifyNoise:
        if not draws:
            return VerifyNoise()
        return VerifyNoise(self.proposal(seeds, root_position, position, vocab_size, dtype))

    def proposal(
        self,
        seeds: Tensor,
        root_position: Tensor,
        position: Tensor,
        vocab_size: int,
        dtype: torch.dtype,
    ) -> Tensor:
        return gumbel(keys(seeds, Stream.TARGET, position), vocab_size, dtype)

    def verify(
        self, scores: Tensor, draft: Draft, noise: VerifyNoise
    ) -> tuple[Tensor, Tensor, Tensor]:
        check_shapes(scores, draft)
        assert draft.parents is None, "verifying a tree needs a path; only chains are drafted"
        own = draw(scores, noise.gumbel)  # [B, W]
        node = torch.arange(own.shape[1], device=own.device)  # [W]
        agree = (own[:, :-1] == draft.tokens) & (node[:-1] < draft.count.unsqueeze(1))  # [B, K]
        accepted = agree.cumprod(1).sum(1)
        own.mul_(node <= accepted.unsqueeze(1))
        return own, accepted, torch.minimum(accepted + 1, draft.count)


RULES: dict[RuleName, Rule] = {"match": Match(), "reject": Reject(), "block": Block()}

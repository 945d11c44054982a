"""Rules broken on purpose, each as it has been shipped somewhere or might be.

A suite that does not tell every one of them from a sound rule proves nothing. They differ from
the sound rule in one function; nothing in the program uses them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from paceline.speculation.noise import Stream, gumbel, keys, uniform
from paceline.speculation.sampling import draw, probabilities
from paceline.speculation.verify import RULES, Rule, VerifyNoise
from paceline.types import Draft, RuleName

Verdict = tuple[Tensor, Tensor, Tensor]
Verify = Callable[[Rule, Tensor, Draft, VerifyNoise], Verdict]
Noise = Callable[[Rule, Tensor, Tensor, Tensor, int, torch.dtype], VerifyNoise]
Proposal = Callable[[Rule, Tensor, Tensor, Tensor, int, torch.dtype], Tensor]


@dataclass(frozen=True, slots=True)
class Mutant:
    """A rule with some of its functions replaced."""

    sound: Rule
    broken_verify: Verify | None = None
    broken_noise: Noise | None = None
    broken_proposal: Proposal | None = None

    @property
    def name(self) -> RuleName:
        return self.sound.name

    @property
    def needs_q(self) -> bool:
        return self.sound.needs_q

    @property
    def keeps_text(self) -> bool:
        return self.sound.keeps_text

    @property
    def compares(self) -> bool:
        return False  # what is replaced is seen in `verify` alone

    def noise(
        self, seeds: Tensor, root: Tensor, position: Tensor, v: int, dtype: torch.dtype, draws: bool
    ) -> VerifyNoise:
        if self.broken_noise is None or not draws:
            return self.sound.noise(seeds, root, position, v, dtype, draws)
        return self.broken_noise(self.sound, seeds, root, position, v, dtype)

    def proposal(
        self, seeds: Tensor, root: Tensor, position: Tensor, v: int, dtype: torch.dtype
    ) -> Tensor:
        if self.broken_proposal is None:
            return self.sound.proposal(seeds, root, position, v, dtype)
        return self.broken_proposal(self.sound, seeds, root, position, v, dtype)

    def verify(self, scores: Tensor, draft: Draft, noise: VerifyNoise) -> Verdict:
        if self.broken_verify is None:
            return self.sound.verify(scores, draft, noise)
        return self.broken_verify(self.sound, scores, draft, noise)


def off_by_one(rule: Rule, scores: Tensor, draft: Draft, noise: VerifyNoise) -> Verdict:
    """The scores of node j + 1 stand for node j."""
    return rule.verify(torch.cat((scores[:, 1:], scores[:, -1:]), 1), draft, noise)


def swapped(rule: Rule, scores: Tensor, draft: Draft, noise: VerifyNoise) -> Verdict:
    """p and q change places."""
    assert draft.scores is not None
    p = torch.cat((draft.scores, scores[:, -1:]), 1)
    return rule.verify(p, replace(draft, scores=scores[:, :-1]), noise)


def residual_is_p(rule: Rule, scores: Tensor, draft: Draft, noise: VerifyNoise) -> Verdict:
    """After a rejection the token is drawn from p itself."""
    tokens, accepted, evaluated = rule.verify(scores, draft, noise)
    assert noise.gumbel is not None
    own = draw(scores, noise.gumbel)
    at = accepted.unsqueeze(1)
    return tokens.scatter(1, at, own.gather(1, at)), accepted, evaluated


def _other_residual(
    rule: Rule, scores: Tensor, draft: Draft, noise: VerifyNoise, residual: Tensor
) -> Verdict:
    tokens, accepted, evaluated = rule.verify(scores, draft, noise)
    assert noise.gumbel is not None
    own = draw(torch.cat((residual.log(), scores[:, -1:]), 1), noise.gumbel)
    at = accepted.unsqueeze(1)
    wrong = tokens.scatter(1, at, own.gather(1, at))
    partial = (accepted < draft.count).unsqueeze(1)
    return torch.where(partial, wrong, tokens), accepted, evaluated


def residual_is_absolute(rule: Rule, scores: Tensor, draft: Draft, noise: VerifyNoise) -> Verdict:
    """The residual is |p - q| where it should be max(p - q, 0)."""
    assert draft.scores is not None
    gap = probabilities(scores[:, :-1]) - probabilities(draft.scores)
    return _other_residual(rule, scores, draft, noise, gap.abs())


def residual_is_token_wise(rule: Rule, scores: Tensor, draft: Draft, noise: VerifyNoise) -> Verdict:
    """The residual is max(p - q, 0) where block's is max(w p - q, 0)."""
    assert draft.scores is not None
    gap = probabilities(scores[:, :-1]) - probabilities(draft.scores)
    return _other_residual(rule, scores, draft, noise, gap.clamp(min=0))


def block_token_wise(rule: Rule, scores: Tensor, draft: Draft, noise: VerifyNoise) -> Verdict:
    """The largest i whose own token passes min(1, p/q), with no joint test."""
    assert noise.accept is not None
    assert draft.scores is not None
    x = draft.tokens.unsqueeze(-1)
    p = probabilities(scores[:, :-1]).gather(-1, x).squeeze(-1)
    q = probabilities(draft.scores).gather(-1, x).squeeze(-1)
    length = torch.arange(1, p.shape[1] + 1)
    passed = (noise.accept * q < p) & (length <= draft.count.unsqueeze(1))
    forced = (length <= (passed * length).amax(1, keepdim=True)).to(p.dtype)
    accept = torch.where(forced > 0, 0.0, 1.0)  # reject then stops exactly there
    return RULES["reject"].verify(scores, draft, VerifyNoise(noise.gumbel, accept))


def proposal_is_residual(
    rule: Rule, seeds: Tensor, root: Tensor, position: Tensor, v: int, dtype: torch.dtype
) -> VerifyNoise:
    """The noise that drew the draft draws the residual too."""
    sound = rule.noise(seeds, root, position, v, dtype, True)
    return VerifyNoise(rule.proposal(seeds, root, position, v, dtype), sound.accept)


def one_uniform(
    rule: Rule, seeds: Tensor, root: Tensor, position: Tensor, v: int, dtype: torch.dtype
) -> VerifyNoise:
    """One acceptance number serves all positions of a round."""
    sound = rule.noise(seeds, root, position, v, dtype, True)
    assert sound.accept is not None
    return VerifyNoise(sound.gumbel, sound.accept[:, :1].expand_as(sound.accept))


def drawn_once(
    rule: Rule, seeds: Tensor, root: Tensor, position: Tensor, v: int, dtype: torch.dtype
) -> VerifyNoise:
    """The same numbers in every round."""
    return rule.noise(seeds, root * 0, position - root.unsqueeze(1), v, dtype, True)


def proposed_once(
    rule: Rule, seeds: Tensor, root: Tensor, position: Tensor, v: int, dtype: torch.dtype
) -> Tensor:
    return rule.proposal(seeds, root * 0, position - root.unsqueeze(1), v, dtype)


def unrooted_noise(
    rule: Rule, seeds: Tensor, root: Tensor, position: Tensor, v: int, dtype: torch.dtype
) -> VerifyNoise:
    """Streams keyed by position alone, not by the round's root."""
    residual = gumbel(keys(seeds, Stream.RESIDUAL, position), v, dtype)
    return VerifyNoise(residual, uniform(keys(seeds, Stream.ACCEPT, position[:, :-1]), dtype))


def unrooted_proposal(
    rule: Rule, seeds: Tensor, root: Tensor, position: Tensor, v: int, dtype: torch.dtype
) -> Tensor:
    return gumbel(keys(seeds, Stream.PROPOSAL, position), v, dtype)


MATCH, REJECT, BLOCK = RULES["match"], RULES["reject"], RULES["block"]
MUTANTS: dict[str, Mutant] = {
    "match, off by one": Mutant(MATCH, off_by_one),
    "match, same numbers every round": Mutant(MATCH, None, drawn_once, proposed_once),
    "reject, residual is p": Mutant(REJECT, residual_is_p),
    "reject, residual is |p - q|": Mutant(REJECT, residual_is_absolute),
    "reject, off by one": Mutant(REJECT, off_by_one),
    "reject, p and q swapped": Mutant(REJECT, swapped),
    "reject, proposal noise draws the residual": Mutant(REJECT, None, proposal_is_residual),
    "reject, one uniform a round": Mutant(REJECT, None, one_uniform),
    "reject, same numbers every round": Mutant(REJECT, None, drawn_once, proposed_once),
    "block, residual is p": Mutant(BLOCK, residual_is_p),
    "block, token-wise residual": Mutant(BLOCK, residual_is_token_wise),
    "block, token-wise acceptance": Mutant(BLOCK, block_token_wise),
    "block, off by one": Mutant(BLOCK, off_by_one),
    "block, p and q swapped": Mutant(BLOCK, swapped),
    "block, proposal noise draws the residual": Mutant(BLOCK, None, proposal_is_residual),
    "block, one uniform a round": Mutant(BLOCK, None, one_uniform),
    "block, same numbers every round": Mutant(BLOCK, None, drawn_once, proposed_once),
    "block, noise not keyed by the root": Mutant(BLOCK, None, unrooted_noise, unrooted_proposal),
}

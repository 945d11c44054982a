"""The rules of verification: the only place in the program that accepts a token.

Three pure functions over fixed shapes (`match`, `reject`, `block`), each with the noise it wants.
Greedy is the one-hot distribution through the same formulas. Knows nothing of models, slots,
ends of sequences or limits; what it returns has not been cut.

One round: window node j in 0..K has scores[:, j], the target's log-weights for the token after
it; draft token j+1 is draft.tokens[:, j], drawn from draft.scores[:, j]; a row's count is how
many of them are there, and everything past it is padding that changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from paceline.errors import ConfigError
from paceline.speculation.noise import Stream, gumbel, keys, uniform
from paceline.speculation.sampling import draw
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
    stores what it drew from and `distribution(..., one_hot=True)` feeds it.
    """

    @property
    def name(self) -> RuleName: ...

    @property
    def needs_q(self) -> bool: ...

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


def _finish(draft: Draft, accepted: Tensor, last: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Lay out the verdict: the accepted draft [B, K], then `last` [B], then zeros."""
    b, k = draft.tokens.shape
    padded = torch.cat((draft.tokens, draft.tokens.new_zeros(b, 1)), dim=1)  # [B, W]
    node = torch.arange(k + 1, device=accepted.device)  # [W]
    n = accepted.unsqueeze(1)  # [B, 1]
    tokens = padded.mul_(node < n).scatter_(1, n, last.unsqueeze(1))
    return tokens, accepted, torch.minimum(accepted + 1, draft.count)


def _check(scores: Tensor, draft: Draft) -> None:
    """Assert the shapes of one round."""
    b, w, v = scores.shape
    assert draft.tokens.shape == (b, w - 1), "a window is the root and K draft tokens"
    assert draft.count.shape == (b,)
    assert draft.scores is None or draft.scores.shape == (b, w - 1, v)


def _refuse_tree(draft: Draft, rule: RuleName) -> None:
    if draft.parents is not None:
        raise ConfigError(f"rule {rule!r} cannot verify a tree of drafts; use rule 'match'")


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
        _check(scores, draft)
        assert draft.parents is None, "verifying a tree needs a path; only chains are drafted"
        own = draw(scores, noise.gumbel)  # [B, W]
        node = torch.arange(own.shape[1], device=own.device)  # [W]
        agree = (own[:, :-1] == draft.tokens) & (node[:-1] < draft.count.unsqueeze(1))  # [B, K]
        accepted = agree.cumprod(1).sum(1)
        own.mul_(node <= accepted.unsqueeze(1))
        return own, accepted, torch.minimum(accepted + 1, draft.count)


def _rooted_noise(
    seeds: Tensor,
    root_position: Tensor,
    position: Tensor,
    vocab_size: int,
    dtype: torch.dtype,
    draws: bool,
) -> VerifyNoise:
    """Noise of reject and block: acceptance and residual each a stream keyed by the root.

    One token is drawn after the accepted ones, wherever that is, so one vector is enough; it is
    keyed by the first position of the round.
    """
    if not draws:
        return VerifyNoise()
    residual = keys(seeds, Stream.RESIDUAL, position[:, :1], root_position)  # [B, 1]
    accept = keys(seeds, Stream.ACCEPT, position[:, :-1], root_position)  # [B, K]
    return VerifyNoise(gumbel(residual, vocab_size, dtype), uniform(accept, dtype))


def _rooted_proposal(
    seeds: Tensor, root_position: Tensor, position: Tensor, vocab_size: int, dtype: torch.dtype
) -> Tensor:
    """Proposal noise of reject and block: a stream of its own, keyed by the root."""
    return gumbel(keys(seeds, Stream.PROPOSAL, position, root_position), vocab_size, dtype)


def _uniforms(noise: VerifyNoise, like: Tensor) -> Tensor:
    """Return the acceptance numbers [B, K]; 1/2 where nothing draws.

    Where p is one-hot every test compares with 0 or 1, so any number in (0, 1) decides alike.
    """
    return noise.accept if noise.accept is not None else torch.full_like(like, 0.5)


def _token_probabilities(scores: Tensor, tokens: Tensor) -> Tensor:
    """Return softmax(scores)[..., tokens]: scores [B, K, V], tokens [B, K] -> [B, K]."""
    chosen = scores.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    return chosen.sub_(scores.logsumexp(-1)).exp_()


def _q_row(draft: Draft, index: Tensor, like: Tensor) -> Tensor:
    """Return q after the first `index` [B] draft tokens as [B, V]: a softmax, or one-hot."""
    node = index.view(-1, 1)
    if draft.scores is None:
        return torch.zeros_like(like).scatter_(1, draft.tokens.gather(1, node), 1.0)
    row = draft.scores.gather(1, node.unsqueeze(2).expand(-1, 1, draft.scores.shape[2]))
    return row.squeeze(1).softmax(-1)


def _resample(
    scores: Tensor, draft: Draft, accepted: Tensor, weight: Tensor | None, noise: VerifyNoise
) -> Tensor:
    """Draw the token after the accepted ones: [B] int64.

    From p where the whole draft was accepted (the bonus token), else from the residual
    max(weight·p − q, 0), normalised by the draw itself. weight [B], or None for 1. Where rounding
    leaves no residual at all (p = q up to rounding, probability about 1e-7) p itself stands in,
    so that a removed token can never be drawn.
    """
    v = scores.shape[2]
    at = accepted.view(-1, 1, 1).expand(-1, 1, v)
    row = scores.gather(1, at).squeeze(1)  # [B, V]
    if draft.tokens.shape[1]:
        p = row.softmax(-1)
        q = _q_row(draft, accepted.clamp(max=draft.tokens.shape[1] - 1), p)
        scaled = p if weight is None else p * weight.unsqueeze(1)
        residual = scaled.sub(q).clamp_(min=0.0)
        partial = (accepted < draft.count) & (residual.amax(1) > 0)  # [B]
        row = torch.where(partial.unsqueeze(1), residual.log_(), row)
    if noise.gumbel is None:
        return row.argmax(-1)
    if noise.gumbel.shape[1] == 1:
        return row.add(noise.gumbel[:, 0]).argmax(-1)
    return row.add(noise.gumbel.gather(1, at).squeeze(1)).argmax(-1)


@dataclass(frozen=True, slots=True)
class Reject:
    """Token by token: accept x with probability min(1, p(x)/q(x)), else draw the residual.

    Leviathan, Kalman, Matias 2023 (arXiv 2211.17192), algorithm 1. Acceptance 1 − TV(p, q).
    """

    name: RuleName = "reject"
    needs_q: bool = True

    noise = staticmethod(_rooted_noise)
    proposal = staticmethod(_rooted_proposal)

    def verify(
        self, scores: Tensor, draft: Draft, noise: VerifyNoise
    ) -> tuple[Tensor, Tensor, Tensor]:
        _check(scores, draft)
        _refuse_tree(draft, self.name)
        p = _token_probabilities(scores[:, :-1], draft.tokens)  # [B, K]
        u = _uniforms(noise, p)
        if draft.scores is not None:
            u = u * _token_probabilities(draft.scores, draft.tokens)
        node = torch.arange(p.shape[1], device=p.device)  # [K]
        accept = (u < p) & (node < draft.count.unsqueeze(1))  # u < p/q without the division
        accepted = accept.cumprod(1).sum(1)
        return _finish(draft, accepted, _resample(scores, draft, accepted, None, noise))


def _prefix_weights(scores: Tensor, draft: Draft) -> Tensor:
    """Return p_0 = 1 and pᵢ = min(pᵢ₋₁ · p(xᵢ)/q(xᵢ), 1) as [B, W] (FIELD: block verification)."""
    ratio = _token_probabilities(scores[:, :-1], draft.tokens)  # [B, K]
    if draft.scores is not None:
        ratio = ratio / _token_probabilities(draft.scores, draft.tokens)
    weights = [torch.ones_like(scores[:, 0, 0])]
    for i in range(ratio.shape[1]):
        weights.append((weights[-1] * ratio[:, i]).clamp_(max=1.0))
    return torch.stack(weights, 1)


def _block_thresholds(scores: Tensor, draft: Draft, weights: Tensor) -> Tensor:
    """Return hᵢ for i = 1..K as [B, K], as if the draft went on after every i.

    hᵢ = Zᵢ₊₁ / (Zᵢ₊₁ + 1 − pᵢ) with Zᵢ₊₁ = Σₓ max(pᵢ·p(x) − q(x), 0); 0 where Z is 0. The last
    column is a filler: the end of a row's draft is the caller's, who knows the count.
    """
    w = weights[:, 1:-1]  # p_1 .. p_{K-1}
    if draft.scores is None:  # q is one-hot at the next draft token, and pᵢ·p(x) is at most 1
        z = w * (1.0 - _token_probabilities(scores[:, 1:-1], draft.tokens[:, 1:]))
    else:
        scaled = scores[:, 1:-1].softmax(-1).mul_(w.unsqueeze(2))  # [B, K-1, V]
        z = scaled.sub_(draft.scores[:, 1:].softmax(-1)).clamp_(min=0.0).sum(-1)
    h = torch.where(z > 0, z / (z + 1.0 - w), torch.zeros_like(z))
    return torch.cat((h, torch.zeros_like(weights[:, :1])), 1)


@dataclass(frozen=True, slots=True)
class Block:
    """Accept the largest prefix whose joint test passes; never fewer tokens than `reject`.

    Sun, Beirami, Suresh et al. 2024 (arXiv 2403.10444), algorithm 2: with pᵢ and hᵢ as above and
    h = p at the row's own last token, accept the largest i with uᵢ < hᵢ, then draw from
    max(pᵢ·p − q, 0) normalised, or the bonus from p after the last.
    """

    name: RuleName = "block"
    needs_q: bool = True

    noise = staticmethod(_rooted_noise)
    proposal = staticmethod(_rooted_proposal)

    def verify(
        self, scores: Tensor, draft: Draft, noise: VerifyNoise
    ) -> tuple[Tensor, Tensor, Tensor]:
        _check(scores, draft)
        _refuse_tree(draft, self.name)
        k = draft.tokens.shape[1]
        if k == 0:
            accepted = torch.zeros_like(draft.count)
            return _finish(draft, accepted, _resample(scores, draft, accepted, None, noise))
        weights = _prefix_weights(scores, draft)  # [B, W]
        length = torch.arange(1, k + 1, device=weights.device)  # [K]
        count = draft.count.unsqueeze(1)
        h = _block_thresholds(scores, draft, weights)
        h = torch.where(length == count, weights[:, 1:], h)  # [B, K]
        passed = (_uniforms(noise, h) < h) & (length <= count)
        accepted = (passed * length).amax(1)
        weight = weights.gather(1, accepted.unsqueeze(1)).squeeze(1)
        return _finish(draft, accepted, _resample(scores, draft, accepted, weight, noise))


RULES: dict[RuleName, Rule] = {"match": Match(), "reject": Reject(), "block": Block()}

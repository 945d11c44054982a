"""Rejection sampling: the rules `reject` and `block`, which keep the target's distribution.

With `match` in verify.py the only place in the program that accepts a token. Greedy is the
one-hot distribution through the same formulas.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from paceline.errors import ConfigError
from paceline.speculation.noise import Stream, gumbel, keys, uniform
from paceline.speculation.rule import VerifyNoise, check_shapes
from paceline.types import Draft, RuleName


def _finish(draft: Draft, accepted: Tensor, last: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Lay out the verdict: the accepted draft [B, K], then `last` [B], then zeros."""
    b, k = draft.tokens.shape
    padded = torch.cat((draft.tokens, draft.tokens.new_zeros(b, 1)), dim=1)  # [B, W]
    node = torch.arange(k + 1, device=accepted.device)  # [W]
    n = accepted.unsqueeze(1)  # [B, 1]
    tokens = padded.mul_(node < n).scatter_(1, n, last.unsqueeze(1))
    return tokens, accepted, torch.minimum(accepted + 1, draft.count)


def _refuse_tree(draft: Draft, rule: RuleName) -> None:
    if draft.parents is not None:
        raise ConfigError(f"rule {rule!r} cannot verify a tree of drafts; use rule 'match'")


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
    keeps_text: bool = False
    compares: bool = False

    noise = staticmethod(_rooted_noise)
    proposal = staticmethod(_rooted_proposal)

    def verify(
        self, scores: Tensor, draft: Draft, noise: VerifyNoise
    ) -> tuple[Tensor, Tensor, Tensor]:
        check_shapes(scores, draft)
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
    """Return p_0 = 1 and pᵢ = min(pᵢ₋₁ · p(xᵢ)/q(xᵢ), 1) as [B, W] (Sun et al. 2024, `block`)."""
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
    keeps_text: bool = False
    compares: bool = False

    noise = staticmethod(_rooted_noise)
    proposal = staticmethod(_rooted_proposal)

    def verify(
        self, scores: Tensor, draft: Draft, noise: VerifyNoise
    ) -> tuple[Tensor, Tensor, Tensor]:
        check_shapes(scores, draft)
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

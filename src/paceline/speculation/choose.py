"""From logits to tokens: what a round decides and what a drafter draws, each as one step.

Owns the composition of distribution, noise and rule, and nothing else. It stands behind one small
interface because that composition is what a kernel fuses (`ops.choose`); the functions here are
the definition, and what such a kernel is tested against.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from paceline.speculation.rule import Rule
from paceline.speculation.sampling import (
    History,
    SamplingTensors,
    allowed,
    distribution,
    draw,
    failed,
)
from paceline.types import Draft, SamplingFlags


@dataclass(frozen=True, slots=True)
class Terms:
    """What the draws of a batch depend on besides logits and position: the rule, the rows'
    parameters, the stages that any of them needs (static), and seeds [B] int64. mask: where
    flags.mask, the tokens allowed at each node of a window, see `sampling.allowed`. A proposal is
    not masked: what may not come is not accepted."""

    rule: Rule
    params: SamplingTensors
    flags: SamplingFlags
    seeds: Tensor
    mask: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a rule says of a window, not yet cut.

    tokens [B, W], accepted, evaluated [B] int64 as `Rule.verify` returns them; broken [B, W] bool
    as `sampling.failed` does. The token at a broken node is some token of the vocabulary. scores
    [B, W, V]: what the tokens were drawn from, as `distribution` makes it with or without a greedy
    row's one-hot; there where flags.processed.
    """

    tokens: Tensor
    accepted: Tensor
    evaluated: Tensor
    broken: Tensor
    scores: Tensor | None = None


class Chooser(Protocol):
    """The one place where tokens are drawn and accepted. No method reads the device."""

    def judge(
        self, terms: Terms, logits: Tensor, draft: Draft, position: Tensor, history: History | None
    ) -> Judgement:
        """Verify a window. logits [B, W, V] floating, left untouched; position [B, W] int64 of
        the window's nodes, the root first; history: needed where flags.penalties."""
        ...

    def propose(
        self,
        terms: Terms,
        logits: Tensor,
        length: Tensor,
        first: int,
        history: History | None,
        out: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Draw draft tokens `first` to `first` + J − 1 of the round to come.

        logits [B, J, V]; length [B] int64, committed tokens. Returns tokens [B, J] int64, written
        into `out` where it is given, and, where the rule needs q, the log-weights [B, J, V] they
        were drawn from.
        """
        ...


class ReferenceChooser:
    """`Chooser` in torch, for every rule, parameter, dtype and device."""

    def judge(
        self, terms: Terms, logits: Tensor, draft: Draft, position: Tensor, history: History | None
    ) -> Judgement:
        """See `Chooser.judge`."""
        rule, flags, drawn_at = terms.rule, terms.flags, position + 1
        if terms.mask is not None:
            logits = allowed(logits, terms.mask)
        scores = distribution(logits, terms.params, flags, drawn_at, history, rule.needs_q)
        noise = rule.noise(
            terms.seeds, position[:, 0], drawn_at, logits.shape[-1], scores.dtype, flags.draws
        )
        tokens, accepted, evaluated = rule.verify(scores, draft, noise)
        kept = scores if flags.processed else None
        return Judgement(tokens, accepted, evaluated, failed(logits, scores), kept)

    def propose(
        self,
        terms: Terms,
        logits: Tensor,
        length: Tensor,
        first: int,
        history: History | None,
        out: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """See `Chooser.propose`."""
        rule, flags = terms.rule, terms.flags
        node = torch.arange(first, first + logits.shape[1], device=logits.device)
        position = length.unsqueeze(1) + node  # [B, J]
        scores = distribution(logits, terms.params, flags, position, history, rule.needs_q)
        noise = None
        if flags.draws:
            vocab = logits.shape[-1]
            noise = rule.proposal(terms.seeds, length - 1, position, vocab, scores.dtype)
        tokens = draw(scores, noise)
        if out is not None:
            tokens = out.copy_(tokens)
        return tokens, scores if rule.needs_q else None

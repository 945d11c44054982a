"""Which form of drawing and accepting a round uses: torch's, or kernels that fuse it.

`FusedChooser` decides what the kernels may stand for and launches them; what they compute is
defined by `speculation.choose` alone.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from paceline.speculation.choose import Chooser, Judgement, ReferenceChooser, Terms
from paceline.speculation.sampling import History, allowed, distribution
from paceline.speculation.verify import Match
from paceline.types import Draft, SamplingFlags

log = logging.getLogger(__name__)

_FEW_ROWS = 16  # up to here a launch is bound by its latency: smaller blocks keep more cores busy


def make_chooser(device: torch.device) -> Chooser:
    """The fastest chooser on `device`."""
    if device.type == "cuda":
        try:
            return FusedChooser()
        except ImportError as error:
            log.warning("no fused sampling (%s): install triton for faster rounds", error)
    return ReferenceChooser()


@dataclass(frozen=True, slots=True)
class _Scan:
    """What the first kernel left for the second: the blocks' winners [R, blocks], and the
    arguments by which both read the logits."""

    winners: dict[str, Any]
    shared: dict[str, Any]


class FusedChooser:
    """`Chooser` in two launches for the rule `match` on float32 logits; the reference for the rest.

    Where a row has penalties, top-k or top-p, torch makes the scores and the kernels draw from
    them. min-p takes a third launch.
    """

    def __init__(self, block: int | None = None, pdl: bool = False, native: bool = True) -> None:
        """block: tokens a program reads, a power of two; None chooses. pdl: programmatic
        dependent launch. native: False in triton's interpreter. Raises ImportError without
        triton."""
        from paceline.ops import triton_choose

        self._kernels: Any = triton_choose
        self._reference = ReferenceChooser()
        self._block, self._native = block, native
        self._launch = {"PDL": pdl, **({"launch_pdl": True} if pdl else {})}

    def judge(
        self, terms: Terms, logits: Tensor, draft: Draft, position: Tensor, history: History | None
    ) -> Judgement:
        """See `Chooser.judge`."""
        if not _fuses(terms, logits):
            return self._reference.judge(terms, logits, draft, position, history)
        assert draft.parents is None, "verifying a tree needs a path; only chains are drafted"
        batch, width, _ = logits.shape
        assert position.shape == (batch, width), "one position a row of logits"
        assert draft.tokens.shape == (batch, width - 1), "a window is the root and K draft tokens"
        if terms.mask is not None:
            logits = allowed(logits, terms.mask)
        ready = _beyond(terms.flags) or terms.flags.processed  # which wants the scores
        if ready:
            params, drawn_at = terms.params, position + 1
            logits = distribution(logits, params, terms.flags, drawn_at, history, one_hot=False)
        scan = self._scan(terms, logits, ready, position, 1, 0)
        tokens = position.new_empty(batch, width)
        accepted, evaluated = position.new_empty(batch), position.new_empty(batch)
        broken = torch.empty(batch, width, dtype=torch.bool, device=logits.device)
        self._kernels.judge[(batch,)](
            draft=draft.tokens,
            draft_b=draft.tokens.stride(0),
            draft_count=draft.count,
            count_b=draft.count.stride(0),
            tokens=tokens,
            accepted=accepted,
            evaluated=evaluated,
            broken=broken,
            ROWS=_power_of_two(width),
            num_warps=8 if width > 4 else 4,
            **scan.winners,
            **scan.shared,
        )
        return Judgement(
            tokens, accepted, evaluated, broken, logits if terms.flags.processed else None
        )

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
        if not _fuses(terms, logits):
            return self._reference.propose(terms, logits, length, first, history, out)
        batch, width, _ = logits.shape
        ready = _beyond(terms.flags)
        if ready:
            node = torch.arange(first, first + width, device=logits.device)
            params, drawn_at = terms.params, length.unsqueeze(1) + node
            logits = distribution(logits, params, terms.flags, drawn_at, history, one_hot=False)
        scan = self._scan(terms, logits, ready, length, first, 1)
        tokens = length.new_empty(batch, width) if out is None else out
        self._kernels.propose[(batch * width,)](
            tokens=tokens,
            tokens_b=tokens.stride(0),
            tokens_w=tokens.stride(1),
            num_warps=4 if terms.flags.draws else 1,
            **scan.winners,
            **scan.shared,
        )
        return tokens, None

    def _scan(
        self, terms: Terms, logits: Tensor, ready: bool, place: Tensor, offset: int, ahead: int
    ) -> _Scan:
        """Launch the first kernel. ready: the logits are scores already.

        The token of row [b, w] is drawn at place[b, w] + offset + w · ahead; place [B, W], or [B]
        for the same number in all of a row.
        """
        kernels, flags, params = self._kernels, terms.flags, terms.params
        assert logits.stride(2) == 1, "a row of logits lies in one piece"
        batch, width, vocab = logits.shape
        rows = batch * width
        block = self._block or (1024 if rows <= _FEW_ROWS else 4096)
        blocks = -(-vocab // block)
        hot = kernels.SCORES if ready else kernels.HEATED
        min_p = flags.draws and flags.truncation and not ready
        shared = {
            "logits": logits,
            "place": place,
            "bias_ids": params.bias_ids,
            "bias_values": params.bias_values,
            "stop_ids": params.stop_ids,
            "min_position": params.min_position,
            "width": width,
            "vocab": vocab,
            "logits_b": logits.stride(0),
            "logits_w": logits.stride(1),
            "place_b": place.stride(0),
            "place_w": place.stride(1) if place.dim() == 2 else 0,
            "offset": offset,
            "ahead": ahead,
            "BLOCK": block,
            "BIAS": params.bias_ids.shape[1] if flags.bias and not ready else 0,
            "STOPS": params.stop_ids.shape[1] if flags.min_tokens and not ready else 0,
            **self._launch,
        }
        tops = logits.new_empty(rows, blocks) if min_p else logits
        if min_p:
            kernels.maxima[(blocks, rows)](tops=tops, **shared)
        drawn = {
            "temperature": params.temperature,
            "seeds": terms.seeds,
            "MODE": (hot if flags.draws else kernels.GREEDY).value,
            "BLOCKS": _power_of_two(blocks),
            "NATIVE": self._native,
        }
        codes = torch.empty(rows, blocks, dtype=torch.int32, device=logits.device)
        numbers = logits.new_empty(rows, 3, blocks)
        kernels.scan[(blocks, rows)](
            tops=tops,
            min_p=params.min_p,
            MIN_P=min_p,
            codes=codes,
            numbers=numbers,
            num_warps=8 if block > 2048 else 4,  # noise takes many registers
            **drawn,
            **shared,
        )
        winners = {"codes": codes, "numbers": numbers, "blocks": blocks, **drawn}
        return _Scan(winners, shared)


def _fuses(terms: Terms, logits: Tensor) -> bool:
    return type(terms.rule) is Match and logits.dtype == torch.float32


def _beyond(flags: SamplingFlags) -> bool:
    """Whether a row has a stage that the kernels do not know, so that torch makes the scores."""
    return flags.penalties or (flags.draws and flags.truncation and (flags.top_k or flags.top_p))


def _power_of_two(n: int) -> int:
    """The least power of two that is at least n."""
    return 1 << (n - 1).bit_length()

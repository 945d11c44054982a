"""Which form of drawing and accepting a round uses: torch's, or kernels that fuse it.

`FusedChooser` decides what the kernels may stand for and launches them; what they compute is
defined by `speculation.choose` alone.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from paceline.ops.power import power_of_two
from paceline.speculation.choose import Chooser, Judgement, ReferenceChooser, Terms
from paceline.speculation.sampling import History, adjusted, allowed
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

    min-p alone takes a third launch; top-k and top-p some twenty, of which most read no more than a
    row's parameters where it is not truncated so. Penalties and masks are torch's.
    """

    def __init__(self, block: int | None = None, pdl: bool = False, native: bool = True) -> None:
        """block: tokens a program reads, a power of two; None chooses. pdl: programmatic
        dependent launch. native: False in triton's interpreter. Raises ImportError without
        triton."""
        from paceline.ops import triton_choose, triton_truncate

        self._kernels: Any = triton_choose
        self._truncation: Any = triton_truncate
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
        if _adjusts(terms.flags):
            logits = adjusted(logits, terms.params, terms.flags, position + 1, history)
        scan = self._draws_of(terms, self._read(terms, logits, position, 1, 0))
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
            ROWS=power_of_two(width),
            num_warps=8 if width > 4 else 4,
            **scan.winners,
            **scan.shared,
        )
        kept = scan.shared["logits"] if terms.flags.processed else None
        return Judgement(tokens, accepted, evaluated, broken, kept)

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
        terms = replace(terms, flags=replace(terms.flags, processed=False))  # of the target's alone
        if _adjusts(terms.flags):
            node = torch.arange(first, first + width, device=logits.device)
            drawn_at = length.unsqueeze(1) + node
            logits = adjusted(logits, terms.params, terms.flags, drawn_at, history)
        scan = self._draws_of(terms, self._read(terms, logits, length, first, 1))
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

    def _read(
        self, terms: Terms, logits: Tensor, place: Tensor, offset: int, ahead: int
    ) -> dict[str, Any]:
        """The arguments by which kernels read the logits.

        The token of row [b, w] is drawn at place[b, w] + offset + w · ahead; place [B, W], or [B]
        for the same number in all of a row.
        """
        assert logits.stride(2) == 1, "a row of logits lies in one piece"
        flags, params = terms.flags, terms.params
        batch, width, vocab = logits.shape
        done = _adjusts(flags)
        return {
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
            "BLOCK": self._block or (1024 if batch * width <= _FEW_ROWS else 4096),
            "BIAS": params.bias_ids.shape[1] if flags.bias and not done else 0,
            "STOPS": params.stop_ids.shape[1] if flags.min_tokens and not done else 0,
            **self._launch,
        }

    def _draws_of(self, terms: Terms, shared: dict[str, Any]) -> _Scan:
        """Launch all that comes before the rows' own programs."""
        ready = _truncates(terms.flags)
        return self._scan(terms, self._scores(terms, shared) if ready else shared, ready)

    def _maxima(self, shared: dict[str, Any]) -> Tensor:
        """Each block's greatest logit."""
        grid = _grid(shared)
        tops: Tensor = shared["logits"].new_empty(grid[1], grid[0])
        self._kernels.maxima[grid](tops=tops, **shared)
        return tops

    def _scores(self, terms: Terms, shared: dict[str, Any]) -> dict[str, Any]:
        """Launch what makes scores of the logits, all that draws come from but the noise; the
        arguments by which these are read."""
        params, grid, block = terms.params, _grid(shared), shared["BLOCK"]
        tops, logits = self._maxima(shared), shared["logits"]
        scores = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
        self._truncation.heated[grid](
            scores=scores,
            tops=tops,
            temperature=params.temperature,
            BLOCKS=power_of_two(grid[0]),
            **shared,
        )
        kernels, rows = self._truncation, grid[1]
        for by_count in (True, False):
            sums = torch.zeros(
                kernels.PASSES, rows, kernels.BUCKETS, dtype=torch.int64, device=logits.device
            )
            given = {
                "scores": scores,
                "sums": sums,
                "states": sums.new_empty(kernels.PASSES + 1, rows, 2),
                "temperature": params.temperature,
                "top_k": params.top_k,
                "top_p": params.top_p,
                "width": shared["width"],
                "vocab": shared["vocab"],
                "BY_COUNT": by_count,
                "BLOCK": block,
                "NATIVE": self._native,
            }
            warps = {"num_warps": 8 if block > 2048 else 4}
            for step in range(kernels.PASSES):
                kernels.weigh[grid](step=step, **given, **warps)
            kernels.cut[grid](min_p=params.min_p, MIN_P=not by_count, **given, **warps)
        strides = {"logits_b": scores.stride(0), "logits_w": scores.stride(1)}
        return shared | {"logits": scores, **strides, "BIAS": 0, "STOPS": 0}

    def _scan(self, terms: Terms, shared: dict[str, Any], ready: bool) -> _Scan:
        """Launch what finds each block's winner. ready: the logits are scores already."""
        kernels, flags, params = self._kernels, terms.flags, terms.params
        logits, (blocks, rows) = shared["logits"], _grid(shared)
        hot = kernels.SCORES if ready else kernels.HEATED
        min_p = flags.draws and flags.truncation and not ready
        drawn = {
            "temperature": params.temperature,
            "seeds": terms.seeds,
            "MODE": (hot if flags.draws else kernels.GREEDY).value,
            "BLOCKS": power_of_two(blocks),
            "NATIVE": self._native,
        }
        codes = torch.empty(rows, blocks, dtype=torch.int32, device=logits.device)
        numbers = logits.new_empty(rows, 3, blocks)
        kernels.scan[(blocks, rows)](
            tops=self._maxima(shared) if min_p else logits,
            min_p=params.min_p,
            MIN_P=min_p,
            codes=codes,
            numbers=numbers,
            num_warps=8 if shared["BLOCK"] > 2048 else 4,  # noise takes many registers
            **drawn,
            **shared,
        )
        return _Scan({"codes": codes, "numbers": numbers, "blocks": blocks, **drawn}, shared)


def _fuses(terms: Terms, logits: Tensor) -> bool:
    return terms.rule.compares and logits.dtype == torch.float32


def _adjusts(flags: SamplingFlags) -> bool:
    """Whether torch applies bias, minimum length and penalties: the kernels know no penalties, and
    keep nothing of what they adjust."""
    return flags.penalties or (flags.processed and not flags.draws)


def _truncates(flags: SamplingFlags) -> bool:
    """Whether scores must be made before anything is drawn: for top-k and top-p, or because they
    are reported."""
    truncated = flags.truncation and (flags.top_k or flags.top_p)
    return flags.draws and (truncated or flags.processed)


def _grid(shared: dict[str, Any]) -> tuple[int, int]:
    """(blocks, rows)."""
    batch, width, vocab = shared["logits"].shape
    return -(-vocab // shared["BLOCK"]), batch * width

"""The device state of running requests: fixed-shape arrays, one row a slot.

The host writes a row when a request is admitted or leaves; the round writes lengths, tokens and
drafts. Slot 0 is scratch and never active; page 0 is scratch, and what a page table holds where
its text has no page yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from paceline.ops.bookkeeping import make_bookkeeping
from paceline.ops.upload import put, upload
from paceline.speculation.choose import Judgement
from paceline.speculation.sampling import SamplingTensors, one_hot_scores
from paceline.speculation.window import assemble, settle
from paceline.types import Draft, Limits, Request, Rows, SamplingParams, Verdict, Window

MAX_BIAS = 300
MAX_STOP_IDS = 64


@dataclass(frozen=True, slots=True)
class Batch:
    """Per-request constants of the rows of a round, gathered once while its rows stay the same.

    index [B] slot numbers; seed, limit, k_limit [B] int64; sampling: see `SamplingTensors`. pages
    [B, P] int64 is no constant, as texts grow: every round begins by gathering it anew.
    """

    index: Tensor
    pages: Tensor
    seed: Tensor
    limit: Tensor
    k_limit: Tensor
    sampling: SamplingTensors


def slots_bytes(limits: Limits, stores_q: bool, compute: torch.dtype) -> int:
    """Bytes that `Slots` of these arguments take."""
    numbers = 8 * (limits.max_length + limits.table + limits.max_k + MAX_STOP_IDS) + 12 * MAX_BIAS
    numbers += 4 * (limits.max_k + 1) * -(-limits.vocab_size // 32)
    scores = limits.max_k * limits.vocab_size * compute.itemsize if stores_q else 0
    # 12 numbers a slot beside them, and per token whether the prompt has it and a count.
    return limits.slots * (numbers + 12 * 8 + 5 * limits.vocab_size + scores)


class Slots:
    """Arrays over S slots. See `types.Limits` for the sizes."""

    def __init__(self, limits: Limits, stores_q: bool, compute: torch.dtype) -> None:
        """stores_q: the rule needs the log-weights that drafts were drawn from, kept in
        `compute`, the dtype of distributions."""
        size, device = limits.slots, limits.device

        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(size, *shape, dtype=dtype, device=device)

        self.limits = limits
        self.kernels = make_bookkeeping(device)  # or None: the forms below
        self.numbers = torch.arange(size, device=device)  # whoever names a slot takes a view
        self.tokens = zeros(limits.max_length)
        self.length, self.limit, self.seed = zeros(), zeros(), zeros()
        self.length[0] = 1  # the scratch slot: a root at position 0, so that rows of it are whole
        self.k_limit = zeros()
        self.pages = zeros(limits.table)
        self.active, self.processed = zeros(dtype=torch.bool), zeros(dtype=torch.bool)
        real = torch.float32
        self.temperature, self.top_p, self.min_p = (zeros(dtype=real) for _ in range(3))
        self.repetition, self.presence, self.frequency = (zeros(dtype=real) for _ in range(3))
        self.top_k, self.min_position = zeros(), zeros()
        self.bias_ids, self.bias_values = zeros(MAX_BIAS), zeros(MAX_BIAS, dtype=real)
        self.stop_ids = zeros(MAX_STOP_IDS).fill_(-1)
        self.prompt_seen = zeros(limits.vocab_size, dtype=torch.bool)
        self.counts = zeros(limits.vocab_size, dtype=torch.int32)
        self.draft_tokens = zeros(limits.max_k)
        self.draft_count, self.draft_source = zeros(), zeros()
        # Which tokens may come at each node of the next window, for rows that a grammar binds.
        words = -(-limits.vocab_size // 32)
        self.masks = zeros(limits.max_k + 1, words, dtype=torch.int32).fill_(-1)
        self.draft_scores = (
            zeros(limits.max_k, limits.vocab_size, dtype=compute) if stores_q else None
        )

    def admit(
        self,
        slot: int,
        request: Request,
        stop_ids: tuple[int, ...],
        k: int,
        written: Sequence[int] = (),
    ) -> None:
        """Write the row of a request that was given `slot`. written: what it had written when it
        last lost one. Called by the host between rounds; its pages are given by `set_pages`."""
        params, prompt = request.params, request.prompt
        length = len(prompt) + len(written)
        put(self.tokens[slot], (*prompt, *written))
        self.length[slot] = length
        self.limit[slot] = min(len(prompt) + params.max_tokens, self.limits.max_length)
        self.seed[slot], self.k_limit[slot] = request.seed, k
        self._admit_sampling(slot, params, len(prompt))
        if request.constraint is not None and request.constraint.ends:
            self.min_position[slot] = 0  # a grammar knows when a text is whole
        self.stop_ids[slot] = -1
        put(self.stop_ids[slot], stop_ids)
        if params.penalized:  # what is counted is on the device already
            text = self.tokens[slot, :length]
            read, output = text[: len(prompt)], text[len(prompt) :]
            self.prompt_seen[slot] = False
            self.prompt_seen[slot].index_fill_(0, read, True)
            self.counts[slot] = 0
            ones = torch.ones_like(output, dtype=self.counts.dtype)
            self.counts[slot].scatter_add_(0, output, ones)
        self.draft_count[slot] = self.draft_source[slot] = 0
        self.masks[slot] = -1
        self.active[slot] = True

    def _admit_sampling(self, slot: int, params: SamplingParams, prompt_length: int) -> None:
        self.temperature[slot], self.top_p[slot] = params.temperature, params.top_p
        self.min_p[slot] = params.min_p
        self.top_k[slot] = min(params.top_k, self.limits.vocab_size)
        self.repetition[slot] = params.repetition_penalty
        self.presence[slot] = params.presence_penalty
        self.frequency[slot] = params.frequency_penalty
        self.processed[slot] = params.processed_logprobs
        self.min_position[slot] = prompt_length + min(params.min_tokens, self.limits.max_length)
        self.bias_ids[slot], self.bias_values[slot] = 0, 0.0
        put(self.bias_ids[slot], [token for token, _ in params.logit_bias])
        put(self.bias_values[slot], [value for _, value in params.logit_bias])

    def set_pages(self, slot: int, first: int, pages: Sequence[int]) -> None:
        """From column `first` on, the text in `slot` has these pages. Called by the host between
        rounds, before one that reads them; waits for none that runs."""
        put(self.pages[slot, first:], pages)

    def drop_drafts(self, slots: Sequence[int]) -> None:
        """No draft waits in `slots` any more. Called by the host between rounds; waits for none
        that runs."""
        self.draft_count.index_fill_(0, upload(slots, self.limits.device), 0)

    def release(self, slot: int) -> None:
        """The request in `slot` is gone; what is in flight for it commits nothing more."""
        self.active[slot] = False
        self.pages[slot] = 0

    def batch(self, index: Tensor) -> Batch:
        """Gather what does not change while the requests in the slots `index` [B] run."""
        return Batch(
            index=index,
            pages=self.pages[index],
            seed=self.seed[index],
            limit=self.limit[index],
            k_limit=self.k_limit[index],
            sampling=SamplingTensors(
                temperature=self.temperature[index],
                top_p=self.top_p[index],
                min_p=self.min_p[index],
                repetition=self.repetition[index],
                presence=self.presence[index],
                frequency=self.frequency[index],
                top_k=self.top_k[index],
                bias_ids=self.bias_ids[index],
                bias_values=self.bias_values[index],
                stop_ids=self.stop_ids[index],
                min_position=self.min_position[index],
                processed=self.processed[index],
            ),
        )

    def refresh(self, batch: Batch) -> None:
        """Gather the page tables of the batch as they are now, into the tensor it has."""
        torch.index_select(self.pages, 0, batch.index, out=batch.pages)

    def rows(self, batch: Batch, bounds: tuple[int, ...], committed: int, fresh: int) -> Rows:
        """The read-only view that windows and drafters are made from."""
        length = self.length[batch.index]
        return Rows(
            index=batch.index,
            tokens=self.tokens,
            length=length,
            bounds=bounds,
            pages=batch.pages,
            page_size=self.limits.page_size,
            committed=committed,
            fresh=fresh,
        )

    def open_window(self, batch: Batch, bounds: tuple[int, ...], k: int) -> tuple[Draft, Window]:
        """A round begins: the waiting draft, its first k tokens, and the window that verifies it.
        Refreshes the batch's pages."""
        index = batch.index
        if self.kernels is not None and self.draft_scores is None:
            return self.kernels.open_window(
                self, index, batch.pages, self.limits.page_size, bounds, k
            )
        self.refresh(batch)
        rows, draft = self.rows(batch, bounds, committed=0, fresh=0), self.draft(index, k)
        self.draft_count.index_fill_(0, index, 0)  # it is taken: no later window may hold it again
        return draft, assemble(rows, draft, self.active[index])

    def settle(self, batch: Batch, draft: Draft, judged: Judgement, penalties: bool) -> Verdict:
        """Cut what was judged and commit it; penalties: tokens are counted."""
        index, limit, stop_ids = batch.index, batch.limit, batch.sampling.stop_ids
        if self.kernels is not None:
            return self.kernels.settle(self, index, limit, stop_ids, draft, judged, penalties)
        active, length = self.active[index], self.length[index]
        verdict = settle(judged, draft, active, length, limit, stop_ids)
        self.commit(index, verdict, penalties)
        return verdict

    def draft(self, index: Tensor, k: int) -> Draft:
        """The waiting draft of the rows `index` [B], its first k tokens."""
        scores = None if self.draft_scores is None else self.draft_scores[index, :k]
        count = self.draft_count[index].clamp_(max=k)
        return Draft(self.draft_tokens[index, :k], count, self.draft_source[index], scores)

    def keep_draft(self, batch: Batch, draft: Draft) -> None:
        """Store the next draft; rows that may not speculate, or that ended, get count 0."""
        index, k = batch.index, draft.tokens.shape[1]
        if self.kernels is not None and self.draft_scores is None:
            self.kernels.keep_draft(self, index, batch.limit, batch.k_limit, draft)
            return
        self.draft_tokens[index, :k] = draft.tokens
        room = batch.limit - self.length[index] - 1
        count = torch.minimum(torch.minimum(draft.count, batch.k_limit), room.clamp_(min=0))
        if self.draft_scores is not None:
            scores = self._scores(draft)
            self.draft_scores[index, :k] = scores
            # A node whose weights are not finite was not drawn from anything: the draft ends
            # before it. `block` would else weigh the nodes before it wrongly.
            drawn = scores.amax(-1).isfinite()  # [B, K]
            count = torch.minimum(count, drawn.cumprod(1).sum(1))
        self.draft_count[index] = count
        self.draft_source[index] = draft.source

    def _scores(self, draft: Draft) -> Tensor:
        """What the draft's tokens were drawn from [B, K, V]: a proposal without choice is one-hot,
        whatever an earlier draft left in its place."""
        assert self.draft_scores is not None
        if draft.scores is not None:
            return draft.scores.to(self.draft_scores.dtype)
        return one_hot_scores(draft.tokens, self.draft_scores.shape[2], self.draft_scores.dtype)

    def commit(self, index: Tensor, verdict: Verdict, penalties: bool) -> None:
        """Append verdict.tokens[:, :n] to the rows `index` [B]; rows that ended go idle."""
        node = torch.arange(verdict.tokens.shape[1], device=index.device)
        taken = node < verdict.n.unsqueeze(1)  # [B, W]
        row = torch.where(taken, index.unsqueeze(1), 0)
        place = torch.where(taken, self.length[index].unsqueeze(1) + node, 0)
        self.tokens[row, place] = torch.where(taken, verdict.tokens, 0)
        if penalties:
            self.counts.index_put_((row, verdict.tokens), taken.to(self.counts.dtype), True)
        self.length[index] += verdict.n
        self.active[index] = self.active[index] & ~verdict.ended

"""Slots as the engine would hand them to a drafter, without an engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
from helpers import NoHostRead

from paceline.drafters.base import Drafter
from paceline.types import Draft, Limits, Request, Rows, SamplingParams


class World:
    """Makes limits, requests and rows, and asks drafters for drafts as plain lists."""

    vocab = 50

    def limits(self, slots: int = 6, max_length: int = 64, max_k: int = 8) -> Limits:
        return Limits(
            slots=slots,
            max_length=max_length,
            max_k=max_k,
            vocab_size=self.vocab,
            pages=1 + slots * -(-max_length // 16),
            page_size=16,
            device=torch.device("cpu"),
        )

    def request(self, prompt: Sequence[int], prediction: Sequence[int] = ()) -> Request:
        return Request("r", tuple(prompt), SamplingParams(), 0, prediction=tuple(prediction))

    def rows(
        self, texts: Sequence[Sequence[int]], slots: Sequence[int], limits: Limits, slack: int = 0
    ) -> Rows:
        """Rows whose slots hold `texts`; past them, and in other slots, stands no token."""
        tokens = torch.full((limits.slots, limits.max_length), 10**6)
        for slot, text in zip(slots, texts, strict=True):
            tokens[slot, : len(text)] = torch.tensor(text, dtype=torch.int64)
        return Rows(
            index=torch.tensor(list(slots)),
            tokens=tokens,
            length=torch.tensor([len(text) for text in texts]),
            bounds=tuple(min(limits.max_length, len(text) + slack) for text in texts),
            pages=torch.tensor([[1 + slot * limits.table] for slot in slots])
            + torch.arange(limits.table),
            page_size=limits.page_size,
            committed=limits.max_k + 1,
            fresh=limits.max_k + 1,
        )

    def propose(self, drafter: Drafter, rows: Rows, k: int) -> list[list[int]]:
        """The counted tokens of every row; checks what holds for every draft."""
        with torch.inference_mode(), NoHostRead():
            draft = drafter.propose(rows, k, None)  # type: ignore[arg-type]
        self.check(drafter, draft, rows, k)
        counts = draft.count.tolist()
        return [row[:count] for row, count in zip(draft.tokens.tolist(), counts, strict=True)]

    def check(self, drafter: Drafter, draft: Draft, rows: Rows, k: int) -> None:
        size = rows.index.shape[0]
        assert draft.tokens.shape == (size, k)
        assert draft.count.shape == draft.source.shape == (size,)
        assert {draft.tokens.dtype, draft.count.dtype, draft.source.dtype} == {torch.int64}
        assert 0 <= int(draft.tokens.min()) <= int(draft.tokens.max()) < self.vocab
        assert 0 <= int(draft.count.min()) <= int(draft.count.max()) <= k
        assert 0 <= int(draft.source.min()) <= int(draft.source.max()) < len(drafter.sources)

    def write(
        self, drafter: Drafter, prompt: Sequence[int], answer: Sequence[int], k: int
    ) -> Iterator[tuple[int, list[int], int]]:
        """Drive rounds as if the target wrote `answer`.

        Yields per round: tokens written before it, the draft, how many of it were accepted.
        """
        limits = self.limits(slots=2, max_length=len(prompt) + len(answer) + 1, max_k=k)
        full, n = [*prompt, *answer], len(prompt)
        while n < len(full):
            rows = self.rows([full[:n]], [1], limits)
            (draft,) = self.propose(drafter, rows, k)
            right = 0
            while right < len(draft) and n + right < len(full) and draft[right] == full[n + right]:
                right += 1
            yield n - len(prompt), draft, right
            n += right + 1


@pytest.fixture(scope="session")
def world() -> World:
    return World()

"""The reference chooser and what follows it can be recorded: nothing in them reads the device or
brings new numbers from the host."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.speculation.rows import ALL, params
from torch.utils._python_dispatch import TorchDispatchMode

from paceline.speculation.choose import ReferenceChooser, Terms
from paceline.speculation.sampling import History, top_logprobs
from paceline.speculation.verify import RULES
from paceline.speculation.window import ahead, assemble, settle, tail
from paceline.types import Draft, Rows, RuleName

# Reads of a value, shapes that depend on one, and `torch.tensor` of host data.
FORBIDDEN = {
    "_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "unique",
    "lift_fresh", "lift",
}  # fmt: skip


class NoHost(TorchDispatchMode):
    """Refuses what a CUDA graph could not record."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # fmt: skip
        name = func.name().split("::")[1].split(".")[0]
        assert name not in FORBIDDEN, f"{func.name()} cannot be recorded"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("rule", RULES)
def test_nothing_reads_the_device(rule: RuleName) -> None:
    batch, width, vocab = 2, 4, 40
    sampling = params(
        [{"top_k": 9, "top_p": 0.9, "min_p": 0.01, "bias": {3: 1.0}, "stop_ids": [5]}, {}]
    )
    terms = Terms(RULES[rule], sampling, ALL, torch.tensor([1, 2]))
    logits = torch.randn(batch, width, vocab, generator=torch.Generator().manual_seed(0)).double()
    length = torch.tensor([8, 12])
    index = torch.arange(batch)
    tokens, pages = torch.zeros(batch, 30, dtype=torch.int64), 1 + index.unsqueeze(1)
    rows = Rows(index, tokens, length, (30, 30), pages, 32, 1, 1)
    seen = torch.zeros(batch, vocab, dtype=torch.bool)
    scores = torch.randn(batch, width - 1, vocab).double() if RULES[rule].needs_q else None
    draft = Draft(torch.full((batch, width - 1), 3), torch.tensor([3, 1]), index, scores)
    limit = length + 9
    chooser = ReferenceChooser()
    with NoHost():
        window = assemble(rows, draft, index >= 0)
        history = History(seen, seen.int(), window.ids)
        judged = chooser.judge(terms, logits, draft, window.position, history)
        verdict = settle(judged, draft, index >= 0, length, limit, sampling.stop_ids)
        top_logprobs(logits, judged.tokens, 3)
        one = History(seen, seen.int(), window.ids[:, :1])
        drafted, _ = chooser.propose(terms, logits[:, :1], length, 2, one)
        tail(rows, 2)
        ahead(rows, 3)
    assert verdict.report.shape == (batch, width + 8)
    assert drafted.shape == (batch, 1)


def test_the_guard_sees_a_read() -> None:
    with NoHost(), pytest.raises(AssertionError, match="cannot be recorded"):
        torch.zeros(1).item()
    with NoHost(), pytest.raises(AssertionError, match="cannot be recorded"):
        torch.tensor([1, 2])

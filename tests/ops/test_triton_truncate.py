"""The truncating kernels against `speculation.sampling.distribution`: the scores to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.ops.test_triton_choose import DEVICE, agree, fused, make_terms, random_logits, window
from torch import Tensor

from paceline.speculation.choose import Terms
from paceline.speculation.sampling import distribution
from paceline.types import SamplingFlags

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

FLAGS = SamplingFlags(draws=True, truncation=True, bias=True, min_tokens=True, processed=True)
BLOCK = 128


def scores_of(terms: Terms, logits: Tensor) -> tuple[Tensor, Tensor]:
    """(The kernels' scores, the reference's)."""
    draft, position = window(terms, logits, None, (0,) * len(logits))
    judged = fused(BLOCK).judge(terms, logits, draft, position, None)
    assert judged.scores is not None
    want = distribution(logits, terms.params, terms.flags, position + 1, None, one_hot=False)
    return judged.scores, want


def rows(*each: dict[str, Any]) -> Terms:
    return make_terms(FLAGS, each)


@pytest.mark.parametrize(
    "row",
    [
        {"top_k": 1},
        {"top_k": 7, "temperature": 0.3},
        {"top_k": 10**6},
        {"top_p": 0.9},
        {"top_p": 1e-6, "temperature": 3.0},
        {"top_p": 0.9999999},
        {"top_k": 40, "top_p": 0.5, "min_p": 0.1},
        {"top_k": 150, "top_p": 0.99, "temperature": 2.5, "bias": {3: 9.0}, "stops": (3,)},
        {"min_p": 0.3},
        {"temperature": 0.0, "top_k": 5, "top_p": 0.1},
        {},
    ],
    ids=str,
)
def test_scores_are_the_references_to_the_bit(row: dict[str, Any]) -> None:
    terms = rows(row, {"top_k": 3, "top_p": 0.8})
    logits = random_logits(21, 2, 2, 2 * BLOCK + 9)
    got, want = scores_of(terms, logits)
    if row.get("temperature") == 0.0:  # has no noise, so that it need not be cut to its best
        got[0], want[0] = got[0].argmax(-1, True), want[0].argmax(-1, True)
    assert torch.equal(got, want)


@pytest.mark.parametrize("row", [{"top_k": 5}, {"top_p": 0.3}, {"top_k": 90}])
def test_among_equals_the_lowest_ids_are_kept_whatever_block_they_lie_in(
    row: dict[str, Any],
) -> None:
    vocab = 2 * BLOCK + 45
    logits = torch.zeros(1, 2, vocab, device=DEVICE)
    logits[0, 1] = (torch.arange(vocab, device=DEVICE) % 3).float()  # every block has each
    got, want = scores_of(rows(row), logits)
    assert torch.equal(got, want)
    kept = got[0].isfinite().sum(1).tolist()
    assert 0 < kept[1] <= kept[0] < vocab or kept[0] == kept[1] == 90


def test_a_wide_vocabulary_and_tiny_differences() -> None:
    """Scores that agree in all but their last bits, so that every pass decides."""
    vocab = 3 * BLOCK
    step = torch.arange(vocab, device=DEVICE).flip(0)
    logits = 8.0 - step.view(1, 1, -1) * 2.0**-20
    for row in ({"top_k": 101}, {"top_p": 0.77}, {"top_k": 200, "top_p": 0.123}):
        got, want = scores_of(rows(row), logits)
        assert torch.equal(got, want)


def test_what_is_drawn_and_told_broken() -> None:
    terms = rows({"top_k": 9, "top_p": 0.9}, {"top_p": 0.7}, {"temperature": 0.0})
    logits = random_logits(22, 3, 4, 205)
    draft, position = window(terms, logits, None, (9, 9, 9))
    agree(fused(BLOCK), terms, logits, draft, position)
    logits[0, 1, 130] = torch.nan
    logits[1, 2, 7] = torch.inf
    logits[2, 0] = -torch.inf
    judged = fused(BLOCK).judge(terms, logits, draft, position, None)
    assert judged.broken.int().tolist() == [[0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0]]
    agree(fused(BLOCK), terms, logits, draft, position)

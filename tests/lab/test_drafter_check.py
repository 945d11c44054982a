"""The check for authors of drafters: what it passes, and what it finds."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from paceline import ConfigError, Drafter
from paceline.lab.drafter_check import PROMPTS, DrafterCheck, check_drafter
from paceline.types import Draft, Needs, Rows, TargetOut, Verdict, Window


def check(drafter: str | Drafter) -> DrafterCheck:
    return check_drafter(drafter, prompts=PROMPTS[1:2], tokens=8, k=2, dtype="float32")


class Again(Drafter):
    """Proposes the last token, and does besides what its kind says."""

    name = "again"
    needs = Needs(catch_up="observe")

    def __init__(self, kind: str = "") -> None:
        self.kind = kind

    def observe(
        self, window: Window, out: TargetOut | None, verdict: Verdict | None, rows: Rows
    ) -> None:
        if self.kind == "looks":
            window.ids.tolist()

    def propose(self, rows: Rows, k: int, draw: Any) -> Draft:
        last = rows.tokens[rows.index, rows.length - 1]
        count = torch.full_like(rows.length, k)
        if self.kind == "asks" and int(last[0]) == 3:
            count = count - 1
        if self.kind == "makes":
            count = count * torch.tensor([1])
        if self.kind == "masks":
            count[last < 0] = 0
        if self.kind == "outside":
            last = last + 10**6
        if self.kind == "narrow":
            return Draft(last.unsqueeze(1)[:, :1], count, 0 * count)
        tokens = last.unsqueeze(1).expand(-1, k).contiguous()
        return Draft(tokens, count.int() if self.kind == "small" else count, 0 * count)


def test_one_that_keeps_to_the_rules() -> None:
    found = check(Again())
    assert found.passed
    assert (found.drafter, found.texts, found.different, found.problems) == ("again", 2, 0, ())
    assert found.evaluated >= found.accepted
    assert str(found).startswith("again: 2 of 2 texts as plain decoding's; acceptance ")


def test_a_built_in_one_by_name() -> None:
    found = check("ngram:min=1+model")
    assert found.passed
    assert found.drafter == "ngram+model"
    assert found.tokens_per_round > 1.2


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ("looks", r"observe: tolist reads the device .test_drafter_check.py, line \d+"),
        ("asks", "propose: aten.item.* reads the device"),
        ("makes", "propose: tensor copies to the device"),
        ("masks", "propose: aten.index_put_.* its result's shape"),
        ("outside", "propose: tokens hold a number outside of 0 to"),
        ("narrow", r"propose: tokens are torch.int64 \[1, 1\], not torch.int64 \[1, 2\]"),
        ("small", "propose: count are torch.int32"),
    ],
)
def test_what_a_recorded_round_may_not_do(kind: str, problem: str) -> None:
    found = check(Again(kind))
    assert not found.passed
    assert found.different == 0, "nothing that a drafter does changes a text"
    assert len(found.problems) == 1
    assert re.search(problem, str(found))


def test_what_it_declares_is_no_problem() -> None:
    class Host(Again):
        needs = Needs(host=True, catch_up="observe")

    assert check(Host("asks")).passed


def test_a_name_that_there_is_not() -> None:
    with pytest.raises(ConfigError, match="did you mean 'ngram'"):
        check("ngrm")

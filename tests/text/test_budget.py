"""A budget of tokens, with every kind of tokenizer: the mark that is due is one that is found."""

from __future__ import annotations

import pytest
from tokenizer_kinds import MAKERS, marked, tokenizer

from paceline.errors import RequestError
from paceline.text.budget import Budget
from paceline.types import Grammar

BUDGET = Grammar("any", after="</think>", opened_by="<think>", budget=3)


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("added", ["no", "plain", "special"])
@pytest.mark.parametrize("opened", [True, False])
def test_the_mark_comes_when_the_budget_is_spent(kind: str, added: str, opened: bool) -> None:
    """Spelled by many tokens, or a token of its own."""
    made = tokenizer(kind)
    if added != "no":
        made = marked(kind, ["<think>", "</think>"], special=added == "special")
    elif kind == "metaspace":  # it has no token for "<"
        with pytest.raises(RequestError, match="cannot write '</think>'"):
            Budget(made, BUDGET)
        return
    grammar = Grammar("any", after="</think>", budget=3) if opened else BUDGET
    budget, written = Budget(made, grammar), list[int]()
    for token in [] if opened else made.encode_on("<think>"):
        assert budget.must == []
        budget.take(token)
        written.append(token)
    for token in made.encode_on(" one two three four")[:3]:
        assert budget.must == []
        budget.take(token)
        written.append(token)
    other = budget.copy()
    while must := budget.must:
        written.append(must[0])
        budget.take(must[0])
        assert len(written) < 60
    assert made.decode(written, skip_special_tokens=False).endswith("</think>")
    assert other.must  # it goes its own way
    for token in made.encode_on(" one two three four five six"):
        budget.take(token)
        assert budget.must == []

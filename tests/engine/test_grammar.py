"""Texts that a grammar binds: always whole, and the same with any drafter, K and company."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest
import torch
from tests.engine.tools import Pair, RandomDrafter, prompt

from paceline import Completion, Engine, Grammar, RequestError, SamplingParams
from paceline.speculation.sampling import allowed

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "kind": {"enum": ["alpha", "beta"]},
        "sizes": {"type": "array", "items": {"type": "integer"}, "maxItems": 3},
    },
    "required": ["name", "kind", "sizes"],
    "additionalProperties": False,
}
JSON = Grammar("json_schema", json.dumps(SCHEMA))
PARAMS = SamplingParams(temperature=1.0, max_tokens=110, min_tokens=5)


def written(engine: Engine, k: int | None = None) -> list[Completion]:
    """Six bound texts and two free ones, all at once."""
    handles = [
        engine.submit(
            prompt(n),
            SamplingParams(temperature=float(n % 3 > 0), seed=n, max_tokens=110, logprobs=1),
            k=k,
            grammar=[JSON, None, JSON, Grammar("regex", r"[a-f]{3,9}-[0-9]+(\.[0-9])?")][n % 4],
        )
        for n in range(8)
    ]
    return [handle.result(120) for handle in handles]


def whole(text: str) -> bool:
    """Whether a text is what it must be."""
    if text.startswith("{"):
        value = json.loads(text)
        assert set(value) == {"name", "kind", "sizes"}
        assert len(value["name"]) <= 6
        assert value["kind"] in ("alpha", "beta")
        return all(type(size) is int for size in value["sizes"]) and len(value["sizes"]) <= 3
    return re.fullmatch(r"[a-f]{3,9}-[0-9]+(\.[0-9])?", text) is not None


@pytest.fixture
def plain(opened: Callable[..., Engine]) -> list[Completion]:
    engine = opened(k=0, slots=1)
    return written(engine)


def test_every_text_is_whole(plain: list[Completion]) -> None:
    finished = [one for n, one in enumerate(plain) if n % 4 != 1 and one.finish == "stop"]
    assert len(finished) >= 4  # an integer may be of any length: some are cut
    assert all(whole(one.text) for one in finished)


@pytest.mark.parametrize("drafter", ["random", "model", "ngram:min=1", "ngram:min=1+model"])
@pytest.mark.parametrize("k", [1, 4])
def test_the_text_does_not_depend_on_drafts(
    drafter: str, k: int, plain: list[Completion], pair: Pair, opened: Callable[..., Engine]
) -> None:
    given = RandomDrafter() if drafter == "random" else drafter
    engine = opened(drafter=given, draft=pair.target, k=k, slots=3)
    for mine, theirs in zip(written(engine), plain, strict=True):
        assert mine.token_ids == theirs.token_ids
        assert (mine.text, mine.finish) == (theirs.text, theirs.finish)
        assert mine.logprobs is not None
        assert theirs.logprobs is not None
        for a, b in zip(mine.logprobs, theirs.logprobs, strict=True):
            assert a.logprob == pytest.approx(b.logprob, abs=1e-9)


def test_what_is_forced_is_not_computed_twice(pair: Pair, opened: Callable[..., Engine]) -> None:
    """Where the grammar leaves no choice, a whole window stands."""
    engine = opened(drafter="ngram:min=3", k=6)
    only = Grammar("json_schema", json.dumps({"const": {"answer": "yes, and no more than that"}}))
    (one,) = engine.generate([prompt(1)], PARAMS, grammar=only)
    assert json.loads(one.text) == {"answer": "yes, and no more than that"}
    assert one.stats.rounds <= -(-len(one.token_ids) // 7) + 2
    assert set(one.sources) == {"forced", "target"}
    assert one.stats.accepted_by_source == {"forced": one.stats.accepted}


@pytest.mark.parametrize("rule", ["reject", "block"])
def test_other_rules_keep_to_the_grammar(
    rule: str, pair: Pair, opened: Callable[..., Engine]
) -> None:
    engine = opened(draft=pair.target, rule=rule, k=3, slots=2)
    for n in range(6):
        params = SamplingParams(temperature=1.0, seed=n, max_tokens=150)
        (one,) = engine.generate([prompt(n)], params, grammar=JSON)
        assert one.finish == "length" or whole(one.text)
        assert "forced" not in one.sources


def test_the_mask_takes_out_the_rest() -> None:
    logits = torch.randn(2, 3, 70)
    bits = torch.rand(2, 3, 96) < 0.5
    words = torch.zeros(2, 3, 3, dtype=torch.int64)
    for bit in range(32):
        words |= bits.view(2, 3, 3, 32)[..., bit].long() << bit
    mask = torch.where(words >= 2**31, words - 2**32, words).int()
    out = allowed(logits, mask)
    assert torch.equal(out.isneginf(), ~bits[..., :70])
    assert torch.equal(out[bits[..., :70]], logits[bits[..., :70]])


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        (Grammar("json_schema", "{"), "json schema"),
        (Grammar("json_schema", '{"type": "objekt"}'), "json schema"),
        (Grammar("regex", "[a-z"), "regex"),
        (Grammar("lark", "start: nothing"), "lark"),
    ],
)
def test_a_bad_grammar_is_refused_at_once(
    grammar: Grammar, words: str, opened: Callable[..., Engine]
) -> None:
    engine = opened(k=0)
    with pytest.raises(RequestError, match=f"the {words} cannot be used: ") as caught:
        engine.submit(prompt(1), PARAMS, grammar=grammar)
    assert "\n" not in str(caught.value)


def test_ignoring_the_end_contradicts_a_grammar(opened: Callable[..., Engine]) -> None:
    with pytest.raises(RequestError, match="leave ignore_eos out"):
        opened(k=0).submit(prompt(1), SamplingParams(ignore_eos=True), grammar=JSON)

"""Texts that a grammar binds: always whole, and the same with any drafter, K and company."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import EOS, VOCAB_SIZE, tiny_checkpoint
from tests.engine.tools import KnownDrafter, Pair, RandomDrafter, prompt
from torch import Tensor

from paceline import (
    Completion,
    Engine,
    Grammar,
    Handle,
    NumericsError,
    RequestError,
    SamplingParams,
    StepError,
)
from paceline.engine.acceptance import Track
from paceline.engine.pilot import Launch
from paceline.speculation.sampling import allowed
from paceline.text.grammar import Grammars
from paceline.types import Constraint

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


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_grammar_that_counts_tokens_is_followed_along_drafts(
    temperature: float, pair: Pair, opened: Callable[..., Engine]
) -> None:
    """What it has counted cannot be taken back, so a draft must not be walked in place."""
    grammar = Grammar("lark", 'start: free "=" /[0-9]{2}/\nfree[max_tokens=9]: /[a-z]*/')
    params = SamplingParams(temperature=temperature, seed=3, max_tokens=40)
    plain, drafting = opened(k=0), opened(draft=pair.target, drafter="model", k=4)
    for n in range(3):
        (alone,) = plain.generate([prompt(n)], params, grammar=grammar)
        (text,) = drafting.generate([prompt(n)], params, grammar=grammar)
        assert (text.text, text.finish) == (alone.text, "stop")
    assert drafting.stats().accepted > 0


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
        (Grammar("lark", "start: " + "(" * 9000 + '"a"' + ")" * 9000), "lark"),
        (Grammar("regex", r"[^\s\S]"), "regex"),
        (Grammar("json_schema", '{"$ref": "#"}'), "json schema"),
        (Grammar("json_schema", '{"enum": [%s 1]}' % ("1, " * 60_000)), "json schema"),
    ],
)
def test_a_bad_grammar_is_refused_at_once(
    grammar: Grammar, words: str, opened: Callable[..., Engine]
) -> None:
    engine = opened(k=0)
    with pytest.raises(RequestError, match=f"the {words} cannot be used: ") as caught:
        engine.submit(prompt(1), PARAMS, grammar=grammar)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    with pytest.raises(RequestError, match=f"the {words} cannot be used: "):
        engine.check_grammar(grammar)


@pytest.mark.parametrize("opened_by", ["", "<think>"])
@pytest.mark.parametrize("grammar", [
    Grammar("regex", "[0-9]{2}x", after="</think>"),
    Grammar("lark", 'start: d d "x"\nd: /[0-9]/', after="</think>"),
])  # fmt: skip
def test_what_comes_first_is_free(
    grammar: Grammar, opened_by: str, opened: Callable[..., Engine]
) -> None:
    engine = opened(k=0)
    grammar = replace(grammar, opened_by=opened_by)

    def follows(text: str) -> bool:
        fresh = engine._intake.compiler().compile(grammar)
        ids = engine.tokenizer.encode(text)
        return all(allows(fresh, token) for token in [*ids, next(iter(engine._intake._eos))])

    assert follows(opened_by + "so 1 < 2x\n</think>\n\n12x")
    assert follows("12x") is bool(opened_by)
    assert not follows("free</think>12y")
    assert not follows(opened_by + "free</think>12x</think>")


BUDGET = Grammar("any", after="</think>", budget=7)
MARK = list(b"</think>")


def spent(tokens: Sequence[int], budget: int) -> int:
    """How many tokens come before the mark: so many, and the rest of a character."""
    utf8 = codecs.getincrementaldecoder("utf-8")("replace")
    for place, token in enumerate(tokens):
        if place >= budget and not utf8.getstate()[0]:
            return place
        utf8.decode(bytes([token]) if token < 256 else b".")
    raise AssertionError("the text is too short")


@pytest.mark.parametrize("budget", [
    Grammar("any"),
    Grammar("any", after="</think>"),
    Grammar("regex", "[a-z]", budget=3),
    Grammar("regex", "[a-z]", after="</think>", budget=-1),
])  # fmt: skip
def test_a_budget_that_is_none_is_refused(budget: Grammar, opened: Callable[..., Engine]) -> None:
    with pytest.raises(RequestError, match="a number of tokens, at least 0, of what stands before"):
        opened(k=0).submit(prompt(1), PARAMS, grammar=budget)


@pytest.mark.parametrize("drafter", ["random", "model", "ngram:min=1"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_budget_ends_what_comes_first_and_changes_nothing_else(
    drafter: str, temperature: float, pair: Pair, opened: Callable[..., Engine]
) -> None:
    """Before the mark the text is the free one's, and behind it that of a prompt which has all
    this; at every K, the end of the text and min_tokens as without."""
    free, given = opened(k=0), RandomDrafter() if drafter == "random" else drafter
    engine = opened(drafter=given, draft=pair.target, k=4, slots=3)
    params = SamplingParams(temperature=temperature, seed=3, max_tokens=30, min_tokens=20)
    for n in range(4):
        (plain,) = free.generate([prompt(n)], params)
        lead = [*plain.token_ids[: spent(plain.token_ids, 7)], *MARK]
        left = replace(params, max_tokens=30 - len(lead), min_tokens=20 - len(lead))
        (rest,) = free.generate([[*prompt(n), *lead]], left)
        for k in (0, 1, 4):
            (got,) = engine.generate([prompt(n)], params, k=k, grammar=BUDGET)
            assert list(got.token_ids) == [*lead, *rest.token_ids]
            assert got.finish == rest.finish
        ample = replace(BUDGET, budget=30)
        never = replace(BUDGET, opened_by="<think>", budget=0)  # none of these begins so
        for other in (ample, never):
            (got,) = engine.generate([prompt(n)], params, grammar=other)
            assert got.token_ids == plain.token_ids
    (endless,) = engine.generate([prompt(1)], replace(params, ignore_eos=True), grammar=BUDGET)
    assert len(endless.token_ids) == 30
    assert engine.stats().accepted_by_source["forced"] > 0


@pytest.mark.parametrize("rule", ["reject", "block"])
def test_other_rules_keep_to_a_budget(rule: str, pair: Pair, opened: Callable[..., Engine]) -> None:
    engine = opened(draft=pair.target, rule=rule, k=3, slots=2)
    bound = Grammar("regex", "[0-9]{3}", after="</think>", budget=5)
    for n in range(4):
        params = SamplingParams(temperature=1.0, seed=n, max_tokens=40)
        (one,) = engine.generate([prompt(n)], params, grammar=bound)
        _, _, answer = one.text.partition("</think>")
        end = spent(one.token_ids, 5)
        assert list(one.token_ids[end : end + len(MARK)]) == MARK
        assert re.fullmatch(r"[ \n]{0,4}[0-9]{3}", answer)
        assert one.finish == "stop"


def test_a_budget_counts_from_the_first_mark_and_ends_at_the_second(
    opened: Callable[..., Engine],
) -> None:
    compiler = opened(k=0)._intake.compiler()

    def follows(text: str, budget: int) -> bool:
        grammar = replace(BUDGET, opened_by="<think>", budget=budget)
        fresh = compiler.compile(grammar)
        return all(allows(fresh, token) for token in text.encode())

    assert follows(" \n<think>12345</think>any", 5)
    assert not follows(" \n<think>123456", 5)
    assert follows("<think></think>", 0)
    assert not follows("<think>1", 0)
    # One that the model begins itself, and one that it has begun when the budget is over.
    assert follows("<think>12</think>" + "a" * 50, 20)
    assert follows("<think>12</t</think>a", 5)
    assert not follows("<think>12</think>", 5)
    # A character is not cut.
    assert follows("<think>1日</think>a", 2)
    assert not follows("<think>1日2", 2)


def allows(matcher: Constraint, token: int) -> bool:
    """Whether `token` may come, which then is taken to."""
    words = matcher.masks([])[0].tolist()
    matcher.commit([token])
    return bool(words[token // 32] >> (token % 32) & 1)


def test_the_same_grammar_is_compiled_once(opened: Callable[..., Engine]) -> None:
    engine = opened(k=0)
    compiler = engine._intake.compiler()
    first = compiler.compile(JSON)
    made = dict(compiler._kept)
    first.commit(engine.tokenizer.encode("{"))
    second = compiler.compile(Grammar("json_schema", json.dumps(SCHEMA)))
    assert dict(compiler._kept) == made
    assert first.forced() != second.forced()  # each has come its own way


def test_a_tokenizer_with_more_tokens_than_the_model(opened: Callable[..., Engine]) -> None:
    """What the model has is allowed where the grammar allows it; the rest is never asked for."""
    tokenizer = opened(k=0).tokenizer
    matcher = Grammars(tokenizer, 96, [EOS]).compile(Grammar("regex", "[A-Z]x"))
    assert matcher.masks([]).shape == (1, 3)
    assert allows(matcher, ord("A"))
    assert not matcher.masks([]).any()  # x is 120: the model has no such token


def test_a_token_that_the_model_lacks_is_never_forced(
    opened: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It would be read by the model, with the texts of others in the batch."""
    small = {"vocab_size": 200, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    less = tiny_checkpoint(tmp_path / "less", dtype=torch.float64, **small)
    engine = opened(less, drafter="ngram:min=1", k=3, slots=2)
    words = [token % 200 for token in prompt(1)]
    params = SamplingParams(max_tokens=12, temperature=1.0, seed=1)
    (alone,) = engine.generate([words], params)
    with engine._driver.held():
        other = engine.submit(words, params)
        bound = engine.submit(words, params, grammar=Grammar("lark", f'start: "a" <[{EOS + 1}]>'))
    assert other.result(60).token_ids == alone.token_ids
    with pytest.raises(NumericsError):
        bound.result(60)


def test_a_grammar_that_cannot_go_on_fails_its_own_text_alone(
    opened: Callable[..., Engine],
) -> None:
    """Not ended as if it were whole, and nobody else's text is lost."""
    engine = opened(k=0, slots=2)
    free = engine.submit(prompt(2), SamplingParams(max_tokens=40, ignore_eos=True))
    # More than one lexer may hold: the first token is told, a later one is not.
    bad = engine.submit(prompt(1), PARAMS, grammar=Grammar("regex", "((a{900}){900}){900}"))
    with pytest.raises(RequestError, match="could not be followed to its end"):
        bad.result(60)
    assert len(free.result(60).token_ids) == 40


def test_ignoring_the_end_contradicts_a_grammar(opened: Callable[..., Engine]) -> None:
    with pytest.raises(RequestError, match="leave ignore_eos out"):
        opened(k=0).submit(prompt(1), SamplingParams(ignore_eos=True), grammar=JSON)


class Told:
    """A grammar of a test's own: the tokens that must come, in order. It may fail."""

    ends = True

    def __init__(self, tokens: list[int], failing: str = "") -> None:
        self.left, self.failing = tokens, failing

    def masks(self, drafted: Sequence[int]) -> Tensor:
        if self.failing == "masks":
            raise ValueError("too many states")
        out = torch.zeros(len(drafted) + 1, -(-VOCAB_SIZE // 32), dtype=torch.int64)
        for place in range(len(drafted) + 1):
            token = self.left[place] if place < len(self.left) else 0
            out[place, token // 32] |= 1 << token % 32
            if place < len(drafted) and drafted[place] != token:
                out[place + 1 :] = 2**32 - 1
                break
        return torch.where(out >= 2**31, out - 2**32, out).int()

    def commit(self, tokens: Sequence[int]) -> None:
        assert self.left[: len(tokens)] == list(tokens)
        del self.left[: len(tokens)]

    def forced(self) -> list[int]:
        if self.failing == "forced":
            raise ValueError("too many states")
        return list(self.left) if self.failing != "free" else []


def bound(engine: Engine, constraint: Told, k: int, length: int) -> Handle:
    """A request bound by a test's own grammar."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine._intake, "_constraint", lambda *_: constraint)
        params = SamplingParams(max_tokens=length)
        return engine.submit(prompt(1), params, k=k, grammar=JSON)


@pytest.mark.parametrize("failing", ["masks", "forced"])
def test_a_grammar_that_breaks_down_ends_its_own_request(
    failing: str, opened: Callable[..., Engine]
) -> None:
    engine = opened(drafter="ngram:min=1", k=3, slots=2)
    free = SamplingParams(max_tokens=20, ignore_eos=True)
    (wanted,) = engine.generate([prompt(2)], free)
    with engine._driver.held():
        failed = bound(engine, Told([5, 6, 7], failing), 3, 8)
        other = engine.submit(prompt(2), free)
    with pytest.raises(StepError, match="ValueError: too many states"):
        failed.result(60)
    assert other.result(60).token_ids == wanted.token_ids
    assert engine._driver.ask(lambda: engine._loop.idle)


def test_a_window_that_another_row_widens_has_masks_to_its_end(
    opened: Callable[..., Engine],
) -> None:
    """One row's draft is longer than the engine means to verify; another's forced tokens widen the
    window, and all of that draft is judged."""
    only = [40 + n for n in range(24)]
    known = KnownDrafter({tuple(prompt(1)): tuple(only)})
    engine = opened(drafter=known, k=6, slots=2)
    fixed = engine._loop.pilot

    class Narrow:
        """Verifies one of the drafts that wait."""

        def __getattr__(self, name: str) -> object:
            return getattr(fixed, name)

        def plan(self, tracks: list[Track], context: float) -> Launch:
            launch = fixed.plan(tracks, context)
            return replace(launch, k=min(1, launch.k), asked=tuple(min(1, a) for a in launch.asked))

    engine._driver.ask(lambda: setattr(engine._loop, "pilot", Narrow()))
    with engine._driver.held():
        handles = [bound(engine, Told(list(only), kind), 6, 24) for kind in ("free", "")]
    for handle in handles:
        assert handle.result(60).token_ids == tuple(only)

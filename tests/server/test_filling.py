"""Filling in before a suffix: the families' marks, found by the vocabulary, around both texts."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from tests.server.test_prompts import read
from tests.server.tools import PROMPT, Call
from tokenizer_kinds import marked, tokenizer

from paceline import Engine
from paceline.server.errors import ApiError
from paceline.server.fill_families import FAMILIES, filling_of
from paceline.server.prompts import completion_prompts
from paceline.server.wire import CompletionBody, parse

SUFFIX = "\n\nprint(add(1, 2))"
QWEN = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")

__all__ = ["read"]


class Opened:
    """As much of an engine as a prompt asks for."""

    def __init__(self, tokenizer: Any, vocab_size: int | None = None) -> None:
        self.tokenizer = self.limits = tokenizer
        if vocab_size is not None:
            self.limits = type("Limits", (), {"vocab_size": vocab_size})()


def prompts(engine: Any, **fields: Any) -> list[list[int]]:
    body = {"model": "m", "prompt": "def f(x):", "suffix": SUFFIX, **fields}
    return completion_prompts(parse(CompletionBody, json.dumps(body).encode()), engine)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_found_by_its_marks(name: str) -> None:
    family = FAMILIES[name]
    names = [family.prefix, family.suffix, family.middle, *family.ends]
    kind = marked("byte_level", names, special=False)
    found = filling_of(kind.token_id)
    assert found is not None
    ids = [kind.token_id(mark) for mark in names]
    assert [found.prefix, found.suffix, found.middle] == ids[:3]
    assert set(found.stops) == set(ids)
    assert filling_of(marked("byte_level", names[:2], special=False).token_id) is None


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("bos", [True, False])
def test_marks_stand_around_both_texts(special: bool, bos: bool) -> None:
    """And what the tokenizer puts before every text comes once, before them all."""
    kind = marked("byte_level", list(QWEN), special=special, bos=bos)
    prefix, suffix, middle = (kind.token_id(mark) for mark in QWEN)
    text = f"{QWEN[0]}def f(x):{QWEN[1]}{SUFFIX}{QWEN[2]}"
    (ids,) = prompts(Opened(kind))
    assert ids == kind.encode(text)  # as a client writes it that knows the marks
    assert (ids[bos], ids[-1]) == (prefix, middle)
    assert ids.count(suffix) == 1
    (without,) = prompts(Opened(kind), add_special_tokens=False)
    assert without == kind.encode(text, add_special_tokens=False)
    own = kind.encode("def f(x):", add_special_tokens=False)
    assert (
        prompts(Opened(kind), prompt=["def f(x):", "a"])[0] == prompts(Opened(kind), prompt=own)[0]
    )


def test_code_llamas_suffix_goes_on() -> None:
    """Its tokenizer puts a space before every text, which would stand in the middle of the code."""
    family = FAMILIES["codellama"]
    names = [family.prefix, family.suffix, family.middle, *family.ends]
    kind = marked("sentencepiece", names, special=True, bos=True)
    (ids,) = prompts(Opened(kind), suffix="store(path)")
    at = ids.index(kind.token_id(family.suffix))  # type: ignore[arg-type]
    assert ids[:at] == [
        *kind.lead,
        kind.token_id(family.prefix),
        *kind.encode("def f(x):", add_special_tokens=False),
    ]
    behind = ids[at + 1 : -1]
    assert "".join(str(kind.token(token)) for token in behind) == "store(path)"
    assert str(kind.token(kind.encode("store(path)", add_special_tokens=False)[0])).startswith("▁")


def test_what_a_tokenizer_puts_before_a_text() -> None:
    assert tokenizer("byte_level").lead == []
    kind = marked("sentencepiece", [], special=True, bos=True)
    assert kind.lead == [kind.token_id("<s>")]


def test_marks_that_the_model_has_not_are_no_marks(engine: Engine) -> None:
    kind = marked("byte_level", list(QWEN), special=False)
    with pytest.raises(ApiError, match="no marks"):
        prompts(Opened(kind, vocab_size=len(kind) - 1))


@pytest.fixture
def marks(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """The bundled model's vocabulary has the marks: rare tokens of its own stand for them."""
    ids = {mark: engine.limits.vocab_size - 1 - place for place, mark in enumerate(QWEN)}
    real = engine.tokenizer.token_id
    monkeypatch.setattr(engine.tokenizer, "token_id", lambda name: ids.get(name, real(name)))
    return ids


def test_a_completion_with_a_suffix(
    marks: dict[str, int], read: list[tuple[int, ...]], engine: Engine, app: Callable[..., Call]
) -> None:
    before, behind = map(engine.tokenizer.encode, (PROMPT, SUFFIX))
    wanted = (marks[QWEN[0]], *before, marks[QWEN[1]], *behind, marks[QWEN[2]])
    body = {"model": "mini", "prompt": PROMPT, "suffix": SUFFIX, "max_tokens": 4}
    answer = app()("POST", "/v1/completions", body | {"stream": True, "temperature": 0})
    assert answer.status == 200, answer.body
    assert read == [wanted]


def test_the_marks_end_a_text(
    marks: dict[str, int], engine: Engine, app: Callable[..., Call], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They come behind what was to be filled in, as a padding or another file would."""
    token = marks[QWEN[0]]
    body = {"model": "mini", "prompt": PROMPT, "suffix": SUFFIX, "max_tokens": 6, "temperature": 0,
            "logit_bias": {str(token): 100}}  # fmt: skip
    choice = app()("POST", "/v1/completions", body).json["choices"][0]
    assert (choice["finish_reason"], choice["text"]) == ("stop", "")
    on = app()("POST", "/v1/completions", body | {"ignore_eos": True}).json["choices"][0]
    assert on["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("extra", "param"), [({}, "suffix"), ({"echo": True}, "echo")], ids=["suffix", "echo"]
)
def test_a_suffix_that_cannot_be(
    extra: dict[str, Any], param: str, app: Callable[..., Call]
) -> None:
    body = {"model": "mini", "prompt": PROMPT, "suffix": SUFFIX, **extra}
    answer = app()("POST", "/v1/completions", body)
    assert (answer.status, answer.json["error"]["param"]) == (400, param)
    if not extra:
        assert "no marks for filling in" in answer.json["error"]["message"]

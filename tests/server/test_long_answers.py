"""How long an answer may be: what fits, and what becomes of one that is asked for longer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tests.server.tools import CHAT, Answer, Call, in_process

from paceline import Engine
from paceline.server.settings import LongAnswers, ServerSettings

SIZE = 128
PROMPT = [7] * 100


@pytest.fixture(scope="module")
def small() -> Iterator[Engine]:
    """An engine whose cache holds one text and nothing beside it."""
    with Engine("mini-target", draft="mini-draft", k=4, dtype="float32", threads=1, adaptive=False,
                slots=1, max_length=SIZE, cache_tokens=SIZE) as engine:  # fmt: skip
        yield engine


def serving(engine: Engine, long_answers: LongAnswers) -> Call:
    return in_process(engine, ServerSettings(name="mini", long_answers=long_answers))


def ask(call: Call, **body: Any) -> Answer:
    path = "chat/completions" if "messages" in body else "completions"
    return call("POST", f"/v1/{path}", {"model": "mini", "ignore_eos": True, **body})


def test_what_the_engine_can_write_is_served(small: Engine) -> None:
    call = serving(small, "refuse")
    answer = ask(call, prompt=PROMPT, max_tokens=SIZE - 100)
    assert answer.json["usage"]["completion_tokens"] == small.room(100) == SIZE - 100
    assert (small.room(SIZE), small.room(SIZE + 1)) == (0, 0)
    refused = ask(call, prompt=PROMPT, max_tokens=SIZE - 99)
    assert refused.status == 400
    error = refused.json["error"]
    assert (error["param"], error["code"]) == ("max_tokens", "context_length_exceeded")
    assert error["message"].endswith(f"ask for at most {SIZE - 100}")


def test_a_text_that_is_too_long_is_cut_where_the_operator_says_so(small: Engine) -> None:
    call = serving(small, "cut")
    prompt = len(small.tokenizer.chat(CHAT))
    for body, size, name in (
        ({"prompt": PROMPT}, 100, "max_tokens"),
        ({"prompt": [PROMPT, [7] * 110]}, 110, "max_tokens"),
        ({"messages": CHAT}, prompt, "max_tokens"),
        ({"messages": CHAT}, prompt, "max_completion_tokens"),
    ):
        answer = ask(call, **body, **{name: 32_000}).json
        texts = len(answer["choices"])
        assert answer["usage"]["completion_tokens"] == (SIZE - size) * texts
        assert {choice["finish_reason"] for choice in answer["choices"]} == {"length"}
    # A prompt that leaves no room is refused as ever.
    error = ask(call, prompt=[7] * SIZE, max_tokens=1).json["error"]
    assert (error["param"], error["code"]) == ("prompt", "context_length_exceeded")

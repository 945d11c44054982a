"""`/tokenize` and `/detokenize`: what a prompt is to the model, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tests.server.tools import CHAT, PROMPT, Call

from paceline import Engine
from paceline.server.tools import described
from paceline.server.wire import Tool

TEXT = f"{PROMPT}\n    return '🦊 日本'"
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "now", "parameters": {}}}


def test_a_prompt_and_back(app: Callable[..., Call], engine: Engine) -> None:
    call, ids = app(), engine.tokenizer.encode(TEXT)
    told = call("POST", "/tokenize", {"model": "mini", "prompt": TEXT})
    assert told.json == {"count": len(ids), "max_model_len": 512, "tokens": ids}
    assert call("POST", "/detokenize", {"tokens": ids}).json == {"prompt": TEXT}
    asked = {"prompt": TEXT, "return_token_strs": True, "add_special_tokens": False}
    named = call("POST", "/tokenize", asked).json
    assert named["token_strs"] == [engine.tokenizer.token(token) for token in named["tokens"]]
    assert call("POST", "/tokenize", {"prompt": ids}).json["tokens"] == ids
    empty = call("POST", "/tokenize", {"prompt": ""}).json
    assert (empty["count"], empty["tokens"]) == (0, [])
    assert call("POST", "/detokenize", {"tokens": []}).json == {"prompt": ""}
    end = engine.tokenizer.eos_ids[0]  # a special token is part of a prompt, too
    name = engine.tokenizer.token(end)
    assert call("POST", "/detokenize", {"tokens": [*ids, end]}).json == {"prompt": f"{TEXT}{name}"}


def test_a_chat_as_it_would_be_asked(app: Callable[..., Call], engine: Engine) -> None:
    call, chat = app(), engine.tokenizer.chat
    whole = call("POST", "/tokenize", {"messages": CHAT}).json
    assert whole["tokens"] == chat(CHAT)
    sent = {"model": "mini", "messages": CHAT, "max_tokens": 1}
    used = call("POST", "/v1/chat/completions", sent).json["usage"]
    assert whole["count"] == used["prompt_tokens"]
    bare = call("POST", "/tokenize", {"messages": CHAT, "add_generation_prompt": False}).json
    assert bare["tokens"] == chat(CHAT, answer=False) != whole["tokens"]
    shown = call("POST", "/tokenize", {"messages": CHAT, "tools": [TOOL]}).json
    assert shown["tokens"] == chat(CHAT, described([Tool.model_validate(TOOL)]))


def test_longer_than_the_context_is_counted(app: Callable[..., Call]) -> None:
    """It is asked for to find out."""
    told = app()("POST", "/tokenize", {"prompt": "a = 1\n" * 3000}).json
    assert told["count"] > told["max_model_len"] == 512


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": CHAT}, "prompt"),
        ("/tokenize", {"prompt": [70000]}, "prompt"),
        ("/tokenize", {"prompt": "a", "return_token_strs": "yes"}, "return_token_strs"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": [1, 70000]}, "tokens"),
        ("/detokenize", {"tokens": "a"}, "tokens"),
    ],
)
def test_what_cannot_be(path: str, body: dict[str, Any], param: str, app: Any) -> None:
    answer = app()("POST", path, body)
    assert (answer.status, answer.json["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    ("path", "body"), [("/tokenize", {"prompt": PROMPT}), ("/detokenize", {"tokens": [1, 2]})]
)
def test_under_the_rules_of_the_others(path: str, body: dict[str, Any], app: Any) -> None:
    call = app(api_keys=("sk-1",), max_body=200)
    key = {"authorization": "Bearer sk-1"}
    assert call("POST", path, body).status == 401
    assert call("POST", path, body, key).status == 200
    assert call("POST", path, {**body, "more": "x" * 200}, key).status == 413
    wrong = call("POST", path, {**body, "model": "other"}, key)
    assert (wrong.status, wrong.json["error"]["code"]) == (404, "model_not_found")
    assert call("GET", path, None, key).status == 405
    assert f'path="{path}",status="200"' in call("GET", "/metrics").body.decode()

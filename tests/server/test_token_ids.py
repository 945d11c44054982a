"""`return_token_ids`: what was read and written, as vLLM names it, whole and in streams."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tests.server.tools import CHAT, PROMPT, Call

from paceline import Engine, sampling_params
from paceline.server.asking import derived_seed

OPTIONS: dict[str, Any] = {"temperature": 1.0, "seed": 5, "max_tokens": 24}
CHATS: list[dict[str, Any]] = [{}, {"logprobs": True}, {"stop": "a"}, {"n": 2}]


def ask(call: Call, path: str, **body: Any) -> Any:
    answer = call("POST", f"/v1/{path}", {"model": "mini", **OPTIONS, **body})
    assert answer.status == 200, answer.body
    return answer


def gathered(chunks: list[Any]) -> dict[int, list[int]]:
    """A stream's token ids by choice."""
    found: dict[int, list[int]] = {}
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        found.setdefault(choice["index"], []).extend(choice.get("token_ids", ()))
    return found


def written(engine: Engine, prompt: Any, seed: int, **options: Any) -> list[int]:
    params = sampling_params(**OPTIONS | {"seed": seed} | options)
    return list(engine.generate([prompt], params)[0].token_ids)


def test_of_completions(app: Callable[..., Call], engine: Engine) -> None:
    call, prompts = app(), [engine.tokenizer.encode(text) for text in (PROMPT, "x = é")]
    body = {"prompt": prompts, "n": 2, "return_token_ids": True}
    wanted = [(p, written(engine, p, seed)) for p in prompts for seed in (5, derived_seed(5, 1))]
    choices = ask(call, "completions", **body).json["choices"]
    assert [(c["prompt_token_ids"], c["token_ids"]) for c in choices] == wanted
    chunks = ask(call, "completions", **body, stream=True).chunks
    assert gathered(chunks) == {place: ids for place, (_, ids) in enumerate(wanted)}
    first: dict[int, Any] = {}
    for chunk in chunks:
        (choice,) = chunk["choices"]
        first.setdefault(choice["index"], choice)
    assert [first[place]["prompt_token_ids"] for place in range(4)] == [p for p, _ in wanted]
    repeated = ask(call, "completions", prompt=PROMPT, echo=True, return_token_ids=True).json
    (choice,) = repeated["choices"]
    assert (choice["prompt_token_ids"], choice["token_ids"]) == wanted[0]


@pytest.mark.parametrize("options", CHATS)
@pytest.mark.parametrize("enabled", [True, False])
def test_of_chats(
    enabled: bool, options: dict[str, Any], app: Callable[..., Call], engine: Engine
) -> None:
    call = app()
    body = {"messages": CHAT, "return_token_ids": True, "speculative": {"enabled": enabled}}
    whole = ask(call, "chat/completions", **body, **options).json
    prompt = engine.tokenizer.chat(CHAT)
    assert whole["prompt_token_ids"] == prompt
    said = {"stop": options["stop"]} if "stop" in options else {}
    wanted = [
        written(engine, prompt, derived_seed(5, place), **said)
        for place in range(options.get("n", 1))
    ]
    assert [choice["token_ids"] for choice in whole["choices"]] == wanted
    chunks = ask(call, "chat/completions", **body, **options, stream=True).chunks
    assert gathered(chunks) == dict(enumerate(wanted))
    told = [chunk["prompt_token_ids"] for chunk in chunks if "prompt_token_ids" in chunk]
    assert told == [prompt] * len(wanted)


def test_tokens_that_show_nothing_are_told_of(app: Callable[..., Call], engine: Engine) -> None:
    """Those of a character that never ends, say."""
    (byte,) = (
        i for i in range(len(engine.tokenizer)) if engine.tokenizer.token_bytes(i) == b"\xe2"
    )
    always = {"logit_bias": {str(byte): 100}, "temperature": 0, "max_tokens": 1}
    for path, text in (
        ("completions", {"prompt": PROMPT}),
        ("chat/completions", {"messages": CHAT}),
    ):
        body = {**text, **always, "return_token_ids": True, "stream": True}
        assert gathered(ask(app(), path, **body).chunks) == {0: [byte]}


def test_nobody_is_told_who_does_not_ask(app: Callable[..., Call]) -> None:
    call = app()
    for said in ({}, {"return_token_ids": False}, {"return_token_ids": None}):
        for path, text in (
            ("completions", {"prompt": "a"}),
            ("chat/completions", {"messages": CHAT}),
        ):
            assert b"token_ids" not in ask(call, path, **text, **said).body
            assert b"token_ids" not in ask(call, path, **text, **said, stream=True).body

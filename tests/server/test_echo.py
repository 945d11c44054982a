"""`echo` with `logprobs`: a prompt's log-probabilities, as evaluation harnesses ask for them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from openai import OpenAI
from tests.server.tools import PROMPT, Call, connected, request_bytes, until

from paceline import Engine
from paceline.server.pieces import Offsets, Pieces

SCORE: dict[str, Any] = {"model": "mini", "max_tokens": 0, "echo": True, "logprobs": 1}


def raw(engine: Engine, ids: list[int]) -> list[float]:
    """The log-probability of every token but the first, by one pass."""
    scores = engine.score(ids).log_softmax(-1)
    return [float(scores[place, token]) for place, token in enumerate(ids[1:])]


def test_prompts_are_scored_without_writing(client: OpenAI, engine: Engine) -> None:
    """As evaluation harnesses do it: token ids, several at once, no text wanted."""
    texts = [PROMPT, "import os\nimport sys\n", "é🙂"]
    ids = [engine.tokenizer.encode(text) for text in texts]
    done = client.completions.create(prompt=ids, temperature=0, **SCORE)
    assert done.usage is not None
    assert (done.usage.completion_tokens, done.usage.prompt_tokens) == (0, sum(map(len, ids)))
    for choice, text, tokens in zip(done.choices, texts, ids, strict=True):
        assert (choice.text, choice.finish_reason) == (text, "length")
        shown = choice.logprobs
        assert shown is not None
        assert (shown.token_logprobs or [0])[0] is None
        assert (shown.token_logprobs or [])[1:] == pytest.approx(raw(engine, tokens), abs=1e-4)
        assert shown.text_offset is not None
        assert shown.text_offset[0] == 0
        assert len(shown.text_offset) == len(tokens) == len(shown.tokens or [])
        tops: list[Any] = list(shown.top_logprobs or [])
        assert tops[0] is None
        values: list[Any] = list(shown.token_logprobs or [])
        for top, name, value in zip(tops[1:], (shown.tokens or [])[1:], values[1:], strict=True):
            assert top[name] == value <= max(top.values())


@pytest.mark.parametrize("prompt", [PROMPT, "x"])
def test_prompt_and_text_in_one(prompt: str, client: OpenAI, engine: Engine) -> None:
    options: dict[str, Any] = {"prompt": prompt, "max_tokens": 5, "temperature": 0, "logprobs": 2}
    plain = client.completions.create(model="mini", **options)
    both = client.completions.create(model="mini", **options, echo=True, n=2)
    count = len(engine.tokenizer.encode(prompt))
    wanted = plain.choices[0].logprobs
    assert wanted is not None
    for choice in both.choices:
        assert choice.text == prompt + plain.choices[0].text
        shown = choice.logprobs
        assert shown is not None
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            column = getattr(shown, name)
            assert len(column) == count + 5, name
        assert (shown.tokens or [])[count:] == wanted.tokens
        assert (shown.token_logprobs or [])[count:] == pytest.approx(
            wanted.token_logprobs, abs=1e-4
        )
        assert [at - len(prompt) for at in (shown.text_offset or [])[count:]] == wanted.text_offset
        whole = (shown.tokens or [])[:count]
        assert "".join(whole) == prompt
    chunks = list(client.completions.create(model="mini", **options, echo=True, stream=True))
    first = chunks[0].choices[0]
    assert first.text == prompt
    assert first.logprobs is not None
    streamed = [t for c in chunks for t in (c.choices[0].logprobs or first.logprobs).tokens or []]
    assert streamed == (both.choices[0].logprobs or first.logprobs).tokens


def test_a_long_prompt_is_read_in_pieces_and_nobody_waits(
    app: Callable[..., Call], engine: Engine
) -> None:
    ids = [100 + place % 400 for place in range(512)]  # the longest that fits

    async def both() -> tuple[Any, Any]:
        call = app()
        body = {"model": "mini", "prompt": PROMPT, "max_tokens": 40, "temperature": 0}
        return await asyncio.gather(
            call.ask("POST", "/v1/completions", {**SCORE, "prompt": ids}),
            call.ask("POST", "/v1/completions", body),
        )

    scored, written = asyncio.run(both())
    values = scored.json["choices"][0]["logprobs"]["token_logprobs"]
    assert values[1:] == pytest.approx(raw(engine, ids), abs=1e-3)
    assert written.json["usage"]["completion_tokens"] == 40


def test_servers_of_one_engine_read_each_for_itself(app: Callable[..., Call]) -> None:
    """What keeps the prompts of one waiting is nothing to the other."""
    one, other, go = app(), app(), threading.Event()
    kept = one.api._scorers.submit(go.wait, 30)
    try:
        assert other("POST", "/v1/completions", {**SCORE, "prompt": PROMPT}).status == 200
        assert not kept.done()
    finally:
        go.set()
    assert one("POST", "/v1/completions", {**SCORE, "prompt": PROMPT}).status == 200


def test_a_client_that_leaves_ends_the_scoring(served: Any, engine: Engine) -> None:
    until(lambda: served.api.gate.inside == 0)  # whoever came before has left
    prompts = [[100 + place % 400 for place in range(400 + n)] for n in range(60)]
    with connected(served.url) as socket:
        socket.sendall(request_bytes("/v1/completions", {**SCORE, "prompt": prompts}))
        until(lambda: served.api.gate.inside > 0)
    until(lambda: served.api.gate.inside == 0)


@pytest.mark.parametrize("stream", [False, True])
def test_time_that_runs_out(stream: bool, app: Callable[..., Call]) -> None:
    prompts = [[100 + place % 400 for place in range(400 + n)] for n in range(9)]
    answer = app(timeout=0.05)(
        "POST", "/v1/completions", {**SCORE, "prompt": prompts, "stream": stream}
    )
    assert (answer.status, answer.json["error"]["code"]) == (503, "timeout")


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"echo": False}, "max_tokens"),
        ({"prompt": [0] * 513}, "prompt"),
        ({"prompt": [10**6]}, ""),
        ({"max_tokens": -1}, "max_tokens"),
        ({"logprobs_mode": "processed_logprobs"}, "logprobs_mode"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_scored(
    stream: bool, extra: Any, param: str, app: Callable[..., Call]
) -> None:
    body = {**SCORE, "prompt": "a b", "stream": stream, **extra}
    answer = app()("POST", "/v1/completions", body)
    assert answer.status == 400, answer.body
    assert (answer.json["error"]["param"] or "") == param


def test_echo_alone_writes_nothing_either(app: Callable[..., Call]) -> None:
    body = {"model": "mini", "prompt": PROMPT, "max_tokens": 0, "echo": True}
    answer = app()("POST", "/v1/completions", body).json
    assert answer["choices"][0] == {
        "text": PROMPT, "index": 0, "logprobs": None, "finish_reason": "length",
        "stop_reason": None,
    }  # fmt: skip
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"]


def test_special_tokens_take_no_room_in_a_prompt(engine: Engine) -> None:
    ids = [next(iter(engine.tokenizer.special_ids)), *engine.tokenizer.encode("a b")]
    shown = Pieces(engine.tokenizer).prompt(ids, [], Offsets())
    assert shown["text_offset"] == [0, 0, 1]

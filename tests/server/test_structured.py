"""Texts that must be JSON, or match a pattern or grammar: whole, valid, the same without drafts."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from typing import Any

import openai
import pytest
from jsonschema import Draft202012Validator
from openai import AsyncOpenAI, OpenAI
from tests.server.schemas import random_schema
from tests.server.tools import CHAT, Call, Served

from paceline import Engine, Grammar, sampling_params
from paceline.server.asking import derived_seed

PROMPT = "record = json.loads('''"
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
        "size": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "tags", "size"],
    "additionalProperties": False,
}
FORM = {"type": "json_schema", "json_schema": {"name": "it", "schema": SCHEMA, "strict": True}}
OPTIONS: dict[str, Any] = {"temperature": 1.0, "seed": 11, "max_tokens": 90}


def holds(text: str | None) -> bool:
    Draft202012Validator(SCHEMA).validate(json.loads(text or ""))
    return True


def test_a_chat_follows_its_schema(client: OpenAI) -> None:
    options: dict[str, Any] = {"model": "mini", "messages": CHAT, "response_format": FORM}
    done = client.chat.completions.create(**options, **OPTIONS, extra_body={"min_tokens": 60})
    assert holds(done.choices[0].message.content)
    assert done.choices[0].finish_reason == "stop"
    chunks = list(client.chat.completions.create(**options, **OPTIONS, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == done.choices[0].message.content


def test_pydantic_models_are_read_by_the_client(client: OpenAI) -> None:
    from pydantic import BaseModel

    class Point(BaseModel):
        x: int
        label: str

    done = client.chat.completions.parse(
        model="mini",
        messages=[{"role": "user", "content": "A point."}],
        response_format=Point,
        max_tokens=200,
        temperature=0,
    )
    assert isinstance(done.choices[0].message.parsed, Point)


@pytest.mark.parametrize("enabled", [True, False])
def test_choices_seeds_logprobs_and_a_prediction(
    enabled: bool, client: OpenAI, engine: Engine
) -> None:
    expected = '{"name":"html","tags":["b"],"size":1}'
    done = client.completions.create(
        model="mini",
        prompt=[PROMPT, "x = '''"],
        n=2,
        logprobs=2,
        **OPTIONS,
        extra_body={
            "response_format": FORM,
            "prediction": {"type": "content", "content": expected},
            "speculative": {"enabled": enabled},
        },
    )
    grammar = Grammar("json_schema", json.dumps(SCHEMA))
    wanted = [
        engine.generate(prompt, sampling_params(**{**OPTIONS, "seed": seed}), grammar=grammar, k=0)[
            0
        ].text
        for prompt in (PROMPT, "x = '''")
        for seed in (11, derived_seed(11, 1))
    ]
    assert [choice.text for choice in done.choices] == wanted
    assert len(set(wanted)) == 4
    for choice in done.choices:
        assert holds(choice.text)
        assert choice.logprobs is not None
        shown = choice.logprobs
        assert "".join(shown.tokens or []) == choice.text + "<|endoftext|>"
        # Raw: what the grammar took out is not in them.
        ids = engine.tokenizer.encode(PROMPT if choice.index < 2 else "x = '''")
        first = engine.score(ids)[-1].log_softmax(-1)
        (token,) = engine.tokenizer.encode((shown.tokens or [""])[0])
        assert (shown.token_logprobs or [])[0] == pytest.approx(float(first[token]), abs=1e-3)
        assert max(((shown.top_logprobs or [])[0] or {}).values()) == pytest.approx(
            float(first.max()), abs=1e-3
        )


@pytest.mark.parametrize(
    ("asked", "pattern"),
    [
        ({"regex": "[a-f]{3}-[0-9]{1,4}"}, "[a-f]{3}-[0-9]{1,4}"),
        ({"choice": ["yes", "no (not\nreally)", "a|b", "é # ~&-"]},
         r"yes|no \(not\nreally\)|a\|b|é # ~&-"),
        ({"grammar": 'start: "a" digit\ndigit: /[0-9]{1,3}/'}, "a[0-9]{1,3}"),
        ({"json": {"type": "integer", "minimum": 0, "maximum": 500}}, "[0-9]{1,3}"),
        ({"json": '{"enum": ["x"]}'}, '"x"'),
    ],
)  # fmt: skip
def test_patterns_and_grammars(asked: Any, pattern: str, app: Callable[..., Call]) -> None:
    call = app()
    for seed in range(4):
        body = {"model": "mini", "prompt": PROMPT, "structured_outputs": asked, "max_tokens": 60}
        answer = call("POST", "/v1/completions", {**body, "seed": seed, "min_tokens": 30})
        assert answer.status == 200, answer.body
        (choice,) = answer.json["choices"]
        assert choice["finish_reason"] == "stop"
        assert re.fullmatch(pattern, choice["text"], re.DOTALL), choice["text"]


@pytest.mark.parametrize(
    "asked",
    [
        {"structured_outputs": {"json_object": True}},
        {"response_format": {"type": "json_object", "schema": {}}},
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "it"}}},
    ],
)
def test_any_object(asked: Any, app: Callable[..., Call]) -> None:
    call, ended = app(), 0
    for seed in range(3):
        body = {"model": "mini", "prompt": PROMPT, "max_tokens": 50, "seed": seed, **asked}
        (choice,) = call("POST", "/v1/completions", body).json["choices"]
        if choice["finish_reason"] == "stop":
            ended += 1
            assert type(json.loads(choice["text"])) is dict
        assert choice["text"].startswith("{")
    assert ended


@pytest.mark.parametrize("form", ["json_object", "json_schema"])
@pytest.mark.parametrize("path", ["completions", "chat/completions"])
def test_a_schema_right_in_the_format_binds(path: str, form: str, app: Callable[..., Call]) -> None:
    asked = {"prompt": PROMPT} if path == "completions" else {"messages": CHAT}
    body = {
        "model": "mini",
        **asked,
        **OPTIONS,
        "response_format": {"type": form, "schema": SCHEMA},
    }
    (choice,) = app()("POST", f"/v1/{path}", body).json["choices"]
    assert choice["finish_reason"] == "stop"
    assert holds(choice["text"] if path == "completions" else choice["message"]["content"])


def test_special_tokens_are_shown_on_request(app: Callable[..., Call], engine: Engine) -> None:
    token = min(engine.tokenizer.special_ids - engine._intake._eos)
    name = engine.tokenizer.token(token)
    body = {"model": "mini", "messages": CHAT,
            "structured_outputs": {"grammar": f'start: "a" <[{token}]> "b"'}}  # fmt: skip
    texts = []
    for skip in (None, True, False):
        extra = {} if skip is None else {"skip_special_tokens": skip}
        answer = app()("POST", "/v1/chat/completions", {**body, **extra}).json
        texts.append(answer["choices"][0]["message"]["content"])
    assert texts == ["ab", "ab", f"a{name}b"]


def test_every_choice_can_be_chosen(app: Callable[..., Call]) -> None:
    call, texts = app(), ["yes", "no (not\nreally)", "a|b", "é # ~&-", " ", "\\d"]
    for text in texts:
        body = {"model": "mini", "prompt": PROMPT, "structured_outputs": {"choice": [text]}}
        answer = call("POST", "/v1/completions", body)
        assert answer.json["choices"][0]["text"] == text


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"response_format": {"type": "yaml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
         "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a b"}}},
         "response_format"),
        ({"response_format": {**FORM, "schema": SCHEMA}}, "response_format"),
        ({"response_format": {"type": "json_object", "schema": 5}}, "response_format"),
        ({"response_format": {"type": "json_object"}, "ignore_eos": True}, "ignore_eos"),
        ({"response_format": FORM, "structured_outputs": {"regex": "a"}}, "structured_outputs"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "(a"}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "(" * 20_000 + ")" * 20_000}}, "structured_outputs"),
        ({"structured_outputs": {"regex": r"[^\s\S]"}}, "structured_outputs"),
        ({"structured_outputs": {"grammar": "start: nothing"}}, "structured_outputs"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs"),
        ({"structured_outputs": {"json": '{"minimum": NaN}'}}, "structured_outputs"),
        ({"structured_outputs": {"json": {"$ref": "#"}}}, "structured_outputs"),
        ({"structured_outputs": {"json": {"$ref": "http://localhost/x"}}}, "structured_outputs"),
        ({"guided_regex": "a"}, "guided_regex"),
        ({"guided_json": {}}, "guided_json"),
    ],
    ids=lambda v: repr(v)[:60],
)  # fmt: skip
@pytest.mark.parametrize("path", ["completions", "chat/completions"])
def test_what_cannot_be_bound_is_refused(
    path: str, extra: Any, param: str, app: Callable[..., Call]
) -> None:
    body = {"model": "mini", **({"prompt": "a"} if path == "completions" else {"messages": CHAT})}
    answer = app()("POST", f"/v1/{path}", {**body, **extra, "stream": True})
    assert answer.status == 400, answer.body
    error = answer.json["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert "\n" not in error["message"]
    assert len(error["message"]) < 400


@pytest.mark.parametrize(
    "keyword", [{"not": {"const": 1}}, {"uniqueItems": True}, {"type": "objekt"}]
)
def test_a_schema_that_is_not_supported_says_what_of_it(
    keyword: Any, app: Callable[..., Call]
) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "it", "schema": keyword}}
    body = {"model": "mini", "messages": CHAT, "response_format": form}
    error = app()("POST", "/v1/chat/completions", body).json["error"]
    assert error["message"].startswith("response_format: the json schema cannot be used: ")
    assert (next(iter(keyword)) if "type" not in keyword else "objekt") in error["message"]


def test_random_schemas(served: Served) -> None:
    """Each answered valid, or refused; the same answers without speculation."""
    schemas = [random_schema(number) for number in range(15)]
    places = asyncio.Semaphore(8)

    async def ask(client: AsyncOpenAI, number: int, enabled: bool) -> tuple[int, str | None]:
        form = {"name": f"s{number}", "schema": schemas[number]}
        async with places:
            try:
                done = await client.completions.create(
                    model="mini",
                    prompt=PROMPT,
                    max_tokens=300,
                    seed=number,
                    extra_body={
                        "response_format": {"type": "json_schema", "json_schema": form},
                        "speculative": {"enabled": enabled},
                    },
                )
            except openai.BadRequestError as error:
                return error.status_code, error.message
        assert done.choices[0].finish_reason == "stop"
        return 200, done.choices[0].text

    async def both() -> list[list[tuple[int, str | None]]]:
        http = openai.DefaultAsyncHttpxClient(trust_env=False)
        async with AsyncOpenAI(
            base_url=f"{served.url}/v1", api_key="any", max_retries=0, http_client=http
        ) as client:
            numbers = range(len(schemas))
            return [
                await asyncio.gather(*(ask(client, number, enabled) for number in numbers))
                for enabled in (True, False)
            ]

    fast, plain = asyncio.run(both())
    assert fast == plain
    taken = [number for number, (status, _) in enumerate(fast) if status == 200]
    assert len(taken) >= 13
    for number in taken:
        value = json.loads(fast[number][1] or "")
        Draft202012Validator(schemas[number]).validate(value)

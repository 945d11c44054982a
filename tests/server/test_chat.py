"""Chats through the official client, over a socket."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from tests.server.tools import CHAT, Served

from paceline import Engine, sampling_params

# The bundled model completes code; kept from ending its chats at once, it writes something.
LONG: dict[str, Any] = {"max_tokens": 24, "extra_body": {"min_tokens": 24}}
SEEDED: dict[str, Any] = {"temperature": 1.0, "seed": 3, **LONG}


def engine_text(engine: Engine, messages: Any = CHAT, **options: Any) -> str:
    params = sampling_params(**{"max_tokens": 24, "min_tokens": 24, "seed": 3, **options})
    return engine.generate([messages], params)[0].text


def test_a_chat_is_the_engines_text(client: OpenAI, engine: Engine) -> None:
    done = client.chat.completions.create(model="mini", messages=CHAT, **SEEDED)  # type: ignore[arg-type]
    wanted = engine_text(engine, temperature=1.0)
    assert done.choices[0].message.content == wanted
    assert done.choices[0].message.role == "assistant"
    assert done.choices[0].finish_reason == "length"
    chunks = list(
        client.chat.completions.create(model="mini", messages=CHAT, stream=True, **SEEDED)  # type: ignore[call-overload]
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == wanted
    assert [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason] == ["length"]


def test_a_chat_ends_by_itself_or_at_max_completion_tokens(client: OpenAI) -> None:
    ended = client.chat.completions.create(model="mini", messages=CHAT, temperature=0)  # type: ignore[arg-type]
    assert ended.choices[0].finish_reason in ("stop", "length")
    cut = client.chat.completions.create(
        model="mini",
        messages=CHAT,  # type: ignore[arg-type]
        max_completion_tokens=5,
        extra_body={"ignore_eos": True},
    )
    assert cut.usage is not None
    assert cut.usage.completion_tokens == 5
    assert cut.choices[0].finish_reason == "length"


def test_contents_in_parts_and_the_developers_role(client: OpenAI, engine: Engine) -> None:
    parts = [
        {"role": "developer", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}],
        },
    ]
    plain = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    done = client.chat.completions.create(model="mini", messages=parts, temperature=0, **LONG)  # type: ignore[arg-type]
    assert done.choices[0].message.content == engine_text(engine, plain)


def test_choices_and_logprobs(client: OpenAI) -> None:
    done = client.chat.completions.create(
        model="mini",
        messages=CHAT,  # type: ignore[arg-type]
        n=3,
        logprobs=True,
        top_logprobs=2,
        **SEEDED,
    )
    assert len({choice.message.content for choice in done.choices}) == 3
    for choice in done.choices:
        assert choice.logprobs is not None
        content = choice.logprobs.content
        assert content is not None
        assert len(content) == 24
        text = b"".join(bytes(entry.bytes or []) for entry in content).decode(errors="replace")
        assert text == choice.message.content
        assert all(len(entry.top_logprobs) == 2 for entry in content)
        assert all(entry.logprob <= 0 for entry in content)
    only = client.chat.completions.create(model="mini", messages=CHAT, logprobs=True, **SEEDED)  # type: ignore[arg-type]
    assert only.choices[0].logprobs is not None
    assert only.choices[0].logprobs.content is not None
    assert only.choices[0].logprobs.content[0].top_logprobs == []


def test_many_at_once_are_each_as_alone(served: Served, engine: Engine) -> None:
    async def all_of_them() -> list[str | None]:
        http = openai.DefaultAsyncHttpxClient(trust_env=False)
        async with AsyncOpenAI(
            base_url=f"{served.url}/v1", api_key="any", max_retries=0, http_client=http
        ) as client:
            done = await asyncio.gather(
                *(
                    client.chat.completions.create(
                        model="mini",
                        messages=CHAT,  # type: ignore[arg-type]
                        **{**SEEDED, "seed": seed},
                    )
                    for seed in range(7)
                )
            )
        return [item.choices[0].message.content for item in done]

    texts = asyncio.run(all_of_them())
    wanted = [engine_text(engine, temperature=1.0, seed=seed) for seed in range(7)]
    assert texts == wanted


@pytest.mark.parametrize(
    ("body", "error", "param"),
    [
        ({"model": "other"}, openai.NotFoundError, "model"),
        ({"temperature": 3}, openai.BadRequestError, "temperature"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, openai.BadRequestError,
         "tools"),
        ({"response_format": {"type": "yaml"}}, openai.BadRequestError, "response_format"),
        ({"messages": []}, openai.BadRequestError, "messages"),
    ],
)  # fmt: skip
def test_errors_are_the_clients_own_classes(
    body: dict[str, Any], error: type[openai.APIStatusError], param: str, client: OpenAI
) -> None:
    with pytest.raises(error) as raised:
        client.chat.completions.create(**{"model": "mini", "messages": CHAT, **body})
    assert raised.value.param == param
    assert raised.value.type == "invalid_request_error"
    assert raised.value.request_id

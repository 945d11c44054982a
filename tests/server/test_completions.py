"""Completions through the official client, over a socket: the engine's own texts."""

from __future__ import annotations

import math
from typing import Any

import pytest
from openai import OpenAI
from tests.server.tools import PROMPT, until

from paceline import Engine, sampling_params
from paceline.server.asking import derived_seed

SEEDED = {"temperature": 1.0, "seed": 7, "max_tokens": 24}


def engine_text(engine: Engine, prompt: Any = PROMPT, **options: Any) -> str:
    return engine.generate(prompt, sampling_params(**options))[0].text


def streamed(client: OpenAI, **body: Any) -> tuple[str, list[Any]]:
    chunks = list(client.completions.create(model="mini", stream=True, **body))
    return "".join(c.choices[0].text for c in chunks if c.choices), chunks


def test_the_models_are_listed(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["mini", "mini-target"]
    assert client.models.retrieve("mini").owned_by == "paceline"


def test_a_completion_is_the_engines_text(client: OpenAI, engine: Engine) -> None:
    done = client.completions.create(model="mini", prompt=PROMPT, temperature=0, max_tokens=20)
    assert done.choices[0].text == engine_text(engine, max_tokens=20)
    assert done.choices[0].finish_reason == "length"
    assert done.usage is not None
    assert (done.usage.completion_tokens, done.usage.total_tokens) == (20, 26)


def test_defaults_are_openais(client: OpenAI) -> None:
    first, second = (client.completions.create(model="mini", prompt=PROMPT) for _ in range(2))
    assert first.usage is not None
    assert first.usage.completion_tokens <= 16
    assert first.choices[0].text != second.choices[0].text  # a temperature of 1, a seed drawn


def test_a_seed_of_minus_one_is_none(client: OpenAI) -> None:
    first, second = (
        client.completions.create(model="mini", prompt=PROMPT, seed=-1) for _ in range(2)
    )
    assert first.choices[0].text != second.choices[0].text


@pytest.mark.parametrize(
    "options",
    [
        SEEDED,
        SEEDED | {"top_p": 0.8, "presence_penalty": 0.5, "frequency_penalty": -0.3},
        SEEDED | {"extra_body": {"top_k": 20, "min_p": 0.05, "repetition_penalty": 1.2}},
        SEEDED | {"logit_bias": {"11": 3.5, "40": -100}},
        SEEDED | {"extra_body": {"min_tokens": 24, "ignore_eos": True}},
        SEEDED | {"stop": ["return", "\n\n\n"]},
        SEEDED | {"stop": "a", "extra_body": {"stop_token_ids": [11]}},
    ],
    ids=lambda o: ",".join(key for key in o if key not in SEEDED),
)
def test_parameters_reach_the_engine(
    options: dict[str, Any], client: OpenAI, engine: Engine
) -> None:
    own = {**options, **options.get("extra_body", {})}
    own.pop("extra_body", None)
    wanted = engine_text(engine, **own)
    done = client.completions.create(model="mini", prompt=PROMPT, **options)
    assert done.choices[0].text == wanted
    assert streamed(client, prompt=PROMPT, **options)[0] == wanted


def test_a_stream_has_a_chunk_a_round_and_the_usage_last(client: OpenAI) -> None:
    options: dict[str, Any] = {"prompt": PROMPT, "temperature": 0, "max_tokens": 40}
    text, chunks = streamed(
        client, **options, stream_options={"include_usage": True, "include_timing": True}
    )
    done = client.completions.create(model="mini", **options)
    assert text == done.choices[0].text
    assert chunks[-1].choices == []
    assert chunks[-1].usage == done.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    rounds = [chunk.paceline for chunk in chunks[:-1]]
    assert sum(part["tokens"] for part in rounds) == 40
    assert {source for part in rounds for source in part["sources"]} == {"target", "model"}
    assert [part["seconds"] for part in rounds] == sorted(part["seconds"] for part in rounds)


def test_characters_are_never_split(client: OpenAI, engine: Engine) -> None:
    parts = engine.tokenizer.encode("日本語🙂é")  # several tokens a character
    options: dict[str, Any] = {
        "prompt": "# 日本語 🙂",
        "temperature": 2,
        "seed": 5,
        "max_tokens": 60,
        "logit_bias": {str(token): 15 for token in parts},
    }
    done = client.completions.create(model="mini", **options)
    text, chunks = streamed(client, **options)
    assert text == done.choices[0].text
    assert any(ord(character) > 127 for character in text)
    assert len(chunks) > 10


def test_several_prompts_and_choices(client: OpenAI, engine: Engine) -> None:
    ids = engine.tokenizer.encode("import os")
    done = client.completions.create(model="mini", prompt=[PROMPT, "import os"], n=2, **SEEDED)
    assert [choice.index for choice in done.choices] == [0, 1, 2, 3]
    texts = [choice.text for choice in done.choices]
    seeds = [7, derived_seed(7, 1)]
    wanted = [
        engine_text(engine, prompt, **{**SEEDED, "seed": seed})
        for prompt in (PROMPT, "import os")
        for seed in seeds
    ]
    assert texts == wanted
    assert len(set(texts)) == 4
    by_ids = client.completions.create(model="mini", prompt=ids, **SEEDED)
    both = client.completions.create(model="mini", prompt=[ids, ids], **SEEDED)
    assert [c.text for c in by_ids.choices] == [wanted[2]]
    assert [c.text for c in both.choices] == [wanted[2]] * 2
    chunks = client.completions.create(
        model="mini", prompt=[PROMPT, "import os"], n=2, stream=True, **SEEDED
    )
    pieces = ["", "", "", ""]
    for chunk in chunks:
        pieces[chunk.choices[0].index] += chunk.choices[0].text
    assert pieces == wanted


def test_echo_repeats_the_prompt(client: OpenAI, engine: Engine) -> None:
    wanted = PROMPT + engine_text(engine, **SEEDED)
    done = client.completions.create(model="mini", prompt=PROMPT, echo=True, **SEEDED)
    assert done.choices[0].text == wanted
    assert streamed(client, prompt=PROMPT, echo=True, **SEEDED)[0] == wanted


def test_logprobs_of_what_was_drawn_from(client: OpenAI, engine: Engine) -> None:
    options: dict[str, Any] = {"temperature": 0.9, "seed": 5, "max_tokens": 12}
    params = sampling_params(**options, top_k=3, logprobs=5, processed_logprobs=True)
    (own,) = engine.generate(PROMPT, params)
    asked = {"top_k": 3, "logprobs_mode": "processed_logprobs"}
    done = client.completions.create(
        model="mini", prompt=PROMPT, logprobs=5, extra_body=asked, **options
    )
    shown = done.choices[0].logprobs
    assert own.logprobs is not None
    assert shown is not None
    assert shown.top_logprobs is not None
    assert shown.token_logprobs == pytest.approx([item.logprob for item in own.logprobs], abs=1e-4)
    for top in shown.top_logprobs:  # no more than three tokens can come, and one of them does
        assert len(top) <= 3
        assert sum(math.exp(value) for value in top.values()) == pytest.approx(1, abs=1e-4)


def test_logprobs_are_the_models_own(client: OpenAI, engine: Engine) -> None:
    options: dict[str, Any] = SEEDED | {"logit_bias": {"11": 5.0}, "top_p": 0.5}
    (own,) = engine.generate(PROMPT, sampling_params(**options, logprobs=3))
    done = client.completions.create(model="mini", prompt=PROMPT, logprobs=3, **options)
    shown = done.choices[0].logprobs
    assert own.logprobs is not None
    assert shown is not None
    assert shown.token_logprobs == pytest.approx([item.logprob for item in own.logprobs], abs=1e-4)
    assert shown.tokens is not None
    assert "".join(shown.tokens) == done.choices[0].text
    assert shown.text_offset is not None
    assert shown.text_offset[:2] == [0, len(shown.tokens[0])]
    assert shown.top_logprobs is not None
    assert all(3 <= len(top) <= 4 for top in shown.top_logprobs)
    # Raw: the pass of the target alone gives the same numbers, whatever was biased or cut.
    prompt = engine.tokenizer.encode(PROMPT)
    scores = engine.score([*prompt, *own.token_ids]).log_softmax(-1)
    raw = [
        float(scores[len(prompt) - 1 + place, token]) for place, token in enumerate(own.token_ids)
    ]
    assert shown.token_logprobs == pytest.approx(raw, abs=1e-3)
    _, chunks = streamed(client, prompt=PROMPT, logprobs=3, **options)
    offsets = [
        at for c in chunks if c.choices[0].logprobs for at in c.choices[0].logprobs.text_offset
    ]
    assert offsets == shown.text_offset


def test_predicted_text_is_counted(client: OpenAI, engine: Engine) -> None:
    wanted = engine_text(engine, max_tokens=40)
    options: dict[str, Any] = {"prompt": PROMPT, "temperature": 0, "max_tokens": 40}
    done = client.completions.create(
        model="mini",
        **options,
        extra_body={
            "prediction": {"type": "content", "content": [{"type": "text", "text": wanted}]}
        },
    )
    assert done.choices[0].text == wanted
    assert done.usage is not None
    counts = done.usage.completion_tokens_details
    assert counts is not None
    assert counts.accepted_prediction_tokens is not None
    assert counts.accepted_prediction_tokens > 25
    size = len(engine.tokenizer.encode(wanted))
    assert counts.rejected_prediction_tokens == size - counts.accepted_prediction_tokens


@pytest.mark.parametrize("speculative", [{"enabled": False}, {"k": 2}, {"k": 0}, {"enabled": True}])
def test_speculation_changes_no_text(
    speculative: dict[str, Any], client: OpenAI, engine: Engine
) -> None:
    wanted = engine_text(engine, **SEEDED)
    before = engine._driver.ask(engine.stats)  # with the round that ended it
    body = {"speculative": speculative, "priority": 0}
    done = client.completions.create(model="mini", prompt=PROMPT, extra_body=body, **SEEDED)
    assert done.choices[0].text == wanted
    until(lambda: engine.stats().finished > before.finished)
    off = speculative.get("enabled") is False or speculative.get("k") == 0
    assert (engine.stats().drafted == before.drafted) == off

"""What a request does not say of its sampling: the model's makers' values, or OpenAI's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.server.tools import CHAT, PROMPT, Call
from typer.testing import CliRunner

from paceline import CheckpointError, Engine, SamplingParams, sampling_params, suggested_sampling
from paceline.cli import app as cli
from paceline.server import sampling

# As Qwen 3 publishes them, and a penalty.
PUBLISHED = {
    "do_sample": True,
    "eos_token_id": [0],
    "max_new_tokens": 3,
    "repetition_penalty": 1.1,
    "temperature": 0.6,
    "top_k": 20,
    "top_p": 0.95,
}
SUGGESTED = SamplingParams(temperature=0.6, top_k=20, top_p=0.95, repetition_penalty=1.1)
ASKED = {"model": "mini", "seed": 7}


def publish(folder: Path, content: object) -> Path:
    (folder / "generation_config.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The served model has such a file."""
    folder = publish(tmp_path, PUBLISHED)
    monkeypatch.setattr(sampling, "checkpoint_folder", lambda target: folder)


def of_engine(engine: Engine, **options: Any) -> str:
    params = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.1}
    prompt = options.pop("prompt", PROMPT)
    params |= {"seed": 7, "max_tokens": 24}
    return engine.generate(prompt, sampling_params(**params | options))[0].text


def written(call: Call, **body: Any) -> str:
    answer = call("POST", "/v1/completions", {**ASKED, "prompt": PROMPT, "max_tokens": 24, **body})
    assert answer.status == 200, answer.body
    text: str = answer.json["choices"][0]["text"]
    return text


def test_a_file_is_read(tmp_path: Path) -> None:
    assert suggested_sampling(publish(tmp_path, PUBLISHED)) == SUGGESTED
    # What it leaves out is off, whatever it says of sampling at all.
    said = {"do_sample": False, "top_p": None, "top_k": -1}
    left = suggested_sampling(publish(tmp_path, said))
    assert left == SamplingParams(temperature=1.0)


def test_the_bundled_pair_suggests_nothing() -> None:
    for name in ("mini-target", "mini-draft"):
        assert suggested_sampling(name) == SamplingParams(temperature=1.0)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"temperature": "warm"}, "temperature must be a number"),
        ({"temperature": -1}, "temperature must be"),
        ({"top_p": 1.5}, "top_p must be"),
        ({"top_k": 2.5}, "top_k must be a whole number"),
        ({"repetition_penalty": 0}, "repetition_penalty must be a number of at least 1e-30"),
        ([], "no JSON object"),
    ],
)
def test_values_that_cannot_be_are_told_at_the_start(
    values: object, words: str, tmp_path: Path
) -> None:
    """Before a model is opened: the folder has none."""
    publish(tmp_path, values)
    with pytest.raises(CheckpointError, match=words):
        suggested_sampling(tmp_path)
    result = CliRunner().invoke(cli, ["serve", "--target", str(tmp_path)])
    assert result.exit_code == 2
    assert words in result.stderr
    assert "--sampling openai" in result.stderr
    assert result.stderr.count("\n") == 1
    openai = CliRunner().invoke(cli, ["serve", "--target", str(tmp_path), "--sampling", "openai"])
    assert "no config.json" in openai.stderr


@pytest.mark.usefixtures("published")
def test_a_request_that_does_not_say_gets_the_models_own(
    app: Callable[..., Call], engine: Engine
) -> None:
    call = app()
    assert written(call) == of_engine(engine)
    body = {**ASKED, "messages": CHAT, "max_tokens": 24}
    chat = call("POST", "/v1/chat/completions", body).json["choices"][0]["message"]["content"]
    assert chat == of_engine(engine, prompt=CHAT)


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize(
    ("said", "params"),
    [
        ({"temperature": 1.2}, {"temperature": 1.2}),
        ({"temperature": 0}, {"temperature": 0.0}),
        ({"top_k": 0}, {"top_k": 0}),
        ({"top_k": -1, "top_p": 1}, {"top_k": 0, "top_p": 1.0}),
        ({"top_p": 0}, {"top_k": 1, "top_p": 1.0}),
        ({"repetition_penalty": 1}, {"repetition_penalty": 1.0}),
        ({"min_p": 0.2}, {"min_p": 0.2}),
    ],
    ids=repr,
)
def test_what_a_request_says_wins(
    said: dict[str, Any], params: dict[str, Any], app: Callable[..., Call], engine: Engine
) -> None:
    assert written(app(), **said) == of_engine(engine, **params)


@pytest.mark.usefixtures("published")
def test_openais_values_where_the_operator_wants_them(
    app: Callable[..., Call], engine: Engine
) -> None:
    call = app(sampling="openai")
    plain = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}
    assert written(call) == of_engine(engine, **plain)
    assert call("GET", "/v1/paceline").json["sampling"] == {"from": "openai", "min_p": 0.0, **plain}
    told = app()("GET", "/v1/paceline").json["sampling"]
    assert (told["from"], told["temperature"], told["top_k"]) == ("model", 0.6, 20)

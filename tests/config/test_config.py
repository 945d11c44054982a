"""Every value that cannot be is refused in one line that names it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from paceline.config import EngineConfig, check_sampling, load_toml, sampling_params
from paceline.errors import ConfigError, RequestError
from paceline.types import SamplingParams


def test_defaults_and_values() -> None:
    config = EngineConfig.make(target="somewhere", k=0, threads=2, seed=7)
    assert (config.target, config.k, config.threads, config.seed) == ("somewhere", 0, 2, 7)
    assert config.drafter == "none"
    assert config.rule == "match"


def test_a_draft_model_drafts_unless_another_drafter_is_named(tmp_path: Path) -> None:
    file = tmp_path / "paceline.toml"
    file.write_text('target = "a"\ndraft = "b"\n')
    assert load_toml(file).drafter == EngineConfig.make(target="a", draft="b").drafter == "model"
    assert load_toml(file, drafter="ngram").drafter == "ngram"
    file.write_text('target = "a"\ndraft = "b"\ndrafter = "none"\n')
    assert load_toml(file).drafter == "none"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kk": 5}, "did you mean 'k'"),
        ({"drafer": "ngram"}, "did you mean 'drafter'"),
        ({"k": -1}, "k must be a whole number from 0 to 64, not -1"),
        ({"k": 1000}, "k must be a whole number from 0 to 64, not 1000"),
        ({"k": 2.0}, "k must be"),
        ({"k": True}, "k must be"),
        ({"rule": "matches"}, "did you mean 'match'"),
        ({"rule": None}, "rule must be one of match, reject, block"),
        ({"dtype": "bfloat"}, "did you mean 'bfloat16'"),
        ({"dtype": 16}, "dtype must be"),
        ({"device": "gpu"}, "device must be auto, cpu or cuda"),
        ({"device": "meta"}, "device must be auto, cpu or cuda"),
        ({"device": ""}, "device must be"),
        ({"target": ""}, "target must be"),
        ({"target": None}, "no target"),
        ({"draft": 3}, "draft must be"),
        ({"slots": 0}, "slots must be"),
        ({"threads": 0}, "threads must be"),
        ({"max_length": 1}, "max_length must be"),
        ({"prefill_chunk": 0}, "prefill_chunk must be"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_engine_options_that_cannot_be(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        EngineConfig.make(**({"target": "t"} | options))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_toml(tmp_path: Path) -> None:
    file = tmp_path / "engine.toml"
    file.write_text('target = "a"\nk = 3\n')
    assert load_toml(file) == EngineConfig(target="a", k=3)
    assert load_toml(file, k=4).k == 4
    for text, words in [
        ("k = 3", "no target"),
        ('target = "a"\nslot = 1', "did you mean 'slots'"),
        ("target =", "not valid TOML"),
    ]:
        file.write_text(text)
        with pytest.raises(ConfigError, match=words) as caught:
            load_toml(file)
        assert str(file) in str(caught.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_toml(tmp_path / "none.toml")


def test_sampling_values_as_users_write_them() -> None:
    assert sampling_params() == SamplingParams()
    params = sampling_params(
        temperature=1, stop="\n", stop_token_ids=[3], logit_bias={"5": -1, 6: 2.5}, logprobs=0
    )
    assert params.stop == ("\n",)
    assert params.stop_token_ids == (3,)
    assert params.logit_bias == ((5, -1), (6, 2.5))
    assert sampling_params(stop=["a", "b"]).stop == ("a", "b")
    assert sampling_params(stop=None).stop == ()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temprature": 1}, "did you mean 'temperature'"),
        ({"temperature": -1}, "temperature must be a number of at least 0"),
        ({"temperature": math.nan}, "temperature must be"),
        ({"temperature": "hot"}, "temperature must be"),
        ({"temperature": 1e-9}, "temperature must be 0 (greedy)"),
        ({"top_k": -1}, "0 is off"),
        ({"top_p": 0}, "top_p must be above 0"),
        ({"top_p": 1.5}, "top_p must be a number from 0"),
        ({"min_p": 1.5}, "min_p must be"),
        ({"repetition_penalty": 0}, "repetition_penalty must be a number of at least 1e-30"),
        ({"repetition_penalty": 1e-40}, "repetition_penalty must be a number of at least 1e-30"),
        ({"presence_penalty": math.inf}, "presence_penalty must be"),
        ({"temperature": 10**400}, "temperature must be a number of at least 0, not 1000"),
        ({"temperature": 10**5000}, "not a number of thousands of digits"),
        ({"frequency_penalty": -1e31}, "frequency_penalty must lie within ±1e+30, not -1e+31"),
        ({"logit_bias": {4: 1e300}}, "logit_bias of token 4 must lie within ±1e+30, not 1e+300"),
        ({"seed": -1}, "seed must be"),
        ({"seed": 2**63}, "seed must be"),
        ({"max_tokens": 0}, "max_tokens must be"),
        ({"min_tokens": 9, "max_tokens": 3}, "must not exceed"),
        ({"stop": ["a", ""]}, "stop must hold"),
        ({"stop": [3]}, "stop must hold"),
        ({"stop": 3}, "stop must be a list"),
        ({"stop_token_ids": [-2]}, "stop_token_ids"),
        ({"logit_bias": [1]}, "logit_bias must map"),
        ({"logit_bias": {-1: 2}}, "logit_bias"),
        ({"logit_bias": {1: math.nan}}, "logit_bias of token 1"),
        ({"logit_bias": {"9" * 5000: 1}}, "logit_bias: a token id must be a whole number"),
        ({"logit_bias": {5: 1, "5": 2}}, "logit_bias has token 5 twice; give it one number"),
        ({"max_tokens": 10**5000, "min_tokens": 10**5001}, "min_tokens (a number of thousands"),
        ({"ignore_eos": 1}, "ignore_eos must be"),
        ({"logprobs": 21}, "logprobs must be"),
    ],
)
def test_sampling_values_that_cannot_be(options: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError) as caught:
        sampling_params(**options)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_params_made_by_hand_are_checked_too() -> None:
    with pytest.raises(RequestError, match="temperature"):
        check_sampling(SamplingParams(temperature=-1.0))
    for wrong in (5, (1, 2.0, 3), "12"):
        bias: Any = (wrong,)
        with pytest.raises(RequestError, match="logit_bias must map token ids to numbers"):
            check_sampling(SamplingParams(logit_bias=bias))

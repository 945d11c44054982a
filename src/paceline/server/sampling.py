"""How a text is drawn: what the request says, and where it says nothing what the server has for it.

The one place where the two meet. Knows no prompts and no texts.
"""

from __future__ import annotations

from typing import TypeVar

from paceline import (
    MIN_TEMPERATURE,
    CheckpointError,
    ConfigError,
    SamplingParams,
    checkpoint_folder,
    sampling_params,
    suggested_sampling,
)
from paceline.server.settings import SamplingSource
from paceline.server.wire import Generating

_Number = TypeVar("_Number", int, float)
_OPENAI = SamplingParams(temperature=1.0)


def defaults(source: SamplingSource, target: str) -> SamplingParams:
    """The sampling of requests that do not say: the model's own or OpenAI's.

    Raises ConfigError where the model's file has a value that cannot be, CheckpointError where
    there is no such model.
    """
    if source == "openai":
        return _OPENAI
    folder = checkpoint_folder(target)
    try:
        return suggested_sampling(folder)
    except CheckpointError as error:
        raise ConfigError(f"{error}, or serve with --sampling openai") from None


def told(params: SamplingParams, source: SamplingSource) -> dict[str, object]:
    """`params` for clients, with where they are from."""
    return {
        "from": source,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": params.top_k,
        "min_p": params.min_p,
        "repetition_penalty": params.repetition_penalty,
    }


def drawn(
    body: Generating, house: SamplingParams, most: int, logprobs: int | None
) -> SamplingParams:
    """The parameters of a request's texts. house: the defaults. Raises RequestError."""
    temperature = _first(body.temperature, house.temperature)
    top_k, top_p = max(0, _first(body.top_k, house.top_k)), _first(body.top_p, house.top_p)
    if top_p == 0:  # nothing but the most likely token
        top_k, top_p = 1, 1.0
    return sampling_params(
        temperature=temperature if temperature >= MIN_TEMPERATURE else 0.0,  # greedy is meant
        top_k=top_k,
        top_p=top_p,
        min_p=_first(body.min_p, house.min_p),
        repetition_penalty=_first(body.repetition_penalty, house.repetition_penalty),
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias=body.logit_bias,
        max_tokens=most,
        min_tokens=body.min_tokens or 0,
        stop=body.stop,
        stop_token_ids=body.stop_token_ids or (),
        ignore_eos=bool(body.ignore_eos),
        skip_special_tokens=body.skip_special_tokens is not False,
        include_stop_str_in_output=bool(body.include_stop_str_in_output),
        logprobs=logprobs,
        processed_logprobs=body.logprobs_mode == "processed_logprobs",
    )


def _first(said: _Number | None, house: _Number) -> _Number:
    return house if said is None else said

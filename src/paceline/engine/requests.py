"""From what a caller gives to a `Request`: text or chat to token ids, and every check at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias, cast

from paceline.config import check_sampling
from paceline.engine.slots import MAX_BIAS, MAX_STOP_IDS
from paceline.errors import RequestError
from paceline.text import Tokenizer
from paceline.types import Limits, Request, SamplingParams

Messages: TypeAlias = Sequence[Mapping[str, str]]
Prompt: TypeAlias = str | Sequence[int] | Messages


def build_request(
    name: str,
    prompt: Prompt,
    params: SamplingParams,
    prediction: str | Sequence[int] | None,
    tokenizer: Tokenizer,
    limits: Limits,
    eos_ids: frozenset[int],
) -> Request:
    """Make the request `name`. Raises RequestError, one line that says what to do."""
    ids = encode_prompt(prompt, tokenizer)
    if not ids:
        raise RequestError("the prompt is empty: give at least one token of text")
    room = limits.max_length - len(ids)
    if room < 1:
        raise RequestError(
            f"the prompt has {len(ids)} tokens and the context holds {limits.max_length}: shorten "
            "it by at least "
            f"{1 - room}, or open the engine with a larger max_length"
        )
    _check_ids("the prompt", ids, limits.vocab_size)
    expected = tokenizer.encode(prediction) if isinstance(prediction, str) else prediction or ()
    _check_ids("the prediction", expected, limits.vocab_size)
    _check_params(params, limits, eos_ids)
    seed = 0 if params.seed is None else params.seed
    return Request(name, tuple(ids), params, seed, tuple(expected))


def encode_prompt(prompt: Prompt, tokenizer: Tokenizer) -> list[int]:
    """Token ids of text (special tokens added as the tokenizer does), ids, or chat messages."""
    if isinstance(prompt, str):
        return tokenizer.encode(prompt, add_special_tokens=True)
    items = list(prompt)
    if items and isinstance(items[0], Mapping):
        return tokenizer.chat([dict(item) for item in items if isinstance(item, Mapping)])
    if any(isinstance(item, bool) or not isinstance(item, int) for item in items):
        raise RequestError("a prompt is text, a list of token ids or a list of chat messages")
    return [item for item in items if isinstance(item, int)]


def _check_ids(what: str, ids: Sequence[int], vocab_size: int) -> None:
    for token in ids:
        if not 0 <= token < vocab_size:
            raise RequestError(
                f"{what} has token id {token}; the vocabulary holds 0 to {vocab_size - 1}"
            )


def _check_params(params: SamplingParams, limits: Limits, eos_ids: frozenset[int]) -> None:
    check_sampling(params)
    _check_ids("logit_bias", [token for token, _ in params.logit_bias], limits.vocab_size)
    _check_ids("stop_token_ids", params.stop_token_ids, limits.vocab_size)
    if len(params.logit_bias) > MAX_BIAS:
        raise RequestError(f"logit_bias has {len(params.logit_bias)} entries; at most {MAX_BIAS}")
    if len(eos_ids | set(params.stop_token_ids)) > MAX_STOP_IDS:
        raise RequestError(f"too many stop_token_ids; at most {MAX_STOP_IDS - len(eos_ids)}")


def as_prompts(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """Tell one prompt (text, token ids, messages) from a list of prompts."""
    if isinstance(prompts, str):
        return [prompts]
    if not prompts or isinstance(prompts[0], int | Mapping):
        return [cast(Prompt, prompts)]
    return list(cast(Sequence[Prompt], prompts))

"""From what a caller gives to a `Request`: text or chat to token ids, and every check at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias, TypedDict, cast

from paceline.checks import is_whole, shown
from paceline.config import check_sampling
from paceline.engine.slots import MAX_BIAS, MAX_STOP_IDS
from paceline.errors import RequestError
from paceline.text import Tokenizer
from paceline.types import Grammar, Limits, Request, SamplingParams

Messages: TypeAlias = Sequence[Mapping[str, str]]
Prompt: TypeAlias = str | Sequence[int] | Messages


class Asked(TypedDict, total=False):
    """What a request may say besides prompt and sampling; see `Engine.submit`."""

    prediction: str | Sequence[int] | None
    k: int | None
    priority: int
    deadline: float | None
    grammar: Grammar | None


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
    check_ids("the prompt", ids, limits.vocab_size)
    if isinstance(prediction, str):
        # It stands behind the prompt: what a tokenizer puts before a text is not in it.
        expected = tokenizer.encode(prediction, add_special_tokens=False)
    else:
        expected = token_ids(prediction or (), "the prediction is text or a list of token ids")
    check_ids("the prediction", expected, limits.vocab_size)
    _check_shapes(params)
    params = _stop_at_special(params, tokenizer, limits.vocab_size)
    _check_params(params, limits, eos_ids)
    seed = 0 if params.seed is None else params.seed
    return Request(name, tuple(ids), params, seed, tuple(expected))


def encode_prompt(prompt: Prompt, tokenizer: Tokenizer) -> list[int]:
    """Token ids of text (special tokens added as the tokenizer does), ids, or chat messages."""
    if isinstance(prompt, str):
        return tokenizer.encode(prompt, add_special_tokens=True)
    messages = [dict(m) for m in prompt if isinstance(m, Mapping)] if _is_list(prompt) else []
    if messages and len(messages) == len(prompt):
        return tokenizer.chat(messages)
    return token_ids(prompt, "a prompt is text, a list of token ids or a list of chat messages")


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def token_ids(value: object, wanted: str) -> list[int]:
    """`value` as token ids. Raises RequestError with the words `wanted`."""
    ids = list(value) if isinstance(value, Sequence) and _is_list(value) else None
    if ids is None or not all(map(is_whole, ids)):
        raise RequestError(f"{wanted}, not {shown(value)}")
    return ids


def check_ids(what: str, ids: Sequence[int], vocab_size: int) -> None:
    """Raise RequestError for the first of `ids` beyond the vocabulary. what: whose ids they are."""
    for token in ids:
        if not 0 <= token < vocab_size:
            raise RequestError(
                f"{what} has token id {shown(token)}; the vocabulary holds 0 to {vocab_size - 1}"
            )


def _check_shapes(params: object) -> None:
    """The class is frozen but not checked when it is made: it may hold anything."""
    if not isinstance(params, SamplingParams):
        raise RequestError(
            f"params must be SamplingParams, not {shown(params)}; "
            "paceline.sampling_params makes them from keywords"
        )
    for name in ("stop", "stop_token_ids", "logit_bias"):
        value = getattr(params, name)
        if not _is_list(value):
            raise RequestError(
                f"{name} must be a tuple, not {shown(value)}; "
                "paceline.sampling_params takes other forms"
            )


def _stop_at_special(
    params: SamplingParams, tokenizer: Tokenizer, vocab_size: int
) -> SamplingParams:
    """A stop string that is a special token stops at that token, too: the text that stop strings
    are looked for in does not show it, unless the request wants it to."""
    named = [tokenizer.special.get(stop) for stop in params.stop if isinstance(stop, str)]
    ids = [token for token in named if token is not None and token < vocab_size]
    more = tuple(token for token in ids if token not in params.stop_token_ids)
    return replace(params, stop_token_ids=(*params.stop_token_ids, *more)) if more else params


def _check_params(params: SamplingParams, limits: Limits, eos_ids: frozenset[int]) -> None:
    if len(params.logit_bias) > MAX_BIAS:
        raise RequestError(f"logit_bias has {len(params.logit_bias)} entries; at most {MAX_BIAS}")
    check_sampling(params)
    check_ids("logit_bias", [token for token, _ in params.logit_bias], limits.vocab_size)
    check_ids("stop_token_ids", params.stop_token_ids, limits.vocab_size)
    if len(eos_ids | set(params.stop_token_ids)) > MAX_STOP_IDS:
        raise RequestError(f"too many stop_token_ids; at most {MAX_STOP_IDS - len(eos_ids)}")


def as_prompts(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """Tell one prompt (text, token ids, messages) from a list of prompts; an empty list is one of
    no prompts."""
    if not _is_list(prompts) or (prompts and isinstance(prompts[0], int | Mapping)):
        return [cast(Prompt, prompts)]
    return list(cast(Sequence[Prompt], prompts))

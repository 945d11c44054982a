"""From what a request gives to its prompts' token ids: text, ids, or messages by the template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from paceline import Engine
from paceline.server.errors import refused, unsupported
from paceline.server.fill_families import FAMILIES, Filling, filling_of
from paceline.server.tools import described, messages
from paceline.server.wire import ChatBody, CompletionBody, Prompted, Tool


def completion_prompts(body: CompletionBody, engine: Engine) -> list[list[int]]:
    """Token ids of every prompt of a completion, with what stands behind it where `suffix` says."""
    special, filling = body.add_special_tokens is not False, asked_filling(body, engine)
    if filling is None:
        return [_ids(prompt, engine, special) for prompt in given_prompts(body)]
    assert body.suffix is not None
    tokenizer = engine.tokenizer
    encode = (
        tokenizer.encode_on
        if filling.joined
        else partial(tokenizer.encode, add_special_tokens=False)
    )
    behind = [filling.suffix, *encode(body.suffix), filling.middle]
    lead = tokenizer.lead if special else []
    return [
        [*lead, filling.prefix, *_ids(prompt, engine, False), *behind]
        for prompt in given_prompts(body)
    ]


def asked_filling(body: CompletionBody, engine: Engine) -> Filling | None:
    """How to fill in before the suffix, or None where there is none. Raises ApiError."""
    if not body.suffix:
        return None
    if body.echo:
        message = "a prompt with a suffix has marks between its parts: leave echo out"
        raise refused(message, "echo", "invalid_value")
    known, size = engine.tokenizer.token_id, engine.limits.vocab_size

    def token_id(name: str) -> int | None:
        found = known(name)
        return None if found is None or found >= size else found  # more than the model has

    filling = filling_of(token_id)
    if filling is None:
        message = (
            "this model's vocabulary has no marks for filling in that are known here "
            f"({', '.join(FAMILIES)}): leave suffix out, or serve a model that has"
        )
        raise unsupported("suffix", message)
    return filling


def given_prompt(body: Prompted, engine: Engine, house: Mapping[str, object]) -> list[int]:
    """Token ids of the prompt or of the messages: as those of a request for a text with it. house:
    as of a chat."""
    if (body.prompt is None) == (body.messages is None):
        raise refused("give either prompt or messages", "prompt", "invalid_value")
    if body.prompt is not None:
        return _ids(body.prompt, engine, body.add_special_tokens is not False)
    return chat_prompt(body, engine, body.tools, house)


def chat_prompt(
    body: ChatBody | Prompted,
    engine: Engine,
    tools: Sequence[Tool] | None,
    house: Mapping[str, object],
) -> list[int]:
    """Token ids of a chat, by the tokenizer's template. tools: those that it is to show; house: its
    variables where the request does not say."""
    go_on = bool(body.continue_final_message)
    if go_on and body.add_generation_prompt:
        message = (
            "either the last message goes on or an answer begins: "
            "leave add_generation_prompt or continue_final_message out"
        )
        raise refused(message, "continue_final_message", "invalid_value")
    assert body.messages is not None
    options = dict(house)
    if body.reasoning_effort is not None:  # a variable of those templates that know it
        options["reasoning_effort"] = body.reasoning_effort
    options |= body.chat_template_kwargs or {}
    return engine.tokenizer.chat(
        messages(body.messages),
        described(tools) if tools else None,
        options,
        answer=body.add_generation_prompt is not False,
        go_on=go_on,
        add_special_tokens=bool(body.add_special_tokens),
    )


def given_prompts(body: CompletionBody) -> list[str | list[int]]:
    """One prompt or several, as text or token ids, to a list of prompts."""
    if isinstance(body.prompt, str):
        return [body.prompt]
    ids = [item for item in body.prompt if isinstance(item, int)]
    if ids:
        return [ids]
    return [item for item in body.prompt if not isinstance(item, int)]


def _ids(prompt: str | list[int], engine: Engine, special: bool) -> list[int]:
    return engine.tokenizer.encode(prompt, special) if isinstance(prompt, str) else prompt

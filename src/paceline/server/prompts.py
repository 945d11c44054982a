"""From what a request gives to its prompts' token ids: text, ids, or messages by the template."""

from __future__ import annotations

from collections.abc import Sequence

from paceline import Engine
from paceline.server.errors import refused
from paceline.server.tools import described, messages
from paceline.server.wire import ChatBody, CompletionBody, Tool, WarmBody


def completion_prompts(body: CompletionBody, engine: Engine) -> list[list[int]]:
    """Token ids of every prompt of a completion."""
    special = body.add_special_tokens is not False
    return [_ids(prompt, engine, special) for prompt in given_prompts(body)]


def warm_prompt(body: WarmBody, engine: Engine) -> list[int]:
    """Token ids of what is to be read ahead: as those of the request that will come."""
    if (body.prompt is None) == (body.messages is None):
        raise refused("give either prompt or messages", "prompt", "invalid_value")
    if body.prompt is not None:
        return _ids(body.prompt, engine, body.add_special_tokens is not False)
    return chat_prompt(body, engine, body.tools)


def chat_prompt(
    body: ChatBody | WarmBody, engine: Engine, tools: Sequence[Tool] | None
) -> list[int]:
    """Token ids of a chat, by the tokenizer's template. tools: those that it is to show."""
    go_on = bool(body.continue_final_message)
    if go_on and body.add_generation_prompt:
        message = (
            "either the last message goes on or an answer begins: "
            "leave add_generation_prompt or continue_final_message out"
        )
        raise refused(message, "continue_final_message", "invalid_value")
    assert body.messages is not None
    options = body.chat_template_kwargs or {}
    if body.reasoning_effort is not None:  # a variable of those templates that know it
        options = {"reasoning_effort": body.reasoning_effort} | options
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

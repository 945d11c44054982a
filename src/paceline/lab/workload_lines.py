"""One line of a workload, in each format there is: what it asks for, and what is wrong with it.

Knows no files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class Wishes:
    """What an item says of its own sampling; None leaves it to the run."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """One item. Either `prompt`, a text to continue as it stands, or `context` (messages before the
    first turn) and `turns` (what the user says, one answer after each). at: seconds from the
    beginning of a recorded log."""

    id: str
    category: str = ""
    prompt: str | None = None
    context: tuple[Message, ...] = ()
    turns: tuple[str, ...] = ()
    wishes: Wishes = field(default_factory=Wishes)
    at: float | None = None

    @property
    def opening(self) -> str | list[Message]:
        """What its first text is asked for with: a text, or messages."""
        if self.prompt is not None:
            return self.prompt
        return [*self.context, {"role": "user", "content": self.turns[0]}]

    @property
    def length(self) -> int:
        """Texts that it asks for."""
        return 1 if self.prompt is not None else len(self.turns)


class BadLine(ValueError):
    """What is wrong with one line."""


def read_line(line: str, format: str, number: str) -> Conversation:
    """What a line asks for. format: one of `READERS`; number: its name where it has none. Raises
    BadLine."""
    return READERS[format](_object(line), number)


def _object(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise BadLine(f"not JSON ({error})") from None
    if not isinstance(row, dict):
        raise BadLine("not a JSON object")
    return row


def _prompt_row(row: Mapping[str, Any], number: str) -> Conversation:
    for name in ("prompt", "text"):
        if name in row:
            prompt = _text(row, name)
            return Conversation(_id(row, number), _category(row), prompt, wishes=_wishes(row))
    if "messages" in row:  # a file may have both
        return _chat_row(row, number)
    raise BadLine('no "prompt"')


def _chat_row(row: Mapping[str, Any], number: str) -> Conversation:
    if "messages" not in row and ("prompt" in row or "text" in row):
        return _prompt_row(row, number)
    context, turns = _messages(row.get("messages"))
    return Conversation(
        _id(row, number), _category(row), context=context, turns=turns, wishes=_wishes(row)
    )


def _spec_bench_row(row: Mapping[str, Any], number: str) -> Conversation:
    turns = row.get("turns")
    if not isinstance(turns, list) or not turns or not all(isinstance(t, str) and t for t in turns):
        raise BadLine('"turns" must be a list of texts')
    return Conversation(
        str(row.get("question_id", number)), _category(row), turns=tuple(turns), wishes=_wishes(row)
    )


def _request_row(row: Mapping[str, Any], number: str) -> Conversation:
    """A request's body by itself, or under "body" beside the time it came at."""
    body = row.get("body", row)
    if not isinstance(body, dict):
        raise BadLine('"body" must be an object')
    at = next((_time(row[k]) for k in ("at", "time", "timestamp", "arrival") if k in row), None)
    name, category = _id(row, number), _category(row)
    if "messages" in body:
        context, turns = _messages(body["messages"])
        return Conversation(
            name, category, context=context, turns=turns[-1:], wishes=_wishes(body), at=at
        )
    prompt = _text(body, "prompt")
    return Conversation(name, category, prompt, wishes=_wishes(body), at=at)


def _messages(value: object) -> tuple[tuple[Message, ...], tuple[str, ...]]:
    """Messages as what stands before the last user's, and that one.

    A recorded answer of the assistant stays in the context: the conversation is asked to go on from
    where it was.
    """
    if not isinstance(value, list) or not value:
        raise BadLine('"messages" must be a list of messages')
    taken: list[Message] = []
    for message in value:
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, list):
            parts = [p.get("text") if isinstance(p, dict) else None for p in content]
            texts = [part for part in parts if isinstance(part, str)]
            content = "".join(texts) if len(texts) == len(parts) else None
        if not isinstance(content, str) or not isinstance(message.get("role"), str):
            raise BadLine('a message needs "role" and "content", both text')
        taken.append({"role": message["role"], "content": content})
    if taken[-1]["role"] != "user":
        raise BadLine("the last message must be the user's")
    return tuple(taken[:-1]), (taken[-1]["content"],)


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value:
        raise BadLine(f'"{name}" must be a text of at least one character')
    return value


def _id(row: Mapping[str, Any], number: str) -> str:
    value = row.get("id", row.get("request_id", number))
    return str(value)


def _category(row: Mapping[str, Any]) -> str:
    value = row.get("category", "")
    if not isinstance(value, str):
        raise BadLine('"category" must be a text')
    return value


def _wishes(row: Mapping[str, Any]) -> Wishes:
    """The sampling that a line asks for. "max_completion_tokens" is a newer "max_tokens"."""
    numbers: dict[str, Any] = {}
    for name, kinds in (
        ("temperature", (int, float)),
        ("top_p", (int, float)),
        ("min_p", (int, float)),
        ("top_k", (int,)),
        ("seed", (int,)),
        ("max_completion_tokens", (int,)),
        ("max_tokens", (int,)),
    ):
        value = row.get(name)
        if value is None:
            continue
        if type(value) not in kinds:
            raise BadLine(f'"{name}" must be a number, not {value!r}')
        if name.startswith("max_") and value < 1:
            raise BadLine(f'"{name}" must be at least 1')
        key = "max_tokens" if name.startswith("max_") else name
        numbers[key] = float(value) if float in kinds else value
    stop = row.get("stop")
    if isinstance(stop, str):
        stop = [stop]
    if stop is not None and (
        not isinstance(stop, list) or not all(isinstance(s, str) and s for s in stop)
    ):
        raise BadLine('"stop" must be a text or a list of texts')
    return Wishes(**numbers, stop=None if stop is None else tuple(stop))


def _time(value: object) -> float:
    """Seconds, or a date and time as ISO 8601 writes them."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, str):
        try:
            return datetime.fromisoformat(value).timestamp()
        except ValueError:
            pass
    raise BadLine(f"a time must be seconds or ISO 8601, not {value!r}")


READERS: dict[str, Callable[[Mapping[str, Any], str], Conversation]] = {
    "jsonl": _prompt_row,
    "chat": _chat_row,
    "spec-bench": _spec_bench_row,
    "requests": _request_row,
}

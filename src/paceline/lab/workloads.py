"""Workloads: which texts are asked for, from a file of one of several formats.

A workload is a list of conversations, each of one or more turns that a user takes; what comes in
between is the model's own. A line that cannot be read is told with its number and left out, or,
where that is asked for, refused. Knows no contestant.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from paceline import ConfigError
from paceline.errors import did_you_mean
from paceline.files import read_text

BUILT_IN = "mini"
FORMATS = ("text", "jsonl", "chat", "spec-bench", "requests")
# Of the built-in prompts: the next thing at the left margin, so what was begun is finished.
_CODE_STOPS = ("\ndef ", "\nclass ", "\n@", "\nif __name__")

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


@dataclass(frozen=True, slots=True)
class Workload:
    """name, format: for reports; skipped: what was wrong with lines that were left out."""

    name: str
    format: str
    items: tuple[Conversation, ...]
    skipped: tuple[str, ...] = ()

    @property
    def texts(self) -> int:
        return sum(item.length for item in self.items)

    @property
    def fingerprint(self) -> str:
        """Of everything in it: two runs with the same one ask for the same texts."""
        return hashlib.sha256(repr(self.items).encode()).hexdigest()[:16]


class _Bad(ValueError):
    """What is wrong with one line."""


def load(
    source: str, format: str = "auto", limit: int | None = None, seed: int = 0, strict: bool = False
) -> Workload:
    """Read a workload.

    source: `mini`, a file, or a folder with one prompt a file. format: one of FORMATS, or auto, by
    what the file looks like. limit: draw so many conversations, by `seed`, the same share of every
    category; they keep their order. strict: a bad line is an error. Raises ConfigError.
    """
    if format not in ("auto", *FORMATS):
        raise ConfigError(f"unknown workload format {format!r}{did_you_mean(format, FORMATS)}")
    path, skipped = Path(source), list[str]()
    if source == BUILT_IN and not path.exists():
        format, items = "jsonl", _built_in()
    elif path.is_dir():
        format, items = "text", _folder(path)
    else:
        format, items = _file(path, format, skipped)
    if skipped and strict:
        more = f" and {len(skipped) - 1} more" if len(skipped) > 1 else ""
        raise ConfigError(f"{skipped[0]}{more}; correct it, or leave --strict out to skip it")
    items = list(_unique(items))
    if not items:
        why = f"; {skipped[0]}" if skipped else ""
        raise ConfigError(f"{source}: no prompt that could be used{why}")
    if limit is not None and limit < len(items):
        items = _draw(items, limit, seed)
    return Workload(path.name, format, tuple(items), tuple(skipped))


def _built_in() -> list[Conversation]:
    text = (files("paceline") / "assets" / "prompts.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    wishes = Wishes(stop=_CODE_STOPS)
    return [Conversation(row["id"], "code", prompt=row["prompt"], wishes=wishes) for row in rows]


def _folder(path: Path) -> list[Conversation]:
    return [
        Conversation(file.name, prompt=text)
        for file in sorted(path.iterdir())
        if file.is_file() and not file.name.startswith(".") and (text := _read(file))
    ]


def _read(path: Path) -> str:
    return read_text(path, encoding="utf-8-sig")  # an editor's mark at the beginning is no text


def _file(path: Path, format: str, skipped: list[str]) -> tuple[str, list[Conversation]]:
    lines = [(n, line) for n, line in enumerate(_read(path).split("\n"), 1) if line.strip()]
    if format == "auto":
        format = _guess(path, lines)
    if format == "text":
        return format, [Conversation(str(n), prompt=line) for n, line in lines]
    reader, items = _READERS[format], list[Conversation]()
    for number, line in lines:
        try:
            items.append(reader(_object(line), str(number)))
        except _Bad as error:
            skipped.append(f"{path.name}, line {number}: {error}")
    if format == "requests":
        items = _from_start(items)
    return format, items


def _guess(path: Path, lines: list[tuple[int, str]]) -> str:
    """The format by the first line that is an object."""
    for _, line in lines[:20]:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if not isinstance(row, dict):
            continue
        if "turns" in row:
            return "spec-bench"
        body = row.get("body", row)
        if isinstance(body, dict) and ("model" in body or "body" in row):
            return "requests"
        return "chat" if "messages" in row else "jsonl"
    return "jsonl" if path.suffix in (".jsonl", ".ndjson") else "text"


def _object(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise _Bad(f"not JSON ({error})") from None
    if not isinstance(row, dict):
        raise _Bad("not a JSON object")
    return row


# --- one line of each format -----------------------------------------------------------------


def _prompt_row(row: Mapping[str, Any], number: str) -> Conversation:
    for name in ("prompt", "text"):
        if name in row:
            prompt = _text(row, name)
            return Conversation(_id(row, number), _category(row), prompt, wishes=_wishes(row))
    if "messages" in row:  # a file may have both
        return _chat_row(row, number)
    raise _Bad('no "prompt"')


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
        raise _Bad('"turns" must be a list of texts')
    return Conversation(
        str(row.get("question_id", number)), _category(row), turns=tuple(turns), wishes=_wishes(row)
    )


def _request_row(row: Mapping[str, Any], number: str) -> Conversation:
    """A request's body by itself, or under "body" beside the time it came at."""
    body = row.get("body", row)
    if not isinstance(body, dict):
        raise _Bad('"body" must be an object')
    at = next((_time(row[k]) for k in ("at", "time", "timestamp", "arrival") if k in row), None)
    name, category = _id(row, number), _category(row)
    if "messages" in body:
        context, turns = _messages(body["messages"])
        return Conversation(
            name, category, context=context, turns=turns[-1:], wishes=_wishes(body), at=at
        )
    prompt = _text(body, "prompt")
    return Conversation(name, category, prompt, wishes=_wishes(body), at=at)


_READERS: dict[str, Callable[[Mapping[str, Any], str], Conversation]] = {
    "jsonl": _prompt_row,
    "chat": _chat_row,
    "spec-bench": _spec_bench_row,
    "requests": _request_row,
}


def _messages(value: object) -> tuple[tuple[Message, ...], tuple[str, ...]]:
    """Messages as what stands before the last user's, and that one.

    A recorded answer of the assistant stays in the context: the conversation is asked to go on from
    where it was.
    """
    if not isinstance(value, list) or not value:
        raise _Bad('"messages" must be a list of messages')
    taken: list[Message] = []
    for message in value:
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, list):
            parts = [p.get("text") if isinstance(p, dict) else None for p in content]
            texts = [part for part in parts if isinstance(part, str)]
            content = "".join(texts) if len(texts) == len(parts) else None
        if not isinstance(content, str) or not isinstance(message.get("role"), str):
            raise _Bad('a message needs "role" and "content", both text')
        taken.append({"role": message["role"], "content": content})
    if taken[-1]["role"] != "user":
        raise _Bad("the last message must be the user's")
    return tuple(taken[:-1]), (taken[-1]["content"],)


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value:
        raise _Bad(f'"{name}" must be a text of at least one character')
    return value


def _id(row: Mapping[str, Any], number: str) -> str:
    value = row.get("id", row.get("request_id", number))
    return str(value)


def _category(row: Mapping[str, Any]) -> str:
    value = row.get("category", "")
    if not isinstance(value, str):
        raise _Bad('"category" must be a text')
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
            raise _Bad(f'"{name}" must be a number, not {value!r}')
        if name.startswith("max_") and value < 1:
            raise _Bad(f'"{name}" must be at least 1')
        key = "max_tokens" if name.startswith("max_") else name
        numbers[key] = float(value) if float in kinds else value
    stop = row.get("stop")
    if isinstance(stop, str):
        stop = [stop]
    if stop is not None and (
        not isinstance(stop, list) or not all(isinstance(s, str) and s for s in stop)
    ):
        raise _Bad('"stop" must be a text or a list of texts')
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
    raise _Bad(f"a time must be seconds or ISO 8601, not {value!r}")


def _from_start(items: list[Conversation]) -> list[Conversation]:
    """In order of their times, counted from the first one's."""
    times = [item.at for item in items if item.at is not None]
    if not times:
        return items
    first = min(times)
    timed = [item if item.at is None else replace(item, at=item.at - first) for item in items]
    return sorted(timed, key=lambda item: (item.at is None, item.at or 0.0))


def _unique(items: list[Conversation]) -> Iterator[Conversation]:
    """Give items that share a name with an earlier one a name of their own."""
    seen: dict[str, int] = defaultdict(int)
    for item in items:
        seen[item.id] += 1
        yield item if seen[item.id] == 1 else replace(item, id=f"{item.id}#{seen[item.id]}")


def _draw(items: list[Conversation], limit: int, seed: int) -> list[Conversation]:
    """`limit` of the items, category by category in turn, in their own order."""
    draw = random.Random(seed)
    groups: dict[str, list[int]] = defaultdict(list)
    for place, item in enumerate(items):
        groups[item.category].append(place)
    for places in groups.values():
        draw.shuffle(places)
    chosen: list[int] = []
    while len(chosen) < limit:
        for places in groups.values():
            if places and len(chosen) < limit:
                chosen.append(places.pop())
    return [items[place] for place in sorted(chosen)]

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
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

from paceline import ConfigError
from paceline.errors import did_you_mean
from paceline.files import read_text
from paceline.lab.workload_lines import READERS, BadLine, Conversation, Wishes, read_line

BUILT_IN = "mini"
FORMATS = ("text", *READERS)
# Of the built-in prompts: the next thing at the left margin, so what was begun is finished.
_CODE_STOPS = ("\ndef ", "\nclass ", "\n@", "\nif __name__")


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
    items = list[Conversation]()
    for number, line in lines:
        try:
            items.append(read_line(line, format, str(number)))
        except BadLine as error:
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

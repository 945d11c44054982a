"""The families' formats of tool calls as data, found by the chat template, and as grammars.

What reads them is in `tool_formats`. Pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spelling:
    """How calls are written: what stands before the first, between two, behind the last; a call's
    beginning (with {name}) and end, with its arguments between."""

    before: str
    between: str
    behind: str
    begin: str
    end: str
    several: bool = True


@dataclass(frozen=True, slots=True)
class Family:
    """One format. marks: what its chat templates have in them; tokens: of its marks, those that
    may be tokens of their own; id_size: characters of a call's id, where templates mind."""

    spelling: Spelling
    marks: tuple[str, ...]
    tokens: tuple[str, ...] = ()
    id_size: int | None = None


_JSON = '{{"name": "{name}", "%s": '
FAMILIES: dict[str, Family] = {
    "hermes": Family(
        Spelling("", "\n", "", "<tool_call>\n" + _JSON % "arguments", "}\n</tool_call>"),
        ("<tool_call>", "</tool_call>"),
        ("<tool_call>", "</tool_call>"),
    ),
    "mistral": Family(
        Spelling("[TOOL_CALLS][", ", ", "]", _JSON % "arguments", "}"),
        ("[TOOL_CALLS]",),
        ("[TOOL_CALLS]", "[ARGS]"),
        id_size=9,
    ),
    "llama": Family(
        # Its chat templates refuse a message with more than one.
        Spelling("", "", "", _JSON % "parameters", "}", several=False),
        ('"parameters": ', "ipython"),
        ("<|python_tag|>",),
    ),
}
_NO_ARGUMENTS: dict[str, object] = {"type": "object", "additionalProperties": False}
# As `json.dumps` writes, which is what the models have seen.
_SPACED = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_MISTRAL_NAMED = Spelling("", "", "", "[TOOL_CALLS]{name}[ARGS]", "")


def family_of(template: str) -> str | None:
    """The format that a chat template has its model write, or None where it is none of these."""
    if "<function=" in template:  # a call in XML between the same marks
        return None
    for name, family in FAMILIES.items():
        if all(mark in template for mark in family.marks):
            return name
    return None


def calls_grammar(
    family: str,
    template: str,
    functions: Mapping[str, Mapping[str, object] | None],
    several: bool,
    special: Mapping[str, int],
    instead: str | None = None,
) -> str:
    """The Lark grammar of one call, or one and more, of these functions in a family's format.

    functions: the JSON schema of each one's arguments, None for no arguments. template: the chat
    template, which says which of a family's forms it is. special: ids of special tokens by name.
    instead: the right side of a Lark rule for a text that may come in place of calls.
    """
    spelling = FAMILIES[family].spelling
    if family == "mistral" and "[ARGS]" in template:
        spelling = _MISTRAL_NAMED
    marks = [mark for mark in FAMILIES[family].tokens if mark in special]

    def spelled(text: str) -> str:
        pieces = re.split(f"({'|'.join(map(re.escape, marks))})", text) if marks else [text]
        return " ".join(
            f"<[{special[piece]}]>" if piece in marks else json.dumps(piece)
            for piece in pieces
            if piece
        )

    rules = []
    for number, (name, schema) in enumerate(functions.items()):
        begin, bound = spelled(spelling.begin.format(name=name)), dict(schema or _NO_ARGUMENTS)
        bound["x-guidance"] = _SPACED
        rules.append(f"f{number}: {begin} %json {json.dumps(bound)} {spelled(spelling.end)}")
    more = f"({spelled(spelling.between)} call)*" if several and spelling.several else ""
    calls = f"calls: {spelled(spelling.before)} call {more} {spelled(spelling.behind)}"
    start = "start: calls" if instead is None else f"start: calls | instead\ninstead: {instead}"
    choice = "call: " + " | ".join(f"f{number}" for number in range(len(rules)))
    return "\n".join([start, calls, choice, *rules, ""])

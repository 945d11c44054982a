"""Tool calls as the model families write them, read from a text as it comes.

Pure. A family's reader is a coroutine that is sent one character after the other and None at the
end, so what it makes of a text cannot depend on how the text was split. What turns out to be no
call is content, word for word, with its marks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

Step: TypeAlias = Generator[None, str | None, str | None]
"""A coroutine over characters; what it returns is the first that it did not take."""

_SPACE = " \t\r\n"
_CLOSING = {"{": "}", "[": "]"}
_KEYS = ("name", "arguments", "parameters", "type", "id")  # of a call's object


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of an answer. call: text is the function's name; arguments: text goes on with those
    of the call `index`, counted from 0."""

    kind: Literal["reasoning", "content", "call", "arguments"]
    text: str
    index: int = 0


class _NoCall(Exception):
    """What looked like a call is none; `next` was read and not taken."""

    def __init__(self, following: str | None) -> None:
        super().__init__()
        self.next = following


class _Out:
    """What has been read: parts, and the text that may yet turn out to be no call."""

    def __init__(self, most: int | None) -> None:
        self._most = most
        self._space = ""  # behind content: shown only if more content follows
        self.parts: list[Part] = []
        self.calls = 0
        self.raw: str | None = None

    def content(self, text: str) -> None:
        shown = (self._space + text).rstrip()
        self._space = (self._space + text)[len(shown) :]
        self._add("content", shown, 0)

    def call(self, name: str) -> None:
        self.raw, self._space = None, ""
        self._add("call", name, self.calls)
        self.calls += 1

    def arguments(self, text: str) -> None:
        self._add("arguments", text, self.calls - 1)

    def give_up(self, following: str | None) -> None:
        """What is held is content, but for the character that was not taken."""
        if self.raw is not None:
            self.content(self.raw if following is None else self.raw[: -len(following)])
            self.raw = None

    def end(self) -> None:
        if not self.calls:
            self._add("content", self._space, 0)

    def _add(self, kind: Literal["content", "call", "arguments"], text: str, index: int) -> None:
        if not text or (kind != "content" and self._most is not None and index >= self._most):
            return
        last = self.parts[-1] if self.parts else None
        if last is not None and kind != "call" and (last.kind, last.index) == (kind, index):
            self.parts[-1] = Part(kind, last.text + text, index)
        else:
            self.parts.append(Part(kind, text, index))


class ToolReader:
    """Reads one text for tool calls in a family's format."""

    def __init__(self, family: str, names: Sequence[str], most: int | None = None) -> None:
        """names: of the functions there are; most: calls to take, further ones are dropped."""
        self._out = _Out(most)
        self._steps = READERS[family](self._out, frozenset(names))
        next(self._steps)

    def feed(self, text: str) -> list[Part]:
        """What `text` adds."""
        for character in text:
            self._send(character)
        return self._taken()

    def end(self) -> list[Part]:
        """What is left once the text is over."""
        self._send(None)
        self._out.end()
        return self._taken()

    def _send(self, character: str | None) -> None:
        if self._out.raw is not None and character is not None:
            self._out.raw += character
        try:
            self._steps.send(character)
        except StopIteration:
            assert character is None, "a reader goes on to the end of its text"

    def _taken(self) -> list[Part]:
        parts, self._out.parts = self._out.parts, []
        return parts


# --- pieces of every format ---


def _space(c: str | None) -> Step:
    while c is not None and c in _SPACE:
        c = yield
    return c


def _until(c: str | None, marks: tuple[str, ...], take: Callable[[str], None]) -> Step:
    """Hand the text to `take` up to the first of `marks`; returns that mark, or None at the end."""
    held = ""
    while c is not None:
        held += c
        if held in marks:
            return held
        while held and not any(mark.startswith(held) for mark in marks):
            take(held[0])
            held = held[1:]
        c = yield
    take(held)
    return None


def _value(c: str | None, take: Callable[[str], None]) -> Step:
    """Hand one JSON value to `take`. Raises _NoCall where brackets do not match, or at the end."""
    open_: list[str] = []
    quoted = escaped = False
    if c is None or c in ",:}]":
        raise _NoCall(c)
    while c is not None:
        if not open_ and not quoted and c in ",}]" + _SPACE:
            return c  # behind a number or a word
        take(c)
        if quoted:
            quoted = escaped or c != '"'
            escaped = not escaped and c == "\\"
            if not quoted and not open_:
                return (yield)
        elif c == '"':
            quoted = True
        elif c in _CLOSING:
            open_.append(_CLOSING[c])
        elif c in "}]":
            following = yield
            if open_.pop() != c:
                raise _NoCall(following)
            if not open_:
                return following
            c = following
            continue
        c = yield
    raise _NoCall(None)


def _object(out: _Out, c: str | None, names: frozenset[str] | None) -> Step:
    """One call as a JSON object of a name and its arguments, in any order. names: those that
    count; None: any. Raises _NoCall."""
    named, waiting, given = False, list[str](), False

    def take(text: str) -> None:
        if named:
            out.arguments(text)
        else:
            waiting.append(text)

    if out.raw is None:
        out.raw = c or ""
    if c != "{":
        raise _NoCall(c)
    c = yield from _space((yield))
    while c == '"':
        spelled: list[str] = []
        c = yield from _space((yield from _value(c, spelled.append)))
        key = _text_of(spelled)
        if c != ":" or (names is not None and key not in _KEYS):
            raise _NoCall(c)
        c = yield from _space((yield))
        value: list[str] = []
        if key == "name":
            c = yield from _value(c, value.append)
            name = _text_of(value)
            if not name or (names is not None and name not in names) or named:
                raise _NoCall(c)
            out.call(name)
            named = True
            out.arguments("".join(waiting))
        elif key in ("arguments", "parameters") and not given:
            given = True
            if c is not None and c in _CLOSING:
                c = yield from _value(c, take)
            else:  # JSON inside a text, or null
                c = yield from _value(c, value.append)
                inner = "" if value == list("null") else _text_of(value)
                take("".join(value) if inner is None else inner or "{}")
        else:
            c = yield from _value(c, value.append)
        c = yield from _space(c)
        if c == ",":
            c = yield from _space((yield))
    if c != "}" or not named:
        raise _NoCall(c)
    if not given:
        out.arguments("{}")
    return (yield)


def _nothing(text: str) -> None:
    """Takes what is not shown."""


def _text_of(spelled: list[str]) -> str | None:
    """What a JSON text says; None where it is none, or no text that can be sent: half a pair."""
    try:
        value = json.loads("".join(spelled), strict=False)
        str(value).encode()
    except ValueError:
        return None
    return value if isinstance(value, str) else None


# --- the families ---


def _hermes(out: _Out, names: frozenset[str]) -> Step:
    """`<tool_call>{"name": …, "arguments": {…}}</tool_call>`, any number, content around."""
    begin, end = "<tool_call>", "</tool_call>"
    c, mark = (yield), None
    while True:
        if mark != begin:
            mark = yield from _until(c, (begin,), out.content)
        if mark is None:
            return None
        out.raw = mark
        try:
            c = yield from _object(out, (yield from _space((yield))), None)
        except _NoCall as error:
            c = error.next
            if out.raw is not None:
                out.give_up(c)
                mark = None
                continue
        # Between a call and its end mark nothing is meant; a forgotten one loses no other call.
        mark = yield from _until(c, (end, begin), _nothing)
        if mark == end:
            c = yield


def _llama(out: _Out, names: frozenset[str]) -> Step:
    """`{"name": …, "parameters": {…}}` from the beginning on, or behind `<|python_tag|>`; several
    with `;` between. Only the name of a function there is tells a call from other JSON."""
    tag = "<|python_tag|>"
    out.raw = ""
    c = yield from _space((yield))
    if c != "{":
        out.give_up(c)
        mark = yield from _until(c, (tag,), out.content)
        if mark is None:
            return None
        out.raw = mark
        c = yield from _space((yield))
    while True:
        try:
            c = yield from _object(out, c, names)
        except _NoCall as error:
            out.give_up(error.next)
            c = error.next
            break
        out.raw = c or ""
        while c is not None and c in _SPACE + ";":
            c = yield
        if c != "{":
            out.give_up(c)
            break
    return (yield from _until(c, (), out.content))


def _mistral(out: _Out, names: frozenset[str]) -> Step:
    """`[TOOL_CALLS][{"name": …, "arguments": {…}}, …]`, or `[TOOL_CALLS]name[ARGS]{…}` each."""
    c = yield
    while True:
        mark = yield from _until(c, ("[TOOL_CALLS]",), out.content)
        if mark is None:
            return None
        out.raw = mark
        try:
            c = yield from _space((yield))
            c = yield from (_listed(out) if c == "[" else _named(out, c))
        except _NoCall as error:
            c = error.next
        out.give_up(c)


def _listed(out: _Out) -> Step:
    c = yield from _space((yield))
    while c == "{":
        c = yield from _space((yield from _object(out, c, None)))
        if c == ",":
            c = yield from _space((yield))
    return (yield) if c == "]" else c


def _named(out: _Out, c: str | None) -> Step:
    name: list[str] = []
    mark = yield from _until(c, ("[ARGS]", "[CALL_ID]", "{"), name.append)
    if mark == "[CALL_ID]":
        mark = yield from _until((yield), ("[ARGS]", "{"), _nothing)
    called = "".join(name).strip()
    c = mark if mark in ("{", None) else (yield from _space((yield)))
    if c != "{" or not called or any(letter in _SPACE + '"[]}' for letter in called):
        raise _NoCall(c)
    out.call(called)
    return (yield from _value(c, out.arguments))


READERS: dict[str, Callable[[_Out, frozenset[str]], Step]] = {
    "hermes": _hermes,
    "llama": _llama,
    "mistral": _mistral,
}

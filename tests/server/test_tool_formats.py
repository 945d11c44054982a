"""Tool calls in the words of each family, hand-written, split at every place."""

from __future__ import annotations

import pytest

from paceline.server.tool_families import calls_grammar, family_of
from paceline.server.tool_formats import Part, ToolReader

NAMES = ("get_weather", "now")
CITY = '{"city": "Köln", "days": [1, 2], "note": "a \\"}</tool_call> b"}'


def joined(parts: list[Part]) -> list[tuple[str, int, str]]:
    """Parts with neighbours of one kind put together."""
    out: list[tuple[str, int, str]] = []
    for part in parts:
        if out and part.kind != "call" and out[-1][:2] == (part.kind, part.index):
            out[-1] = (part.kind, part.index, out[-1][2] + part.text)
        else:
            out.append((part.kind, part.index, part.text))
    return out


def read(family: str, pieces: list[str], most: int | None = None) -> list[tuple[str, int, str]]:
    reader = ToolReader(family, NAMES, most)
    return joined([part for piece in pieces for part in reader.feed(piece)] + reader.end())


def content(text: str) -> tuple[str, int, str]:
    return ("content", 0, text)


def call(index: int, name: str, arguments: str) -> list[tuple[str, int, str]]:
    return [("call", index, name), *([("arguments", index, arguments)] if arguments else [])]


CASES: list[tuple[str, str, list[tuple[str, int, str]]]] = [
    # Hermes, Qwen 2.5 and 3
    ("hermes",
     f'<tool_call>\n{{"name": "get_weather", "arguments": {CITY}}}\n</tool_call>',
     call(0, "get_weather", CITY)),
    ("hermes",
     'Let me look.\n\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>\n'
     '<tool_call>\n{"arguments": {"city": "Rome"}, "name": "get_weather"}\n</tool_call>\n',
     [content("Let me look."), *call(0, "now", "{}"),
      *call(1, "get_weather", '{"city": "Rome"}')]),
    ("hermes", '<tool_call>{"name": "other", "arguments": {"a": 1}}</tool_call> and more',
     [*call(0, "other", '{"a": 1}'), content(" and more")]),
    ("hermes", '<tool_call>{"name": "now"}</tool_call>', call(0, "now", "{}")),
    ("hermes", '<tool_call>{"name": "now", "arguments": null}</tool_call>', call(0, "now", "{}")),
    ("hermes", '<tool_call>{"name": "now", "arguments": "{\\"a\\": 1}"}</tool_call>',
     call(0, "now", '{"a": 1}')),
    ("hermes", '<tool_call>{"thought": {"x": []}, "name": "now", "arguments": {}}</tool_call>',
     call(0, "now", "{}")),
    ("hermes", '<tool_call>{"name": "now", "arguments": {}}<tool_call>{"name": "now"}',
     [*call(0, "now", "{}"), *call(1, "now", "{}")]),
    ("hermes", '<tool_call>{"name": "now", "arguments": {"a": [1, ', call(0, "now", '{"a": [1, ')),
    ("hermes", '<tool_call>{"name": "now", "arguments": {"a": 1]}}</tool_call>!',
     [*call(0, "now", '{"a": 1]'), content("!")]),
    ("hermes", "<tool_call>not JSON</tool_call>  \n",
     [content("<tool_call>not JSON</tool_call>  \n")]),
    ("hermes", '<tool_call>{"name": 5, "arguments": {}}</tool_call>',
     [content('<tool_call>{"name": 5, "arguments": {}}</tool_call>')]),
    ("hermes", '<tool_call><tool_call>{"name": "now"}</tool_call>',
     [content("<tool_call>"), *call(0, "now", "{}")]),
    ("hermes", "if a <tool and b <tool_cal", [content("if a <tool and b <tool_cal")]),
    ("hermes", "<tool_call>", [content("<tool_call>")]),
    # Half of a pair is no text that can be sent: as it is spelled, or no call.
    ("hermes", '<tool_call>{"name": "now", "arguments": "\\ud83e"}</tool_call>',
     call(0, "now", '"\\ud83e"')),
    ("hermes", '<tool_call>{"name": "\\ud83e"}</tool_call>',
     [content('<tool_call>{"name": "\\ud83e"}</tool_call>')]),
    ("hermes", " \n ", [content(" \n ")]),
    ("hermes", "", []),
    # Llama 3.1, 3.2 and 3.3
    ("llama", f'{{"name": "get_weather", "parameters": {CITY}}}', call(0, "get_weather", CITY)),
    ("llama", '\n{"type": "function", "name": "now", "parameters": {}}', call(0, "now", "{}")),
    ("llama", '<|python_tag|>{"name": "now", "parameters": {}}; {"name": "now", "parameters": {}}',
     [*call(0, "now", "{}"), *call(1, "now", "{}")]),
    ("llama", 'I will.<|python_tag|>{"name": "now", "arguments": {"a": 1}}',
     [content("I will."), *call(0, "now", '{"a": 1}')]),
    ("llama", '{"name": "Ada", "parameters": {}}', [content('{"name": "Ada", "parameters": {}}')]),
    ("llama", '{"title": "x", "name": "now"} so', [content('{"title": "x", "name": "now"} so')]),
    ("llama", '<|python_tag|>print("now")', [content('<|python_tag|>print("now")')]),
    ("llama", 'as in {"name": "now", "parameters": {}}',
     [content('as in {"name": "now", "parameters": {}}')]),
    ("llama", '{"name": "now", "parameters": {}} tail',
     [*call(0, "now", "{}"), content(" tail")]),
    ("llama", '{"na', [content('{"na')]),
    # Mistral: the list of older tokenizers, and name and arguments of newer ones
    ("mistral",
     f'[TOOL_CALLS] [{{"name": "get_weather", "arguments": {CITY}}}, '
     '{"name": "now", "arguments": {}, "id": "a1b2c3d4e"}]',
     [*call(0, "get_weather", CITY), *call(1, "now", "{}")]),
    ("mistral", f"Well. [TOOL_CALLS]get_weather[ARGS]{CITY}[TOOL_CALLS]now[CALL_ID]7[ARGS]{{}}",
     [content("Well."), *call(0, "get_weather", CITY), *call(1, "now", "{}")]),
    ("mistral", '[TOOL_CALLS]now{"a": 1}', call(0, "now", '{"a": 1}')),
    ("mistral", '[TOOL_CALLS][{"name": "now", "arguments": {"a"', call(0, "now", '{"a"')),
    ("mistral", "[TOOL_CALLS][]", [content("[TOOL_CALLS][]")]),
    ("mistral", "[TOOL_CALLS]nothing here", [content("[TOOL_CALLS]nothing here")]),
    ("mistral", "a list: [1, 2] [TOOL", [content("a list: [1, 2] [TOOL")]),
]  # fmt: skip


@pytest.mark.parametrize(("family", "text", "wanted"), CASES)
def test_what_is_read_does_not_depend_on_the_split(
    family: str, text: str, wanted: list[tuple[str, int, str]]
) -> None:
    assert read(family, [text]) == wanted
    assert read(family, list(text)) == wanted
    for at in range(len(text)):
        assert read(family, [text[:at], text[at:]]) == wanted, at
        assert read(family, [text[:at], text[at : at + 5], text[at + 5 :]]) == wanted, at


def test_a_call_is_told_as_soon_as_it_is_one() -> None:
    reader = ToolReader("hermes", NAMES)
    assert reader.feed('<tool_call>\n{"name": "now",') == [Part("call", "now", 0)]
    assert reader.feed(' "arguments": {"a"') == [Part("arguments", '{"a"', 0)]
    assert reader.feed(": 1") == [Part("arguments", ": 1", 0)]
    reader = ToolReader("llama", NAMES)
    assert reader.feed('{"answer"') == []
    assert reader.feed(":") == [Part("content", '{"answer":')]


@pytest.mark.parametrize("family", ["hermes", "mistral"])
def test_no_more_calls_than_were_asked_for(family: str) -> None:
    one = '{"name": "now", "arguments": {"a": 1}}'
    text = (
        f"[TOOL_CALLS][{one}, {one}]"
        if family == "mistral"
        else f"<tool_call>{one}</tool_call>" * 2
    )
    assert read(family, [text], most=1) == call(0, "now", '{"a": 1}')


def test_families_are_known_by_their_templates() -> None:
    shared = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    assert family_of(shared) is None
    assert family_of(shared + "<tool_call>{{ c }}</tool_call>") == "hermes"
    assert family_of(shared + "<tool_call><function={{ c }}></tool_call>") is None
    assert family_of(shared + "[TOOL_CALLS]{{ c | tojson }}") == "mistral"
    assert family_of(shared + "Environment: ipython" + """{{ '"parameters": ' }}""") == "llama"


def test_grammars_name_tokens_where_marks_are_tokens() -> None:
    functions = {"now": None, "then": {"type": "object"}}
    plain = calls_grammar("mistral", "[TOOL_CALLS]", functions, True, {})
    assert plain.startswith('start: calls\ncalls: "[TOOL_CALLS][" call (", " call)* "]"\n')
    special = calls_grammar("mistral", "[TOOL_CALLS]", functions, False, {"[TOOL_CALLS]": 5})
    assert special.startswith('start: calls\ncalls: <[5]> "[" call  "]"\n')
    newer = calls_grammar("mistral", "[TOOL_CALLS][ARGS]", functions, True,
                          {"[TOOL_CALLS]": 5, "[ARGS]": 6})  # fmt: skip
    assert 'f0: <[5]> "now" <[6]> %json {' in newer

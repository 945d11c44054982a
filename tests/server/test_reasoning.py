"""Reasoning told from the answer: split at every place, in streams, with a bound answer behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from tests.server.test_tools import says
from tests.server.tools import CHAT, Call

from paceline import Engine
from paceline.server.reasoning import Marks, ReasoningReader, marks_of, reasoning_tokens

MARKS = Marks("<think>", "</think>")
# The mini pair's template, and one that leaves the mark open in the prompt.
PLAIN = "{% for m in messages %}{{ m.content }}\n{% endfor %}{# </think> #}"
OPEN = PLAIN + "{% if not off %}<think>\n{% else %}<think>\n\n</think>\n\n{% endif %}"

__all__ = ["says"]


def read(pieces: list[str], opened: bool) -> tuple[str, str, bool]:
    reader = ReasoningReader(MARKS, opened)
    both = [*map(reader.feed, pieces), reader.end()]
    return "".join(a for a, _ in both), "".join(b for _, b in both), reader.found


@pytest.mark.parametrize(
    ("text", "opened", "wanted"),
    [
        ("<think>\nso  it\nis\n</think>\n\nYes.\n", False, ("so  it\nis", "Yes.\n", True)),
        ("\nso it is\n</think>\n\nYes </think>", True, ("so it is", "Yes </think>", True)),
        ("Yes. <think>x</think>", False, ("", "Yes. <think>x</think>", False)),
        ("  <think>a < b </thin> c</think>d", False, ("a < b </thin> c", "d", True)),
        ("<think>\n\n</think>\n\nYes.", False, ("", "Yes.", True)),
        ("<think>cut <", False, ("cut <", "", True)),
        ("cut  ", True, ("cut", "", True)),
        ("<thin", False, ("", "<thin", False)),
        (" \n", False, ("", " \n", False)),
        ("", True, ("", "", True)),
    ],
)
def test_reasoning_is_split_alike_wherever_the_text_is(
    text: str, opened: bool, wanted: tuple[str, str, bool]
) -> None:
    assert read([text], opened) == wanted
    assert read(list(text), opened) == wanted
    for at in range(len(text)):
        assert read([text[:at], text[at:]], opened) == wanted, at


def test_marks_are_found_and_tokens_counted() -> None:
    assert marks_of(PLAIN) == MARKS
    assert marks_of("[THINK]…[/THINK]") == Marks("[THINK]", "[/THINK]")
    assert marks_of("none") is None
    pieces = [b"<think>", b"so", b" it </th", b"ink>", b"Yes", b"</think>"]
    assert reasoning_tokens(MARKS, pieces) == 4
    assert reasoning_tokens(MARKS, pieces[:3]) == 3


def chat(call: Call, **body: Any) -> Any:
    answer = call("POST", "/v1/chat/completions", {"model": "mini", "messages": CHAT, **body})
    assert answer.status == 200, answer.body
    return answer


def test_an_answer_with_reasoning(
    says: Callable[[str], None],
    engine: Engine,
    app: Callable[..., Call],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine.tokenizer.fast, "chat_template", PLAIN)
    says("<think>\nLet me see.\n</think>\n\nYes.")
    call = app()
    whole = chat(call).json
    message = whole["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("Let me see.", "Yes.")
    used = whole["usage"]
    counted = used["completion_tokens_details"]["reasoning_tokens"]
    assert 8 < counted < used["completion_tokens"] - 2
    stream = chat(call, stream=True, stream_options={"include_usage": True})
    deltas = [chunk["choices"][0]["delta"] for chunk in stream.chunks if chunk["choices"]]
    assert "".join(d.get("reasoning_content") or "" for d in deltas) == "Let me see."
    assert "".join(d.get("content") or "" for d in deltas) == "Yes."
    assert stream.chunks[-1]["usage"] == used
    for answer in (chat(call, separate_reasoning=False), chat(app(reasoning=False))):
        message = answer.json["choices"][0]["message"]
        assert message["content"] == "<think>\nLet me see.\n</think>\n\nYes."
        assert "reasoning_content" not in message


# What the model writes, the stop string, what is left (reasoning, content), whether it was met.
STOPS = [
    ("<think>\nSay STOP here.\n</think>\n\nOne STOP two", "STOP", "Say STOP here.", "One ", True),
    ("<think>a\n\nb</think>\n\nOne.\n\nTwo.", "\n\n", "a\n\nb", "One.", True),
    ("<think>a</think>\n\n STOP", "STOP", "a", "", True),
    ("<think>a STOP", "STOP", "a STOP", "", False),
    ("One STOP two <think>", "STOP", None, "One ", True),
    ("<think>so</think>Yes.", "<t", "so", "Yes.", False),
    ("<thing>", "<t", None, "", True),
    # Who asks for the reasoning alone gets it.
    ("<think>so</think>Yes.", "</think>", "so", "", True),
]


@pytest.mark.parametrize(("text", "stop", "reasoning", "content", "met"), STOPS)
@pytest.mark.parametrize("drafts", [True, False])
def test_stop_strings_count_in_the_answer(
    text: str,
    stop: str,
    reasoning: str | None,
    content: str,
    met: bool,
    drafts: bool,
    says: Callable[[str], None],
    engine: Engine,
    app: Callable[..., Call],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine.tokenizer.fast, "chat_template", PLAIN)
    says(text)
    call, options = app(), {"stop": stop, "speculative": {"enabled": drafts}}
    (choice,) = chat(call, **options).json["choices"]
    message = choice["message"]
    assert message.get("reasoning_content") == reasoning
    assert (message["content"] or "") == content
    assert choice["stop_reason"] == (stop if met else None)
    chunks = [chunk["choices"][0] for chunk in chat(call, **options, stream=True).chunks]
    deltas = [chunk["delta"] for chunk in chunks]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == (reasoning or "")
    assert "".join(delta.get("content", "") for delta in deltas) == content
    assert chunks[-1]["stop_reason"] == choice["stop_reason"]


def test_stop_strings_count_everywhere_in_what_is_not_parsed(
    says: Callable[[str], None],
    engine: Engine,
    app: Callable[..., Call],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine.tokenizer.fast, "chat_template", PLAIN)
    says("<think>Say STOP here.</think>One STOP two")
    for call, options in ((app(), {"separate_reasoning": False}), (app(reasoning=False), {})):
        (choice,) = chat(call, stop="STOP", **options).json["choices"]
        assert choice["message"]["content"] == "<think>Say "
    body = {"model": "mini", "prompt": "a", "stop": "STOP"}
    (choice,) = app()("POST", "/v1/completions", body).json["choices"]
    assert choice["text"] == "<think>Say "


def test_token_ids_end_a_text_wherever_they_come(
    says: Callable[[str], None],
    engine: Engine,
    app: Callable[..., Call],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine.tokenizer.fast, "chat_template", PLAIN)
    text = "<think>Say it here.</think>One STOP two"
    says(text)
    token = engine.tokenizer.encode(text)[6]
    (choice,) = chat(app(), stop="STOP", stop_token_ids=[token]).json["choices"]
    assert (choice["stop_reason"], choice["message"]["content"]) == (token, None)
    assert choice["message"]["reasoning_content"].startswith("S")


@pytest.mark.parametrize(
    ("field", "names"),
    [
        ("reasoning_content", {"reasoning_content"}),
        ("reasoning", {"reasoning"}),
        ("both", {"reasoning_content", "reasoning"}),
    ],
)
def test_the_name_of_reasoning_is_the_operators_to_choose(
    field: str,
    names: set[str],
    says: Callable[[str], None],
    engine: Engine,
    app: Callable[..., Call],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine.tokenizer.fast, "chat_template", PLAIN)
    says("<think>Let me see.</think>Yes.")
    call = app(reasoning_field=field)
    message = chat(call).json["choices"][0]["message"]
    assert {name for name in message if name.startswith("reasoning")} == names
    assert all(message[name] == "Let me see." for name in names)
    deltas = [chunk["choices"][0]["delta"] for chunk in chat(call, stream=True).chunks]
    for name in ("reasoning_content", "reasoning"):
        told = "".join(delta.get(name, "") for delta in deltas)
        assert told == ("Let me see." if name in names else "")


def test_an_earlier_answers_reasoning_is_taken_under_either_name(
    engine: Engine, app: Callable[..., Call], monkeypatch: pytest.MonkeyPatch
) -> None:
    template = "{% for m in messages %}{{ m.reasoning_content }}|{{ m.content }}\n{% endfor %}"
    monkeypatch.setattr(engine.tokenizer.fast, "chat_template", template)
    call, sizes = app(), set()
    for said in (
        {"reasoning": "so"},
        {"reasoning_content": "so"},
        {"reasoning_content": "so", "reasoning": "so"},
    ):
        messages = [*CHAT, {"role": "assistant", "content": "Yes.", **said}, *CHAT]
        sizes.add(chat(call, messages=messages, max_tokens=1).json["usage"]["prompt_tokens"])
    (size,) = sizes
    text = f"|{CHAT[0]['content']}\nso|Yes.\n|{CHAT[0]['content']}\n"
    assert size == len(engine.tokenizer.encode(text))
    messages[1] = {"role": "assistant", "content": "Yes.", "reasoning": "a",
                   "reasoning_content": "b"}  # fmt: skip
    body = {"model": "mini", "messages": messages}
    answer = call("POST", "/v1/chat/completions", body)
    assert (answer.status, answer.json["error"]["param"]) == (400, "messages[1]")


def test_a_template_that_opens_it(
    engine: Engine, app: Callable[..., Call], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.tokenizer.fast, "chat_template", OPEN)
    call, options = app(), {"max_tokens": 12, "min_tokens": 12, "seed": 1}
    whole = chat(call, **options).json
    message = whole["choices"][0]["message"]
    assert message["content"] is None  # the mini pair knows no end mark
    assert message["reasoning_content"]
    assert whole["usage"]["completion_tokens_details"]["reasoning_tokens"] == 12
    off = chat(call, **options, chat_template_kwargs={"off": True}).json["choices"][0]["message"]
    assert off["content"]
    assert "reasoning_content" not in off


def test_what_the_answer_must_be_binds_behind_the_reasoning(
    engine: Engine, app: Callable[..., Call], monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"],
              "additionalProperties": False}  # fmt: skip
    form = {"type": "json_schema", "json_schema": {"name": "it", "schema": schema}}
    monkeypatch.setattr(engine.tokenizer.fast, "chat_template", OPEN)
    call, options = app(), {"max_tokens": 30, "seed": 1, "response_format": form}
    free = chat(call, **options).json["choices"][0]["message"]
    assert free["reasoning_content"]
    assert free["content"] is None
    bound = chat(call, **options, chat_template_kwargs={"off": True}).json["choices"][0]
    assert type(json.loads(bound["message"]["content"])["a"]) is bool
    assert bound["finish_reason"] == "stop"


def test_a_budget_of_reasoning(
    engine: Engine, app: Callable[..., Call], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text is what it is without one, up to there; then the mark, and the answer."""
    monkeypatch.setattr(engine.tokenizer.fast, "chat_template", OPEN)
    call, options = app(), {"max_tokens": 40, "seed": 1, "min_tokens": 40, "return_token_ids": True}
    free = chat(call, **options).json["choices"][0]["token_ids"]
    mark = engine.tokenizer.encode_on("</think>")
    for budget in (0, 1, 9):
        for enabled in (True, False):
            body = {"thinking_token_budget": budget, "speculative": {"enabled": enabled}}
            whole = chat(call, **options, **body).json
            (choice,) = whole["choices"]
            assert choice["token_ids"][: budget + len(mark)] == [*free[:budget], *mark]
            assert len(choice["token_ids"]) == 40
            assert choice["message"]["content"]
            used = whole["usage"]["completion_tokens_details"]
            assert used["reasoning_tokens"] == budget + len(mark)
            deltas = [
                c["choices"][0]["delta"] for c in chat(call, **options, **body, stream=True).chunks
            ]
            told = "".join(delta.get("content") or "" for delta in deltas)
            assert told == choice["message"]["content"]
    ample = chat(call, **options, thinking_token_budget=100).json["choices"][0]["token_ids"]
    off = {"chat_template_kwargs": {"off": True}}
    plain = chat(call, **options, **off).json["choices"][0]["token_ids"]
    none = chat(call, **options, **off, thinking_token_budget=0).json["choices"][0]["token_ids"]
    assert (ample, none) == (free, plain)


def test_a_bound_answer_behind_a_budget(
    engine: Engine, app: Callable[..., Call], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.tokenizer.fast, "chat_template", OPEN)
    bound = {"response_format": {"type": "json_object", "schema": {"const": [1, "a"]}}}
    body = {"max_tokens": 40, "seed": 1, "thinking_token_budget": 5, **bound}
    (choice,) = chat(app(), **body).json["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ('[1,"a"]', "stop")


def test_a_budget_where_nothing_is_told_apart(app: Callable[..., Call]) -> None:
    body = {"model": "mini", "messages": CHAT, "thinking_token_budget": 5}
    answer = app(reasoning=False)("POST", "/v1/chat/completions", body)
    assert (answer.status, answer.json["error"]["param"]) == (400, "thinking_token_budget")
    body = {"model": "mini", "prompt": "a", "thinking_token_budget": 5}
    answer = app()("POST", "/v1/completions", body)
    assert (answer.status, answer.json["error"]["param"]) == (400, "thinking_token_budget")

"""Tools through the official client: forced by a grammar, or read from what the model wrote."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import openai
import pytest
from jsonschema import Draft202012Validator
from openai import OpenAI
from tests.server.tools import CHAT, Call, Served, serve_in_thread

from paceline import Engine, Grammar
from paceline.server.settings import ServerSettings
from paceline.server.tools import ChatFormat, asked_tools
from paceline.server.wire import ChatBody

WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 10}, "unit": {"enum": ["C", "F"]}},
    "required": ["city", "unit"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "get_weather", "description": "The weather.",
                                      "parameters": WEATHER, "strict": True}},
    {"type": "function", "function": {"name": "now"}},
]  # fmt: skip
# Shows what a template is given, in the form that one family has.
TEMPLATE = (
    "{% if tools %}{% for t in tools %}{{ t | tojson }}\n{% endfor %}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}"
    "{% if m.tool_call_id %}[{{ m.tool_call_id }}]{% endif %}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)
NEVER = {"speculative": {"enabled": False}}


@pytest.fixture(scope="module", params=["hermes", "llama", "mistral"])
def family(request: pytest.FixtureRequest, engine: Engine) -> Any:
    settings = ServerSettings(name="mini", tool_parser=request.param)
    with serve_in_thread(engine, settings) as served:
        yield served


@pytest.fixture
def tooled(family: Served) -> Any:
    http = openai.DefaultHttpxClient(trust_env=False)
    with OpenAI(
        base_url=f"{family.url}/v1", api_key="any", max_retries=0, http_client=http
    ) as client:
        yield client


def test_a_required_call_parses(tooled: OpenAI) -> None:
    for seed in range(3):
        options: dict[str, Any] = {
            "model": "mini", "messages": CHAT, "tools": TOOLS, "tool_choice": "required",
            "parallel_tool_calls": False, "seed": seed, "max_tokens": 120,
        }  # fmt: skip
        done = tooled.chat.completions.create(**options)
        (choice,) = done.choices
        assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
        (called,) = choice.message.tool_calls or []
        assert called.type == "function"
        arguments = json.loads(called.function.arguments)
        if called.function.name == "now":
            assert arguments == {}
        else:
            assert called.function.name == "get_weather"
            Draft202012Validator(WEATHER).validate(arguments)
        chunks = list(tooled.chat.completions.create(**options, stream=True))
        deltas = [t for c in chunks for t in c.choices[0].delta.tool_calls or []]
        assert {delta.index for delta in deltas} == {0}
        assert [delta.function.name for delta in deltas if delta.id] == [called.function.name]
        streamed = "".join(delta.function.arguments or "" for delta in deltas)
        assert streamed == called.function.arguments
        assert chunks[-1].choices[0].finish_reason == "tool_calls"
        assert not any(chunk.choices[0].delta.content for chunk in chunks)


def test_a_named_function_is_called(tooled: OpenAI) -> None:
    done = tooled.chat.completions.create(
        model="mini",
        messages=CHAT,  # type: ignore[arg-type]
        tools=TOOLS,
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
        n=2,
        logprobs=True,
        max_tokens=120,
        seed=5,
    )
    names = set()
    for choice in done.choices:
        (called,) = choice.message.tool_calls or []
        assert called.type == "function"
        assert called.function.name == "get_weather"
        Draft202012Validator(WEATHER).validate(json.loads(called.function.arguments))
        assert choice.logprobs is not None
        assert choice.logprobs.content
        names.add(called.id)
    assert len(names) == 2


def test_an_answer_without_calls_is_content(tooled: OpenAI, client: OpenAI) -> None:
    options: dict[str, Any] = {"model": "mini", "messages": CHAT, "seed": 2, "max_tokens": 30}
    plain = client.chat.completions.create(**options)
    done = tooled.chat.completions.create(**options, tools=TOOLS)  # the template shows no tools
    assert done.choices[0].message.content == plain.choices[0].message.content
    assert done.choices[0].message.tool_calls is None
    none = tooled.chat.completions.create(**options, tools=TOOLS, tool_choice="none")
    assert none.choices[0].message.content == plain.choices[0].message.content


FORM = {"type": "json_schema", "json_schema": {"name": "it", "schema": WEATHER}}


@pytest.mark.parametrize(
    "other",
    [{"response_format": FORM}, {"structured_outputs": {"regex": "(yes|no)/[0-9]{2}\n"}}],
    ids=["schema", "regex"],
)
@pytest.mark.parametrize("parser", ["hermes", "llama"])
def test_an_answer_of_a_form_or_calls(parser: str, other: Any, app: Callable[..., Call]) -> None:
    """Tools leave a bound answer its form, and a bound answer leaves tools to the model."""
    call = app(tool_parser=parser)
    for seed in range(4):
        body = {"model": "mini", "messages": CHAT, "tools": TOOLS, "seed": seed, "max_tokens": 90,
                "parallel_tool_calls": False, "temperature": 1.5, **other}  # fmt: skip
        (choice,) = call("POST", "/v1/chat/completions", body).json["choices"]
        message = choice["message"]
        if "tool_calls" in message:
            (one,) = message["tool_calls"]
            json.loads(one["function"]["arguments"])
            assert (message["content"], choice["finish_reason"]) == (None, "tool_calls")
            continue
        if "response_format" in other:
            Draft202012Validator(WEATHER).validate(json.loads(message["content"]))
        else:
            assert re.fullmatch("(yes|no)/[0-9]{2}\n", message["content"])


def test_a_call_in_place_of_a_form(app: Callable[..., Call], engine: Engine) -> None:
    """What may come is one or the other, whole."""
    formats = ChatFormat.of(engine, "hermes", True)
    body = ChatBody.model_validate({"model": "m", "messages": CHAT, "tools": TOOLS})
    tools = asked_tools(body, formats)
    assert tools is not None
    other = Grammar("json_schema", json.dumps(WEATHER))
    grammar = tools.grammar(engine, formats, other)
    assert grammar is not None
    texts = {
        '{"city":"Rome","unit":"C"}': True,
        '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>': True,
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>': False,
        "Rome": False,
    }
    for text, may in texts.items():
        matcher = engine._intake.compiler().compile(grammar)
        tokens = engine.tokenizer.encode(text)
        taken = matcher._inner.try_consume_tokens(tokens)
        assert (taken == len(tokens) and matcher._inner.is_accepting()) is may, text


# --- what the model writes by itself, and what the template is given ---------------------------


@pytest.fixture
def says(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Have the engine write a text of the test's own: nothing else is allowed."""
    real = engine.submit

    def say(text: str) -> None:
        only = Grammar("lark", f"start: {json.dumps(text)}")

        def submit(*args: Any, **options: Any) -> Any:
            return real(*args, **{**options, "grammar": only})

        monkeypatch.setattr(engine, "submit", submit)

    return say


def test_calls_in_the_text_are_found(says: Callable[[str], None], app: Callable[..., Call]) -> None:
    says('Well.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>')
    call = app(tool_parser="hermes")
    body = {"model": "mini", "messages": CHAT, "tools": TOOLS, "logprobs": True}
    (choice,) = call("POST", "/v1/chat/completions", body).json["choices"]
    assert choice["message"]["content"] == "Well."
    assert choice["finish_reason"] == "tool_calls"
    (called,) = choice["message"]["tool_calls"]
    assert called["function"] == {"name": "get_weather", "arguments": '{"city": "Rome"}'}
    answer = call("POST", "/v1/chat/completions", {**body, "stream": True, **NEVER})
    found = [chunk["choices"][0] for chunk in answer.chunks]
    assert "".join(c["delta"].get("content") or "" for c in found) == "Well."
    deltas = [one for c in found for one in c["delta"].get("tool_calls", [])]
    assert deltas[0]["function"] == {"name": "get_weather", "arguments": ""}
    assert all(set(one) == {"index", "function"} for one in deltas[1:])
    assert "".join(one["function"]["arguments"] for one in deltas) == '{"city": "Rome"}'
    shown = [e for c in found if c["logprobs"] for e in c["logprobs"]["content"]]
    assert len(shown) == len(choice["logprobs"]["content"])
    assert found[-1]["finish_reason"] == "tool_calls"
    untold = call("POST", "/v1/chat/completions", {**body, "tool_choice": "none"})
    assert "<tool_call>" in untold.json["choices"][0]["message"]["content"]


def test_a_call_that_is_cut_says_so(says: Callable[[str], None], app: Callable[..., Call]) -> None:
    says('<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome, or was it"}}')
    body = {"model": "mini", "messages": CHAT, "tools": TOOLS, "max_tokens": 16}
    answer = app(tool_parser="hermes")("POST", "/v1/chat/completions", body)
    (choice,) = answer.json["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["tool_calls"][0]["function"]["name"] == "get_weather"


def test_the_template_is_told_of_tools_calls_and_results(
    engine: Engine, app: Callable[..., Call], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.tokenizer.fast, "chat_template", TEMPLATE)
    seen: list[str] = []
    real = engine.submit

    def submit(prompt: Any, *args: Any, **options: Any) -> Any:
        seen.append(engine.tokenizer.decode(prompt, skip_special_tokens=False))
        return real(prompt, *args, **options)

    monkeypatch.setattr(engine, "submit", submit)
    function = {"name": "get_weather", "arguments": '{"city": "Rome"}'}
    talk = [
        *CHAT,
        {"role": "assistant", "content": None,
         "tool_calls": [{"id": "c1", "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": "c1", "content": "21 C"},
    ]  # fmt: skip
    call = app()  # the template says which family it is
    body = {"model": "mini", "messages": talk, "max_tokens": 1}
    answer = call("POST", "/v1/chat/completions", {**body, "tools": TOOLS})
    assert answer.status == 200, answer.body
    lines = seen[0].splitlines()
    first, second = (json.loads(line) for line in lines[:2])
    assert first["function"]["parameters"] == WEATHER
    assert "strict" not in first["function"]
    assert second == {"type": "function", "function": {"name": "now"}}
    assert (
        '<tool_call>{"name": "get_weather", "arguments": {"city": "Rome"}}</tool_call>' in seen[0]
    )
    assert "tool\n21 C[c1]<|im_end|>" in seen[0]
    call("POST", "/v1/chat/completions", {**body, "tools": TOOLS, "tool_choice": "none"})
    assert "parameters" not in seen[1]
    warm = {"model": "mini", "messages": talk, "tools": TOOLS}
    call("POST", "/v1/warm", warm)
    assert seen[2] == seen[0]


@pytest.mark.parametrize(
    "text",
    [
        'Let me see. <tool_call>{"name": "web search: now", "arguments": {}}</tool_call>',
        "<think>only thought about, up to the last",
    ],
)
def test_every_answer_can_be_sent_back(
    text: str,
    says: Callable[[str], None],
    app: Callable[..., Call],
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also one that calls what is no function's name, or has no content at all."""
    template = TEMPLATE.replace("{{ m.content }}", "{{ m.content.split('</think>')[-1] }}")
    monkeypatch.setattr(engine.tokenizer.fast, "chat_template", template)
    says(text)
    call, body = app(tool_parser="hermes"), {"model": "mini", "max_tokens": 120}
    first = call("POST", "/v1/chat/completions", {**body, "messages": CHAT, "tools": TOOLS})
    message = first.json["choices"][0]["message"]
    assert message.get("tool_calls") or message["content"] is None
    talk = [*CHAT, message, {"role": "user", "content": "Go on."}]
    again = call("POST", "/v1/chat/completions", {**body, "messages": talk, "tools": TOOLS})
    assert again.status == 200, again.body


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": "any"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "no"}}},
         "tool_choice"),
        ({"tools": [*TOOLS, TOOLS[0]]}, "tools"),
        ({"tools": [{"type": "code_interpreter"}]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "no"}}}],
          "tool_choice": "required"}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]}, "tools"),
        ({"tools": TOOLS * 65}, "tools"),
        ({"tools": TOOLS, "tool_choice": "required", "response_format": {"type": "json_object"}},
         "response_format"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"messages": [{"role": "user", "content": "a", "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}]},
         "messages[0]"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"function": {}}]}]}, "messages"),
        ({"messages": [{"role": "function", "content": "a", "name": "f"}]}, "messages[0]"),
        ({"chat_template_kwargs": {"chat_template": "x"}}, ""),
        ({"chat_template_kwargs": {"continue_final_message": True}}, ""),
        ({"chat_template_kwargs": {"messages": []}}, ""),
    ],
    ids=lambda v: repr(v)[:70],
)  # fmt: skip
def test_tools_that_cannot_be(extra: Any, param: str, app: Callable[..., Call]) -> None:
    call = app(tool_parser="hermes")
    body = {"model": "mini", "messages": CHAT, "max_tokens": 2, **extra}
    answer = call("POST", "/v1/chat/completions", body)
    assert answer.status == 400, answer.body
    error = answer.json["error"]
    assert (error["param"] or "") == param, error
    assert "\n" not in error["message"]


def test_tools_need_a_format_that_is_known(app: Callable[..., Call]) -> None:
    body = {"model": "mini", "messages": CHAT, "tools": TOOLS}
    for parser in ("auto", "none"):
        error = app(tool_parser=parser)("POST", "/v1/chat/completions", body).json["error"]
        assert error["param"] == "tools"
        assert "--tool-parser" in error["message"]

"""What stands before a text: special tokens, the template's beginning of an answer, or a message
that goes on; and what is not served, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.server.test_tools import says
from tests.server.tools import CHAT, PROMPT, Call
from tokenizers import processors

from paceline import Engine, sampling_params

BOS = "<|im_start|>"  # a special token of the bundled tokenizer, which puts none before a text
OPEN = [*CHAT, {"role": "assistant", "content": "def add(a,"}]

__all__ = ["says"]


@pytest.fixture
def bos(engine: Engine) -> Iterator[int]:
    """The tokenizer puts a token before every text, as a Llama's does; its id."""
    backend, token = engine.tokenizer.fast.backend_tokenizer, engine.tokenizer.special[BOS]
    before = backend.post_processor
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, token)]
    )
    yield token
    backend.post_processor = before


@pytest.fixture
def read(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The prompts that the engine is given."""
    real, seen = engine.submit, list[tuple[int, ...]]()

    def submit(prompt: Any, *args: Any, **options: Any) -> Any:
        seen.append(tuple(prompt))
        return real(prompt, *args, **options)

    monkeypatch.setattr(engine, "submit", submit)
    return seen


def ask(call: Call, path: str, **body: Any) -> Any:
    answer = call("POST", path, {"model": "mini", **body})
    assert answer.status == 200, answer.body
    return answer.json


def complete(call: Call, **body: Any) -> Any:
    return ask(call, "/v1/completions", prompt=PROMPT, max_tokens=2, **body)


def chat(call: Call, messages: Any = CHAT, **body: Any) -> Any:
    return ask(call, "/v1/chat/completions", messages=messages, max_tokens=2, **body)


def warm(call: Call, **body: Any) -> Any:
    return ask(call, "/v1/warm", **body)


def test_who_applies_the_template_may_have_one_bos(
    bos: int, read: list[tuple[int, ...]], engine: Engine, app: Callable[..., Call]
) -> None:
    call, plain = app(), tuple(engine.tokenizer.encode(PROMPT, add_special_tokens=False))
    for said in ({}, {"add_special_tokens": True}, {"add_special_tokens": False}):
        complete(call, **said)
        warm(call, prompt=PROMPT, **said)
    with_it, without = (bos, *plain), plain
    assert read == [with_it, with_it, with_it, with_it, without, without]


def test_a_chat_has_what_its_template_writes(
    bos: int, read: list[tuple[int, ...]], engine: Engine, app: Callable[..., Call]
) -> None:
    call, own = app(), tuple(engine.tokenizer.chat(CHAT))
    for said in ({}, {"add_special_tokens": False}, {"add_special_tokens": True}):
        chat(call, **said)
        warm(call, messages=CHAT, **said)
    assert read == [own, own, own, own, (bos, *own), (bos, *own)]


def test_an_answer_that_is_begun_by_the_template_or_not_or_goes_on(
    read: list[tuple[int, ...]], engine: Engine, app: Callable[..., Call]
) -> None:
    call, encode = app(), engine.tokenizer.encode
    told = f"<|im_start|>user\n{CHAT[0]['content']}<|im_end|>\n"
    begun = told + "<|im_start|>assistant\n"
    for extra, messages, text in (
        ({}, CHAT, begun),
        ({"add_generation_prompt": False}, CHAT, told),
        ({"continue_final_message": True}, OPEN, begun + "def add(a,"),
        ({"continue_final_message": True, "add_generation_prompt": False}, OPEN,
         begun + "def add(a,"),
    ):  # fmt: skip
        read.clear()
        chat(call, messages, **extra)
        warm(call, messages=messages, **extra)
        assert read == [tuple(encode(text))] * 2


def test_a_message_that_goes_on_is_the_engines_text(
    engine: Engine, app: Callable[..., Call]
) -> None:
    prompt = engine.tokenizer.chat(OPEN, go_on=True)
    params = sampling_params(max_tokens=12, min_tokens=12)
    (wanted,) = engine.generate([prompt], params)
    extra = {"continue_final_message": True, "temperature": 0, "min_tokens": 12}
    body = {"messages": OPEN, "max_tokens": 12, **extra}
    (choice,) = ask(app(), "/v1/chat/completions", **body)["choices"]
    assert choice["message"]["content"] == wanted.text


def test_either_an_answer_begins_or_a_message_goes_on(app: Callable[..., Call]) -> None:
    body = {"model": "mini", "messages": OPEN, "continue_final_message": True}
    answer = app()("POST", "/v1/chat/completions", body | {"add_generation_prompt": True})
    assert (answer.status, answer.json["error"]["param"]) == (400, "continue_final_message")


@pytest.mark.parametrize(
    ("last", "reasoning", "content"),
    [("<think>so", " it is", "Yes."), ("<think>so it is</think>", None, " it is</think>Yes.")],
)
def test_reasoning_that_goes_on_is_reasoning(
    last: str, reasoning: str | None, content: str,
    says: Callable[[str], None], app: Callable[..., Call], engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{# <think></think> #}"
    monkeypatch.setattr(engine.tokenizer.fast, "chat_template", template)
    says(" it is</think>Yes.")
    messages = [*CHAT, {"role": "assistant", "content": last}]
    body = {"messages": messages, "continue_final_message": True}
    (choice,) = ask(app(), "/v1/chat/completions", **body)["choices"]
    assert choice["message"].get("reasoning_content") == (reasoning and reasoning.strip())
    assert choice["message"]["content"] == content


def test_effort_is_a_variable_of_the_template(
    read: list[tuple[int, ...]], engine: Engine, app: Callable[..., Call],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(engine.tokenizer.fast, "chat_template", "effort {{ reasoning_effort }}")
    call = app()
    chat(call, reasoning_effort="low")
    chat(call, reasoning_effort="low", chat_template_kwargs={"reasoning_effort": "high"})
    assert read == [tuple(engine.tokenizer.encode(f"effort {said}")) for said in ("low", "high")]


def test_variables_of_the_servers_stand_under_a_requests_own(
    read: list[tuple[int, ...]], engine: Engine, app: Callable[..., Call],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    template = "{{ a }} {{ b }} {{ reasoning_effort }}"
    monkeypatch.setattr(engine.tokenizer.fast, "chat_template", template)
    call = app(chat_template_kwargs={"a": "one", "b": "two", "reasoning_effort": "low"})
    for said, text in (
        ({}, "one two low"),
        ({"chat_template_kwargs": {"b": "own"}}, "one own low"),
        ({"reasoning_effort": "high"}, "one two high"),
    ):
        read.clear()
        chat(call, **said)
        warm(call, messages=CHAT, **said)
        assert read == [tuple(engine.tokenizer.encode(text))] * 2


@pytest.mark.parametrize("stream", [False, True])
def test_the_stop_string_is_shown_where_asked_for(
    stream: bool, says: Callable[[str], None], app: Callable[..., Call]
) -> None:
    says("one two three")
    call, body = app(), {"model": "mini", "prompt": PROMPT, "stop": "two", "stream": stream}

    def text(**said: bool) -> str:
        answer = call("POST", "/v1/completions", body | said)
        parts = answer.chunks if stream else [answer.json]
        return "".join(part["choices"][0]["text"] for part in parts)

    assert text() == "one "
    assert text(include_stop_str_in_output=True) == "one two"


# --- what is not served -----------------------------------------------------------------------

BOTH: dict[str, Any] = {
    "allowed_token_ids": [3],
    "bad_words": ["x"],
    "cache_salt": "mine",
    "dry_multiplier": 0.8,
    "ebnf": 'root ::= "a"',
    "grammar": 'root ::= "a"',
    "guided_choice": ["a"],
    "json_schema": {"type": "object"},
    "logits_processors": ["x.Y"],
    "max_new_tokens": 5,
    "min_new_tokens": 5,
    "mirostat": 2,
    "n_predict": 5,
    "no_repeat_ngram_size": 3,
    "prompt_embeds": "AAAA",
    "prompt_logprobs": 0,
    "regex": "a+",
    "repeat_penalty": 1.1,
    "structural_tag": "{}",
    "truncate_prompt_tokens": -1,
    "typical_p": 0.9,
    "use_beam_search": True,
    "vllm_xargs": {"a": 1},
    "xtc_probability": 0.1,
}
CHATS: dict[str, Any] = {
    "audio": {"voice": "alloy", "format": "wav"},
    "chat_template": "{{ messages }}",
    "documents": [{"text": "x"}],
    "echo": True,
    "enable_thinking": False,
    "verbosity": "low",
    "web_search_options": {"search_context_size": "low"},
}


@pytest.mark.parametrize(("name", "value"), [*BOTH.items(), *CHATS.items()])
def test_what_would_change_the_text_is_refused_by_name(
    name: str, value: Any, app: Callable[..., Call]
) -> None:
    call = app()
    paths = {"/v1/chat/completions": {"messages": CHAT}}
    if name in BOTH:
        paths["/v1/completions"] = {"prompt": PROMPT}  # type: ignore[dict-item]
    for path, body in paths.items():
        answer = call("POST", path, {"model": "mini", **body, name: value})
        assert answer.status == 400, answer.body
        error = answer.json["error"]
        assert error["param"] == name
        assert error["message"].startswith(f"{name} is not supported; ")


def test_what_clients_send_without_using_it_is_fine(app: Callable[..., Call]) -> None:
    call = app()
    unused = {"bad_words": [], "use_beam_search": False, "allowed_token_ids": None,
              "vllm_xargs": {}, "length_penalty": 1.0, "json_schema": None, "repeat_penalty": 1,
              "typical_p": 1.0, "mirostat": 0, "xtc_probability": 0.0, "cache_salt": "",
              "n_predict": None}  # fmt: skip
    complete(call, **unused)
    chat(call, **unused, echo=False, documents=[], chat_template=None, verbosity="medium")

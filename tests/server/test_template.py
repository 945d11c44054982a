"""A chat template of the operator's: read and checked at start, and used for every chat."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.server.tools import CHAT, Call

from paceline import ConfigError, Engine
from paceline.server.file import settle
from paceline.server.template import read_template
from paceline.server.tool_families import FAMILIES

MARKED = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
# What transformers adds to the language.
ADDED = MARKED + "{% generation %}{% for m in messages %}{% break %}{% endfor %}{% endgeneration %}"


@pytest.mark.parametrize("text", [MARKED, ADDED, "{{ raise_exception('x') }}{{ messages }}"])
def test_a_template_is_read(text: str, tmp_path: Path) -> None:
    file = tmp_path / "chat.jinja"
    file.write_text(text)
    assert read_template(file) == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{% for m in messages %}", "not a chat template: line 1: Unexpected end"),
        ("{{ messages | nothing }}", "No filter named 'nothing'"),
        ("sk-1\nsk-2\n", "does not use `messages`"),
        ('{"chat_template": "{% if m == \\"a\\" %}{{ messages }}{% endif %}"}', "line 1"),
        (b"\xff", "not UTF-8 text"),
        (None, "No such file"),
    ],
)
def test_what_is_no_template_is_one_line(
    text: str | bytes | None, words: str, tmp_path: Path
) -> None:
    file = tmp_path / "chat.jinja"
    if text is not None:
        file.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ConfigError) as caught:
        read_template(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_it_lies_beside_the_configuration_or_is_named(tmp_path: Path) -> None:
    file = tmp_path / "paceline.toml"
    file.write_text('target = "a"\n[server]\nchat_template = "one.jinja"\n')
    (tmp_path / "one.jinja").write_text(MARKED)
    (tmp_path / "two.jinja").write_text(ADDED)
    assert settle(file, {}, "a")[0].chat_template == MARKED
    given = {"chat_template": tmp_path / "two.jinja"}
    assert settle(file, given, "a")[0].chat_template == ADDED
    assert settle(None, {}, "a")[0].chat_template is None
    (tmp_path / "one.jinja").unlink()
    with pytest.raises(ConfigError, match=r"one\.jinja: cannot be read"):
        settle(file, {}, "a")


def test_chats_are_written_by_it(
    app: Callable[..., Call], engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Set as it is, so that the test's end sets it back.
    monkeypatch.setattr(engine.tokenizer.fast, "chat_template", engine.tokenizer.fast.chat_template)
    body = {"model": "mini", "messages": CHAT, "max_tokens": 8, "min_tokens": 8, "temperature": 0}
    before = app()("POST", "/v1/chat/completions", body).json
    call = app(chat_template=MARKED)
    chat = call("POST", "/v1/chat/completions", body).json
    plain = {"prompt": f"<user>{CHAT[0]['content']}\n", "max_tokens": 8, "min_tokens": 8}
    text = call("POST", "/v1/completions", {"model": "mini", "temperature": 0, **plain}).json
    assert chat["choices"][0]["message"]["content"] == text["choices"][0]["text"]
    assert chat["usage"]["prompt_tokens"] == text["usage"]["prompt_tokens"]
    assert chat["usage"]["prompt_tokens"] != before["usage"]["prompt_tokens"]
    assert chat["system_fingerprint"] != before["system_fingerprint"]
    tools = app(chat_template=f"{MARKED}{{# {''.join(FAMILIES['hermes'].marks)} #}}")
    assert tools.api._formats.family == "hermes"

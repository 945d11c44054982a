"""Golden transcripts: a completion, a chat, a call and a form, whole and streamed, byte for byte.

`PACELINE_GOLDEN=write` writes them anew; read the difference before committing it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.server.tools import CHAT, PROMPT, Call

FOLDER = Path(__file__).parent / "golden"
COMPLETION: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 12, "echo": True}
TALK: dict[str, Any] = {
    "messages": CHAT,
    "max_completion_tokens": 12,
    "min_tokens": 12,
    "prediction": {"type": "content", "content": "def add(a, b):\n    return a + b\n"},
}
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 6}, "days": {"enum": [1, 3]}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
CALL: dict[str, Any] = {
    "messages": CHAT,
    "tools": [{"type": "function", "function": {"name": "get_weather", "parameters": CITY}}],
    "tool_choice": {"type": "function", "function": {"name": "get_weather"}},
    "max_completion_tokens": 60,
}
FORM: dict[str, Any] = {
    "messages": CHAT,
    "response_format": {"type": "json_schema", "json_schema": {"name": "stay", "schema": CITY}},
    "max_completion_tokens": 60,
}
CASES = {
    "completion": ("/v1/completions", COMPLETION),
    "chat": ("/v1/chat/completions", TALK),
    "call": ("/v1/chat/completions", CALL),
    "form": ("/v1/chat/completions", FORM),
}


def settled(text: str) -> str:
    """A transcript without what differs from one run to the next."""
    text = re.sub(r'"id":"(\w+)-\w{32}"', r'"id":"\1-…"', text)
    text = re.sub(r'"id":"call_\w{24}"', '"id":"call_…"', text)
    text = re.sub(r'"created":\d+', '"created":0', text)
    text = re.sub(r'"cached_tokens":\d+', '"cached_tokens":0', text)  # what other tests have read
    return re.sub(r'"fp_\w+"', '"fp_…"', text)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("name", CASES)
def test_transcripts(name: str, stream: bool, app: Callable[..., Call]) -> None:
    path, body = CASES[name]
    extra = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    # Plain decoding: what a round brings is the drafters' business.
    plain = {"temperature": 0, "speculative": {"enabled": False}}
    sent = {"model": "mini", **plain, **body, **extra}
    answer = app(tool_parser="hermes")("POST", path, sent)
    kind = answer.headers["content-type"]
    shown = f"POST {path}\n{json.dumps(sent)}\n\n{answer.status} {kind}\n{answer.body.decode()}"
    file = FOLDER / f"{name}-{'stream' if stream else 'whole'}.txt"
    if os.environ.get("PACELINE_GOLDEN") == "write":
        FOLDER.mkdir(exist_ok=True)
        file.write_text(settled(shown), encoding="utf-8")
    assert settled(shown) == file.read_text(encoding="utf-8")

"""Whatever is sent, the answer is in OpenAI's shape with the right status, and never a 500."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from tests.server.tools import Call, in_process

from paceline import Engine
from paceline.server.errors import ApiError
from paceline.server.settings import ServerSettings
from paceline.server.wire import ChatBody, CompletionBody, Wire, parse

GOOD: dict[str, Any] = {"model": "mini", "prompt": "a", "max_tokens": 2}
CHAT: dict[str, Any] = {"model": "mini", "messages": [{"role": "user", "content": "a"}]}


@pytest.fixture(scope="module")
def call(engine: Engine) -> Call:
    return in_process(engine, ServerSettings(name="mini", max_body=100_000))


def told(call: Call, path: str, body: object, status: int = 400) -> dict[str, Any]:
    answer = call("POST", path, body)
    assert answer.status == status, answer.body
    assert set(answer.json) == {"error"}
    error: dict[str, Any] = answer.json["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert "\n" not in error["message"]
    assert len(error["message"]) < 400
    return error


BODIES = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'"text"',
    b"model=mini",
    b"\xff\xfe",
    b'{"model": "mini", "prompt": "\xff"}',
    b'{"model": "mini", "prompt": "\\ud800"}',
    b"[" * 50_000,
    b'{"model": "mini", "prompt": ' + b"[" * 40_000 + b"]" * 40_000 + b"}",
    b'{"a":' * 15_000 + b"1" + b"}" * 15_000,
]


@pytest.mark.parametrize("body", BODIES, ids=lambda b: repr(b[:30]))
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/warm"])
def test_bodies_that_are_no_request(path: str, body: bytes, call: Call) -> None:
    told(call, path, body)


FIELDS: list[tuple[str, Any, str]] = [
    ("prompt", 5, "prompt"),
    ("prompt", "", ""),
    ("prompt", [], "prompt"),
    ("prompt", [[]], ""),
    ("prompt", [1, "a"], "prompt"),
    ("prompt", [1.5], "prompt"),
    ("prompt", [-1], "prompt"),
    ("prompt", [True], "prompt"),
    ("prompt", [10**6], ""),
    ("prompt", [10**30], "prompt"),
    ("prompt", {"a": 1}, "prompt"),
    ("prompt", None, "prompt"),
    ("prompt", "word " * 2000, "prompt"),
    ("model", "", "model"),
    ("model", 5, "model"),
    ("max_tokens", 0, "max_tokens"),
    ("max_tokens", -1, "max_tokens"),
    ("max_tokens", 1.5, "max_tokens"),
    ("max_tokens", "5", "max_tokens"),
    ("max_tokens", True, "max_tokens"),
    ("max_tokens", 10**30, "max_tokens"),
    ("max_tokens", 5000, "max_tokens"),
    ("min_tokens", -1, "min_tokens"),
    ("min_tokens", 3, "min_tokens"),
    ("temperature", -0.1, "temperature"),
    ("temperature", 2.1, "temperature"),
    ("temperature", float("nan"), "temperature"),
    ("temperature", float("inf"), "temperature"),
    ("temperature", 10**400, "temperature"),
    ("temperature", "hot", "temperature"),
    ("temperature", True, "temperature"),
    ("top_p", 1.1, "top_p"),
    ("top_p", -1, "top_p"),
    ("top_k", -2, "top_k"),
    ("top_k", 1.5, "top_k"),
    ("min_p", 2, "min_p"),
    ("repetition_penalty", 0, "repetition_penalty"),
    ("presence_penalty", 3, "presence_penalty"),
    ("frequency_penalty", float("nan"), "frequency_penalty"),
    ("logit_bias", {"x": 1}, ""),
    ("logit_bias", {"-1": 1}, ""),
    ("logit_bias", {"999999": 1}, ""),
    ("logit_bias", {"1": 101}, "logit_bias"),
    ("logit_bias", [1], "logit_bias"),
    ("logit_bias", {str(i): 1 for i in range(400)}, ""),
    ("seed", 1.5, "seed"),
    ("seed", 10**30, "seed"),
    ("stop", 5, "stop"),
    ("stop", "", "stop"),
    ("stop", [""], "stop"),
    ("stop", ["a"] * 17, "stop"),
    ("stop_token_ids", [-1], "stop_token_ids"),
    ("stop_token_ids", [10**6], ""),
    ("n", 0, "n"),
    ("n", 129, "n"),
    ("best_of", 3, "best_of"),
    ("suffix", "end", "suffix"),
    ("logprobs", 21, "logprobs"),
    ("logprobs", True, "logprobs"),
    ("echo", "yes", "echo"),
    ("stream", 1, "stream"),
    ("stream_options", {"include_usage": True}, "stream_options"),
    ("prediction", {"type": "text", "content": "a"}, "prediction"),
    ("prediction", {"type": "content"}, "prediction"),
    ("prediction", {"type": "content", "content": [{"type": "image_url"}]}, "prediction.content"),
    ("speculative", {"k": 6}, "speculative"),
    ("speculative", {"k": -1}, "speculative"),
    ("speculative", {"rule": "block"}, "speculative"),
    ("priority", 1 << 40, "priority"),
]


@pytest.mark.parametrize(("field", "value", "param"), FIELDS, ids=lambda v: repr(v)[:24])
def test_fields_that_cannot_be(field: str, value: Any, param: str, call: Call) -> None:
    error = told(call, "/v1/completions", {**GOOD, field: value})
    assert (error["param"] or "") == param


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "king", "content": "a"}]}, "messages"),
        ({"messages": [{"role": "function", "content": "a"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
         "messages[0].content"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": 1}, "logprobs"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
        ({"max_completion_tokens": 5000}, "max_completion_tokens"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"functions": [{}]}, "functions"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"echo": True}, "echo"),
    ],
    ids=lambda v: repr(v)[:40],
)  # fmt: skip
def test_chats_that_cannot_be(extra: dict[str, Any], param: str, call: Call) -> None:
    assert told(call, "/v1/chat/completions", {**CHAT, **extra})["param"] == param


@pytest.mark.parametrize("item", [b"{}", b'""', b"[]", b"-1"])
@pytest.mark.parametrize("kind", [CompletionBody, ChatBody])
def test_a_million_faults_cost_no_more_than_one(kind: type[Wire], item: bytes) -> None:
    items = b",".join([item] * 300_000) + b",null"
    body = b'{"model": "mini", "prompt": [%b], "messages": [%b]}' % (items, items)
    began = time.thread_time()  # of this thread alone: others may be busy
    with pytest.raises(ApiError) as raised:
        parse(kind, body)
    assert len(raised.value.message) < 400
    assert time.thread_time() - began < 5


def test_unknown_fields_are_ignored_and_nulls_are_defaults(call: Call) -> None:
    nulls = dict.fromkeys(
        ("temperature", "top_p", "n", "stop", "seed", "logit_bias", "stream", "stream_options",
         "prediction", "logprobs", "echo", "best_of", "suffix", "speculative", "user")
    )  # fmt: skip
    answer = call("POST", "/v1/completions", {**GOOD, **nulls, "service_tier": {"x": [1]}})
    assert answer.status == 200, answer.body


def test_edges_that_are_fine(call: Call) -> None:
    for extra in (
        {"temperature": 1e-8},
        {"top_p": 0},
        {"top_k": -1},
        {"seed": -1},
        {"seed": -5},
        {"seed": -(1 << 63)},
        {"stop": []},
        {"tools": [], "tool_choice": "none"},
        {"response_format": {"type": "text"}},
        {"max_completion_tokens": 3},
    ):
        answer = call("POST", "/v1/chat/completions", {**CHAT, "max_tokens": 3, **extra})
        assert answer.status == 200, (extra, answer.body)


def test_the_wrong_model_and_the_wrong_place(call: Call) -> None:
    error = told(call, "/v1/completions", {**GOOD, "model": "gpt-4o"}, 404)
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    assert "mini" in error["message"]
    assert call("GET", "/v1/models/gpt-4o").status == 404
    assert told(call, "/v1/embeddings", {}, 404)["code"] == "unknown_url"
    answer = call("GET", "/v1/completions")
    assert (answer.status, answer.headers["allow"]) == (405, "POST")
    assert answer.json["error"]["type"] == "invalid_request_error"


def test_a_body_that_is_too_large(call: Call) -> None:
    for size in (100_001, 3_000_000):
        body = json.dumps(GOOD).encode().ljust(size)
        answer = call("POST", "/v1/completions", body)
        assert answer.status == 413
        assert "100000 bytes" in answer.json["error"]["message"]
    assert call("POST", "/v1/completions", json.dumps(GOOD).encode().ljust(100_000)).status == 200


def test_more_texts_than_can_ever_be_taken(app: Callable[..., Call]) -> None:
    small = app(queue=2)
    error = told(small, "/v1/completions", {**GOOD, "n": 7})
    assert "at most 6" in error["message"]
    assert small("POST", "/v1/completions", {**GOOD, "n": 6}).status == 200
    assert small.api.gate.inside == 0


def test_the_document_names_every_field(call: Call) -> None:
    paths = call("GET", "/openapi.json").json["paths"]
    body = paths["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]
    assert {"messages", "prediction", "speculative", "min_p"} <= set(body["schema"]["properties"])
    assert "$ref" not in json.dumps(body)

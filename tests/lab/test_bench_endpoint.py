"""Contestants behind an address: what they answer, and every way in which they do not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from lab.fake_server import _Server, fake_server

from paceline import ConfigError
from paceline.lab.bench_ask import Answer, Ask
from paceline.lab.bench_endpoint import EndpointPlayer
from paceline.lab.bench_record import Sampling
from paceline.lab.bench_spec import parse_contestant

ASK = Ask(Sampling(max_tokens=4, seed=3, stop=("x",)), timeout=20.0, prompt="p")


def asked(server: _Server, settings: str = "", ask: Ask = ASK) -> Answer:
    async def one() -> Answer:
        player = await EndpointPlayer.connect(parse_contestant(f"url:{server.url}{settings}", {}))
        try:
            return await player.ask(ask)
        finally:
            await player.close()

    return asyncio.run(one())


def test_a_text_is_streamed_with_its_counts_from_usage() -> None:
    with fake_server() as server:
        answer = asked(server)
        (body,) = server.bodies
    assert (answer.text, answer.error, answer.finish) == ("one two three four", None, "stop")
    assert (answer.prompt_tokens, answer.new_tokens, answer.event_tokens) == (7, 8, ())
    assert len(answer.event_times) == 4
    assert list(answer.event_times) == sorted(answer.event_times)
    assert answer.wall is not None
    assert answer.wall >= answer.event_times[-1]
    assert body["prompt"] == "p"
    assert (body["max_tokens"], body["seed"], body["stop"], body["temperature"]) == (4, 3, ["x"], 0)
    assert "top_k" not in body
    assert body["top_p"] == 1, "said, since a server may have another where it is not"


def test_messages_go_to_the_chat_and_settings_into_the_body(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("A_KEY", "secret")
    ask = Ask(
        Sampling(top_k=3, ignore_eos=True), 20.0, messages=({"role": "user", "content": "u"},)
    )
    with fake_server() as server:
        answer = asked(server, ',key-env=A_KEY,body.speculative={"enabled": false}', ask)
        (body,) = server.bodies
        assert server.keys == ["Bearer secret"]
    assert answer.text == "one two three four"
    assert body["messages"] == [{"role": "user", "content": "u"}]
    assert (body["top_k"], body["ignore_eos"]) == (3, True)
    assert body["speculative"] == {"enabled": False}


@pytest.mark.parametrize(
    ("model", "what", "text"),
    [
        ("error", "500", ""),
        ("drop", "the stream ended before the text did", "one two"),
        ("garbage", "JSON", "one two"),
        ("hang", "no end after 0.3 s", ""),
        ("stall", "no end after 10 s", "one two"),
    ],
)
def test_what_a_server_does_wrong_is_an_answer(model: str, what: str, text: str) -> None:
    # Long enough for the words that come before it.
    patience = {"hang": 0.3, "stall": 10.0}.get(model, 20.0)
    with fake_server() as server:
        answer = asked(server, f",model={model}", Ask(Sampling(), patience, prompt="p"))
    assert answer.error is not None
    assert what in answer.error
    assert "\n" not in answer.error
    assert answer.text == text
    assert answer.new_tokens is None


def test_a_server_without_usage_has_a_text_and_no_counts() -> None:
    with fake_server() as server:
        answer = asked(server, ",model=no-usage")
    assert (answer.error, answer.new_tokens, answer.text) == (None, None, "one two three four")


def refused(make: Callable[[], Awaitable[object]]) -> str:
    with pytest.raises(ConfigError) as told:
        asyncio.run(make())  # type: ignore[arg-type]
    return str(told.value)


def test_nobody_there_and_no_key_are_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_server() as server:
        gone = server.url
    nobody = parse_contestant(f"url:{gone},model=m", {})
    assert "nobody answers there" in refused(lambda: EndpointPlayer.connect(nobody))
    monkeypatch.delenv("NO_KEY", raising=False)
    keyless = parse_contestant(f"url:{gone},model=m,key-env=NO_KEY", {})
    assert "NO_KEY is not set" in refused(lambda: EndpointPlayer.connect(keyless))

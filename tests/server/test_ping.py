"""A stream that has nothing to send yet says that it is alive, where the operator wants that."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest
from tests.server.tools import PROMPT, Call, Served, serve_in_thread, until

from paceline import Engine, Event, NumericsError
from paceline.server.file import settle
from paceline.server.generation import Generation, Text
from paceline.server.settings import ServerSettings

PING = ": ping"
STREAM: dict[str, Any] = {
    "model": "mini", "prompt": PROMPT, "max_tokens": 30, "seed": 7, "ignore_eos": True,
    "stream": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def pinging(engine: Engine) -> Iterator[Served]:
    with serve_in_thread(engine, ServerSettings(name="mini", ping=0.02)) as served:
        yield served


@contextmanager
def asked(served: Served) -> Iterator[tuple[httpx2.Response, Iterator[str]]]:
    """The answer to STREAM as soon as it has begun, and its events."""
    with (
        httpx2.Client(base_url=served.url, timeout=30, trust_env=False) as client,
        client.stream("POST", "/v1/completions", json=STREAM) as answer,
    ):

        def events() -> Iterator[str]:
            held = ""
            for part in answer.iter_text():
                *whole, held = (held + part).split("\n\n")
                yield from whole
            assert held == ""

        yield answer, events()


def text_of(events: list[str]) -> str:
    assert events[-1] == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
    return "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])


def test_it_is_alive_before_its_first_token_and_between_two(
    pinging: Served, engine: Engine, app: Callable[..., Call]
) -> None:
    plain = app()("POST", "/v1/completions", {**STREAM, "stream": False}).json
    before = engine._driver.ask(engine.stats).emitted
    with engine._driver.held() as step, asked(pinging) as (answer, events):
        assert answer.status_code == 200
        assert [next(events) for _ in range(3)] == [PING] * 3
        until(lambda: (step(), engine.stats().emitted)[1] > before)
        begun = [next(event for event in events if event != PING)]
        while (event := next(events)) != PING:
            begun.append(event)
        until(lambda: (step(), engine.stats().running)[1] == 0)
        rest = [event for event in events if event != PING]
    assert text_of([*begun, *rest]) == plain["choices"][0]["text"]


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set, it lets the next text fail before anything was written."""
    now = threading.Event()

    async def events(self: Generation) -> AsyncIterator[tuple[Text, Event]]:
        await asyncio.to_thread(now.wait, 30)
        raise NumericsError("request r1: the target's logits are not finite")
        yield

    monkeypatch.setattr(Generation, "events", events)
    return now


def test_an_error_before_the_first_byte_has_its_status(
    engine: Engine, failing: threading.Event
) -> None:
    failing.set()
    with serve_in_thread(engine, ServerSettings(name="mini", ping=30)) as served:
        with asked(served) as (answer, _):
            assert answer.status_code == 500
            assert "not finite" in json.loads(answer.read())["error"]["message"]
        until(lambda: served.api.gate.inside == 0)


def test_an_error_behind_a_ping_is_a_frame(pinging: Served, failing: threading.Event) -> None:
    with asked(pinging) as (answer, events):
        assert (answer.status_code, next(events)) == (200, PING)
        failing.set()
        *_, told, done = events
    assert "not finite" in json.loads(told.removeprefix("data: "))["error"]["message"]
    assert done == "data: [DONE]"
    until(lambda: pinging.api.gate.inside == 0)


def test_time_that_runs_out_behind_a_ping(engine: Engine) -> None:
    with serve_in_thread(engine, ServerSettings(name="mini", ping=0.01, timeout=0.05)) as served:
        with engine._driver.held() as step, asked(served) as (answer, events):
            assert answer.status_code == 200
            for _ in range(6):  # 10 ms each: the time is over then, and the engine has not looked
                assert next(events) == PING
            finished = engine.stats().finished
            until(lambda: (step(), engine.stats().finished)[1] > finished)
            told, done = (event for event in events if event != PING)
        assert json.loads(told.removeprefix("data: "))["error"]["code"] == "timeout"
        assert done == "data: [DONE]"


def test_a_client_that_leaves_a_stream_that_pings(pinging: Served, engine: Engine) -> None:
    finished = engine._driver.ask(engine.stats).finished
    with engine._driver.held() as step:
        with asked(pinging) as (_, events):
            assert next(events) == PING
        until(lambda: (step(), engine.stats().finished)[1] == finished + 1)
    until(lambda: pinging.api.gate.inside == 0)


def test_whole_answers_have_none(engine: Engine, app: Callable[..., Call]) -> None:
    answer = app(ping=1e-3)("POST", "/v1/completions", {**STREAM, "stream": False})
    assert answer.json["usage"]["completion_tokens"] == 30


def test_the_file_sets_it(tmp_path: Any) -> None:
    file = tmp_path / "paceline.toml"
    file.write_text('target = "mini-target"\n[server]\nping = 15\n')
    assert settle(file, {}, "mini-target")[0].ping == 15
    assert settle(file, {"ping": 0.0}, "mini-target")[0].ping == 0
    assert settle(None, {}, "mini-target")[0].ping == 0

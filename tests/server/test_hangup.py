"""A client that leaves stops its texts, streaming or not, and others never notice."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from tests.server.tools import (
    PROMPT,
    Served,
    connected,
    request_bytes,
    serve_in_thread,
    until,
)

from paceline import Engine
from paceline.server import protocol
from paceline.server.generation import Generation
from paceline.server.serving import Server, bind
from paceline.server.settings import ServerSettings

LONG: dict[str, Any] = {
    "model": "mini",
    "prompt": PROMPT,
    "max_tokens": 480,
    "ignore_eos": True,
    "speculative": {"enabled": False},
}


def empty(served: Served, engine: Engine) -> bool:
    stats = engine.stats()
    return served.api.gate.inside == 0 and stats.running + stats.waiting + stats.pages_used == 0


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("n", [1, 3])
def test_a_client_that_hangs_up_cancels(
    stream: bool, n: int, served: Served, engine: Engine
) -> None:
    until(lambda: empty(served, engine))
    before = engine.stats()
    connection = connected(served.url)
    connection.sendall(request_bytes("/v1/completions", {**LONG, "stream": stream, "n": n}))
    if stream:
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
    else:
        until(lambda: engine.stats().running == n)
    connection.close()
    until(lambda: empty(served, engine))
    until(lambda: b'status="499"' in served.api.metrics.text())
    after = engine.stats()
    assert after.finished == before.finished + n
    assert after.emitted - before.emitted < 480 * n


@contextmanager
def narrow(engine: Engine, path: str, body: dict[str, Any]) -> Iterator[tuple[Server, Any]]:
    """A server and a client that has sent it a request; little fits between the two."""
    server, bound = Server(engine, ServerSettings(name="mini")), bind("127.0.0.1", 0)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    until(lambda: server.started)
    try:
        with bound, socket.socket() as reader:
            reader.settimeout(30)
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            reader.connect(bound.getsockname())
            reader.sendall(request_bytes(path, body))
            yield server, reader
    finally:
        server.should_exit = True
        thread.join(30)


LARGE = {**LONG, "logprobs": 20, "max_tokens": 150}  # 150 KB


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_reads_nothing_is_hung_up_on(
    stream: bool, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "UNREAD", 0.2)
    with narrow(engine, "/v1/completions", {**LARGE, "stream": stream}) as (server, _):
        until(lambda: server.api.gate.inside == 1)
        until(lambda: server.api.gate.inside == 0 and not server.server_state.connections)


def test_a_client_that_reads_slowly_has_its_answer(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "UNREAD", 2.0)
    with narrow(engine, "/v1/completions", LARGE) as (_, reader):
        head, _, content = reader.recv(4096).partition(b"\r\n\r\n")
        length = int(re.findall(rb"content-length: (\d+)", head)[0])
        while len(content) < length:
            time.sleep(0.06)
            more = reader.recv(4096)
            assert more, "hung up on"
            content += more
    assert json.loads(content)["usage"]["completion_tokens"] == 150


def test_while_it_waits_for_a_slot(served: Served, engine: Engine) -> None:
    until(lambda: empty(served, engine))
    first, second = connected(served.url), connected(served.url)
    first.sendall(request_bytes("/v1/completions", {**LONG, "n": 4}))
    until(lambda: engine.stats().running == 4)
    second.sendall(request_bytes("/v1/completions", LONG))
    until(lambda: engine.stats().waiting == 1)
    second.close()
    until(lambda: engine.stats().waiting == 0)
    assert engine.stats().running == 4
    first.close()
    until(lambda: empty(served, engine))


@pytest.fixture
def cancelled(monkeypatch: pytest.MonkeyPatch) -> list[Generation]:
    """The generations that the server has told the engine to end."""
    told: list[Generation] = []
    real = Generation.cancel

    def cancel(self: Generation) -> None:
        real(self)
        told.append(self)

    monkeypatch.setattr(Generation, "cancel", cancel)
    return told


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/warm"])
def test_while_its_prompt_is_read(path: str, cancelled: list[Generation]) -> None:
    """The engine is held between two steps, each of which reads a little of the prompt."""
    body = {"model": "mini", "prompt": "".join(f"a{n} = {n}\n" for n in range(70))}
    opened = Engine("mini-target", threads=1, dtype="float32", max_length=512, prefill_chunk=64)
    with opened as engine, serve_in_thread(engine, ServerSettings(name="mini")) as served:
        with engine._driver.held() as step, connected(served.url) as connection:
            connection.sendall(request_bytes(path, body))
            until(lambda: not engine._driver._commands.empty())  # the engine has been asked
            step()
            step()
            assert engine.stats().running == served.api.gate.inside == 1
            connection.close()
            until(lambda: len(cancelled) > 0)
            step()  # before anything else it does what was asked of it
            assert engine.stats().running == engine.stats().pages_used == 0
        until(lambda: empty(served, engine))
        stats = engine.stats()
    assert (stats.finished, stats.rounds, stats.emitted) == (1, 0, 0)
    assert stats.pages_cached  # what was read is not lost


@pytest.mark.parametrize("stream", [True, False])
def test_it_stops_within_two_rounds(
    stream: bool, served: Served, engine: Engine, cancelled: list[Generation]
) -> None:
    """Counted from when the server sees the client gone: the engine is held until then."""
    until(lambda: empty(served, engine))
    before = engine.stats()
    with engine._driver.held() as step, connected(served.url) as connection:
        connection.sendall(request_bytes("/v1/completions", {**LONG, "stream": stream}))
        until(lambda: (step(), engine.stats().rounds)[1] > before.rounds + 3)
        cancelled.clear()  # of whoever came before
        connection.close()
        until(lambda: len(cancelled) > 0)
        seen = engine.stats().rounds
        step()
        step()
        assert engine.stats().running == engine.stats().pages_used == 0
        assert engine.stats().rounds - seen <= 2
    until(lambda: empty(served, engine))
    assert engine.stats().emitted - before.emitted < 480


def test_a_request_that_never_comes_whole(served: Served, engine: Engine) -> None:
    with connected(served.url) as connection:
        connection.sendall(request_bytes("/v1/completions", LONG)[:-5])
        time.sleep(0.05)
    until(lambda: empty(served, engine))
    with connected(served.url) as connection:
        connection.sendall(request_bytes("/v1/completions", {**LONG, "max_tokens": 2}))
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")

"""A client that leaves stops its texts, streaming or not, and others never notice."""

from __future__ import annotations

import time
from typing import Any

import pytest
from tests.server.tools import PROMPT, Served, connected, request_bytes, until

from paceline import Engine

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
    until(lambda: empty(served, engine), 10)
    until(lambda: b'status="499"' in served.api.metrics.text())
    after = engine.stats()
    assert after.finished == before.finished + n
    assert after.emitted - before.emitted < 480 * n


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


def test_a_request_that_never_comes_whole(served: Served, engine: Engine) -> None:
    with connected(served.url) as connection:
        connection.sendall(request_bytes("/v1/completions", LONG)[:-5])
        time.sleep(0.05)
    until(lambda: empty(served, engine))
    with connected(served.url) as connection:
        connection.sendall(request_bytes("/v1/completions", {**LONG, "max_tokens": 2}))
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")

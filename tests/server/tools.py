"""A server in a thread, an application called in process, and a request over a bare socket."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx2
from fastapi import FastAPI

from paceline import Engine
from paceline.server.app import Api, create_app
from paceline.server.serving import Server, address, bind
from paceline.server.settings import ServerSettings

PROMPT = "def add(a, b):"
CHAT = [{"role": "user", "content": "Write a function that adds two numbers."}]


@dataclass(frozen=True)
class Served:
    url: str
    api: Api


@contextmanager
def serve_in_thread(engine: Engine, settings: ServerSettings) -> Iterator[Served]:
    server, bound = Server(engine, settings), bind("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    while not server.started:
        time.sleep(0.005)
    try:
        yield Served(address(bound), server.api)
    finally:
        server.should_exit = True
        thread.join(30)
        bound.close()


@dataclass(frozen=True)
class Answer:
    status: int
    headers: httpx2.Headers
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def frames(self) -> list[str]:
        """The data of a stream's events."""
        parts = self.body.decode().split("\n\n")
        assert parts.pop() == ""
        assert all(part.startswith("data: ") for part in parts)
        return [part.removeprefix("data: ") for part in parts]

    @property
    def chunks(self) -> list[Any]:
        assert self.frames[-1] == "[DONE]"
        return [json.loads(frame) for frame in self.frames[:-1]]


class Call:
    """Calls an application in this process, one request an event loop."""

    def __init__(self, app: FastAPI) -> None:
        self.app = app
        api = app.state.api
        assert isinstance(api, Api)
        self.api = api

    def __call__(
        self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None
    ) -> Answer:
        """body: bytes as they are, anything else as JSON."""
        return asyncio.run(self.ask(method, path, body, headers))

    async def ask(
        self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None
    ) -> Answer:
        content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        transport = httpx2.ASGITransport(self.app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
            answer = await client.request(method, path, content=content, headers=headers)
        return Answer(answer.status_code, answer.headers, answer.content)


def in_process(engine: Engine, settings: ServerSettings) -> Call:
    return Call(create_app(engine, settings))


def request_bytes(path: str, body: object) -> bytes:
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: test\r\ncontent-length: {len(content)}\r\n\r\n"
    return head.encode() + content


def connected(url: str) -> socket.socket:
    parts = urlsplit(url)
    assert parts.hostname is not None
    return socket.create_connection((parts.hostname, parts.port or 80), timeout=30)


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for a condition."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.01)

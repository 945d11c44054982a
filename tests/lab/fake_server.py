"""An OpenAI-compatible server over loopback that does what a test wants, right or wrong."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WORDS = ("one", " two", " three", " four")


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.released = threading.Event()
        self.delay = 0.0
        self.fails = 0  # so many answers to come are errors

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    """What happens is the model's name: good, error, hang, drop, garbage, mute, no-usage."""

    server: _Server

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        self.answer(200, {"object": "list", "data": [{"id": "good", "object": "model"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        self.server.keys.append(self.headers.get("Authorization"))
        model = body["model"]
        if model == "error" or self.server.fails > 0:
            self.server.fails -= 1
            self.answer(500, {"error": {"message": "out of order", "type": "server_error"}})
            return
        if model == "hang":
            self.server.released.wait(30)
            return
        time.sleep(self.server.delay)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        chat = self.path.endswith("/chat/completions")
        for place, word in enumerate(WORDS):
            self.event(self.chunk(word, chat))
            if place == 1 and model == "drop":
                return
            if place == 1 and model == "garbage":
                self.wfile.write(b"data: {this is no JSON\n\n")
                return
            if place == 1 and model == "stall":
                self.server.released.wait(30)
                return
        self.event(self.chunk("", chat, "stop"))
        if model != "no-usage":
            usage = {"prompt_tokens": 7, "completion_tokens": 8, "total_tokens": 15}
            self.event(self.chunk(None, chat) | {"choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")

    def chunk(self, text: str | None, chat: bool, finish: str | None = None) -> dict[str, Any]:
        part = {"delta": {"content": text}} if chat else {"text": text or "", "logprobs": None}
        kind = "chat.completion.chunk" if chat else "text_completion"
        choice = {"index": 0, "finish_reason": finish, **part}
        return {"id": "x", "object": kind, "created": 0, "model": "m", "choices": [choice]}

    def event(self, value: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(value)}\n\n".encode())
        self.wfile.flush()

    def answer(self, status: int, value: dict[str, Any]) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def fake_server() -> Iterator[_Server]:
    server = _Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        thread.join(10)
        server.server_close()

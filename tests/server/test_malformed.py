"""What no client should send, over a socket: an answer or a closed door, no hang, no growth."""

from __future__ import annotations

import json
from contextlib import suppress

import psutil
import pytest
from tests.server.tools import PROMPT, Served, connected

GOOD = {"model": "mini", "prompt": PROMPT, "max_tokens": 2}


def answer_to(served: Served, *parts: bytes, patience: float = 30.0) -> bytes:
    """Send, and read until the server closes or has said nothing for so many seconds."""
    got = b""
    with connected(served.url) as connection, suppress(OSError):  # it may break off at any point
        with suppress(ConnectionError):
            for part in parts:
                connection.sendall(part)
        connection.settimeout(patience)
        while data := connection.recv(1 << 16):
            got += data
    return got


def post(body: bytes, path: str = "/v1/completions", *headers: str) -> bytes:
    head = [f"POST {path} HTTP/1.1", "host: test", "connection: close", *headers]
    if not any(header.startswith("transfer-encoding") for header in headers):
        head.append(f"content-length: {len(body)}")
    return "\r\n".join([*head, "", ""]).encode() + body


def works(served: Served) -> None:
    answer = answer_to(served, post(json.dumps(GOOD).encode()))
    assert answer.startswith(b"HTTP/1.1 200"), answer[:200]


BODIES = [
    b"\xff" * 1000,
    b'{"model": "mini", "prompt": "' + b"\xe6\x97" * 100 + b'"}',
    b'{"model": "mini", "prompt": "a", "temperature": NaN}',
    b'{"model": "mini", "prompt": "a", "temperature": -Infinity}',
    b'{"model": "mini", "prompt": "a", "seed": 1e999}',
    b'{"model": "mini", "prompt": "a", "max_tokens": ' + b"9" * 5000 + b"}",
    b'{"model": "mini", "prompt": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    b'{"model": "mini", "prompt": [' + b"-1," * 200_000 + b"1]}",
    b'{"model": "mini", "prompt": "a", "prompt": 5}',
    b"PK\x03\x04" + bytes(2000),
]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: repr(body[:40]))
def test_bodies_that_are_wrong(body: bytes, served: Served) -> None:
    answer = answer_to(served, post(body))
    assert answer.startswith(b"HTTP/1.1 400"), answer[:200]
    assert b'"type":"invalid_request_error"' in answer


def test_fifty_megabytes_are_refused_whole_or_in_chunks(served: Served) -> None:
    block, count = b" " * (1 << 20), 50
    for _ in range(3):
        head = post(b"", "/v1/completions", f"content-length: {count << 20}").replace(
            b"content-length: 0\r\n", b""
        )
        answer = answer_to(served, head, *([block] * count))
        assert answer.startswith(b"HTTP/1.1 413"), answer[:200]
    before = psutil.Process().memory_info().rss
    chunk = b"%x\r\n%b\r\n" % (len(block), block)
    head = post(b"", "/v1/completions", "transfer-encoding: chunked")
    for _ in range(3):
        answer = answer_to(served, head, *([chunk] * count), b"0\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 413"), answer[:200]
    assert psutil.Process().memory_info().rss - before < 32 << 20
    works(served)


REQUESTS = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),  # TLS at a plain port
    b"GET /nothing HTTP/9.9\r\n\r\n",
    b"\r\n" * 5000,
    post(b"{}", "/v1/completions", "content-length: -5"),
    post(b"{}", "/v1/completions", "content-length: 99999999999999999999999"),
    post(b"zz\r\n{}\r\n0\r\n\r\n", "/v1/completions", "transfer-encoding: chunked"),
    b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
    b"GET /health/live HTTP/1.1\r\n" + b"x: y\r\n" * 100_000 + b"\r\n",
]


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda data: repr(data[:30]))
def test_requests_that_are_none(request_: bytes, served: Served) -> None:
    answer = answer_to(served, request_, patience=1.0)
    assert answer[:10] in (b"", b"HTTP/1.1 4"), answer[:200]
    works(served)


@pytest.mark.parametrize("where", ["a header", "a trailer"])
def test_a_line_without_an_end_is_not_kept(where: str, served: Served) -> None:
    """What has come of it lies in the parser until it is whole."""
    if where == "a header":
        begin = b"POST /v1/completions HTTP/1.1\r\nhost: test\r\nx: "
    else:
        begin = post(b"1\r\n{\r\n0\r\nx: ", "/v1/completions", "transfer-encoding: chunked")
    block, before = b"y" * (1 << 20), psutil.Process().memory_info().rss
    answer = answer_to(served, begin, *([block] * 40), patience=2.0)
    assert answer[:10] in (b"", b"HTTP/1.1 4"), answer[:200]
    assert psutil.Process().memory_info().rss - before < 16 << 20
    works(served)


def test_many_faults_leave_no_memory_behind(served: Served) -> None:
    """Every thread that reads large bodies comes to memory of its own first, and keeps it."""
    sizes: list[int] = []
    while len(sizes) < 5 or sizes[-1] - sizes[-5] >= 32 << 20:
        assert len(sizes) < 20, f"it grows and grows: {sizes}"
        for body in BODIES:
            answer_to(served, post(body))
        sizes.append(psutil.Process().memory_info().rss)
    assert served.api.gate.inside == 0

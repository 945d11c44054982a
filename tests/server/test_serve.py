"""The command itself: a process that serves, drains on SIGTERM and ends with status 0."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from tests.server.tools import PROMPT, until

from paceline.server.serving import bind

LONG: dict[str, Any] = {
    "model": "code",
    "prompt": PROMPT,
    "max_tokens": 160,
    "ignore_eos": True,
    "stream": True,
    "speculative": {"enabled": False},
}


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "paceline", "serve", "--port", "0", "--name", "code",
               "--threads", "1", "--dtype", "float32", "--fixed", "--drain", "50"]  # fmt: skip
    environment = {**os.environ, "PACELINE_API_KEYS": "sk-test"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment) as running:
        yield running
        running.kill()


def test_sigterm_under_load(process: subprocess.Popen[bytes]) -> None:
    assert process.stderr is not None
    ready = json.loads(process.stderr.readline())
    assert (ready["event"], ready["models"]) == ("ready", ["code"])
    headers = {"authorization": "Bearer sk-test"}
    answers: list[str] = []
    with httpx2.Client(
        base_url=ready["url"], headers=headers, timeout=60, trust_env=False
    ) as client:
        assert client.get("/health/ready").status_code == 200

        def ask() -> None:
            answers.append(client.post("/v1/completions", json=LONG).text)

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        running = 'paceline:num_requests_running{model_name="code"} 4.0'
        until(lambda: running in client.get("/metrics").text)
        process.send_signal(signal.SIGTERM)
        until(lambda: client.get("/health/ready").status_code == 503)
        refused = client.post("/v1/completions", json=LONG)
        assert refused.status_code == 503
        for thread in threads:
            thread.join(60)
    assert len(answers) == 6
    for text in answers:
        frames = text.split("\n\n")
        assert frames[-2:] == ["data: [DONE]", ""]
        assert json.loads(frames[-3][6:])["choices"][0]["finish_reason"] == "length"
    assert process.wait(20) == 0
    log = [json.loads(line) for line in process.stderr.read().splitlines()]
    events = [line["event"] for line in log]
    assert events.index("draining") < events.index("stopping")
    assert next(line for line in log if line["event"] == "stopping")["unfinished"] == 0
    assert "sk-test" not in json.dumps(log)


def test_a_port_that_is_taken_is_told_before_models_are_read() -> None:
    taken = bind("127.0.0.1", 0)
    taken.listen()
    command = [sys.executable, "-m", "paceline", "serve", "--port", str(taken.getsockname()[1])]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    taken.close()
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: cannot listen on 127.0.0.1:")
    assert done.stderr.count(b"\n") == 1

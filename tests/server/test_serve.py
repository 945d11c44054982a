"""The command itself: a process that serves, drains on SIGTERM and ends with status 0."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from helpers import tiny_checkpoint
from safetensors.torch import load_file, save_file
from tests.server.tools import PROMPT, until
from typer.testing import CliRunner

from paceline import Engine
from paceline.cli import app
from paceline.server import serving
from paceline.server.serving import Server, bind, settle
from paceline.server.settings import ServerSettings

LONG: dict[str, Any] = {
    "model": "code",
    "prompt": PROMPT,
    "max_tokens": 250,
    "ignore_eos": True,
    "stream": True,
    "speculative": {"enabled": False},
}


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "paceline", "serve", "--port", "0", "--name", "code",
               "--device", "cpu", "--threads", "1", "--dtype", "float32", "--fixed",
               "--drain", "50"]  # fmt: skip
    environment = {**os.environ, "PACELINE_API_KEYS": "sk-test"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment) as running:
        yield running
        running.kill()


def test_sigterm_under_load(process: subprocess.Popen[bytes]) -> None:
    assert process.stderr is not None
    ready = told(process, "ready")
    assert ready["models"] == ["code"]
    assert (ready["device"], ready["slots"]) == ("cpu", 4)
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
    assert process.wait(60) == 0
    log = [json.loads(line) for line in process.stderr.read().splitlines()]
    events = [line["event"] for line in log]
    assert events.index("draining") < events.index("stopping")
    assert next(line for line in log if line["event"] == "stopping")["unfinished"] == 0
    assert "sk-test" not in json.dumps(log)


@contextmanager
def started(*options: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "paceline", "serve", *options, "--device", "cpu"]
    environment = {**os.environ, "PACELINE_API_KEYS": ""}
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment) as running:
        try:
            yield running
        finally:
            running.kill()


def ready_url(process: subprocess.Popen[bytes]) -> str:
    url: str = told(process, "ready")["url"]
    return url


def told(process: subprocess.Popen[bytes], event: str) -> dict[str, Any]:
    """The first line of the log that tells of the event; every line before it is JSON, too."""
    assert process.stderr is not None
    for line in process.stderr:
        found: dict[str, Any] = json.loads(line)
        if found["event"] == event:
            return found
    raise AssertionError(f"the server ended without {event}")


def test_killed_and_started_again_then_told_twice_to_stop(tmp_path: Path) -> None:
    """Nothing that a killed server leaves behind is in the next one's way: not its port either."""
    port = free_port()
    file = tmp_path / "paceline.toml"
    file.write_text(
        'target = "mini-target"\ndrafter = "none"\ndtype = "float32"\nthreads = 1\n'
        f'[server]\nport = {port}\nname = "code"\ndrain = 50\nqueue = 3\n'
    )
    url = f"http://127.0.0.1:{port}"
    with httpx2.Client(base_url=url, timeout=60, trust_env=False) as client:
        with started("--config", str(file)) as first:
            assert ready_url(first) == url
            with client.stream(
                "POST", "/v1/completions", json={**LONG, "max_tokens": 1900}
            ) as stream:
                chunks = stream.iter_raw()
                next(chunks)
                first.send_signal(signal.SIGKILL)
                with pytest.raises(httpx2.HTTPError):
                    list(chunks)
            assert first.wait(60) == -signal.SIGKILL
        with started("--config", str(file)) as second:
            assert ready_url(second) == url
            assert client.get("/health/ready").status_code == 200
            short = client.post("/v1/completions", json={**LONG, "stream": False, "max_tokens": 3})
            assert short.json()["usage"]["completion_tokens"] == 3
            with client.stream(
                "POST", "/v1/completions", json={**LONG, "max_tokens": 1900, "n": 6}
            ) as cut:
                chunks = cut.iter_raw()  # kept: without it the client would hang up here
                next(chunks)
                second.send_signal(signal.SIGTERM)
                until(lambda: client.get("/health/ready").status_code == 503)
                second.send_signal(signal.SIGTERM)
                assert second.wait(60) == 1
            assert second.stderr is not None
            last = second.stderr.read().splitlines()[-1]
    assert last.startswith(b"error: stopped with texts unfinished"), last


def free_port() -> int:
    with bind("127.0.0.1", 0) as probe:
        port: int = probe.getsockname()[1]
        return port


MISTAKES = [
    ('targt = "mini-target"', "targt"),
    ('target = "mini-target"\nk = "many"', "k must be"),
    ('target = "mini-target"\n[server]\nprot = 8000', "did you mean 'port'"),
    ('target = "mini-target"\n[server]\nport = "http"', "server.port must be of type int"),
    ('target = "mini-target"\n[server]\nport = 70000', "port must lie from"),
    ('target = "mini-target"\n[server]\nqueue = -1', "queue must lie from"),
    ('target = "mini-target"\n[server]\ncors = [5]', "server.cors"),
    ('target = "mini-target"\n[server]\nlog_format = "xml"', "json or text"),
    ('target = "mini-target"\n[server]\napi_keys = "none.txt"', "none.txt: cannot be read"),
    ('target = "mini-target"\n[server]\nmax_priority = -1', "max_priority must lie from"),
    ('target = "mini-target"\n[server]\nmax_priority = true', "max_priority must be of type int"),
    ('target = "mini-target"\n[server]\nchat_template = "none"', "none: cannot be read"),
    ('target = "mini-target"\n[server]\nlong_answers = "fit"', "must be refuse or cut, not 'fit'"),
    (
        'target = "mini-target"\n[server]\nreasoning_field = "thinking"',
        "reasoning_field must be reasoning_content, reasoning or both",
    ),
    (
        'target = "mini-target"\n[server]\nchat_template_kwargs = "{}"',
        "server.chat_template_kwargs must be of type dict",
    ),
    ('target = "mini-target"\nserver = 5', "server"),
    ('target = "no/such/model"\n[server]\nport = 0', "no/such/model"),
    ("target = ", "not valid TOML"),
]


@pytest.mark.parametrize(("text", "words"), MISTAKES, ids=lambda value: repr(value)[:40])
def test_a_mistake_in_the_file_is_one_line(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "paceline.toml"
    file.write_text(text + "\n")
    result = CliRunner().invoke(app, ["serve", "--config", str(file)])
    assert result.exit_code == 2
    # What only the opening can find is told behind the line that it began.
    (line,) = (line for line in result.stderr.splitlines() if '"opening"' not in line)
    assert line.startswith("error: ")
    assert words in line


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--chat-template", "none.jinja"], "none.jinja: cannot be read"),
        (["--max-priority", "-1"], "max_priority must lie from"),
        (["--ping", "-1"], "ping must lie from"),
        (["--timeout", "-1"], "timeout must lie from"),
        (["--chat-template-kwargs", "[1]"], "chat_template_kwargs must be a JSON object, for"),
        (["--chat-template-kwargs", "{'a': 1}"], "chat_template_kwargs must be a JSON object, for"),
        (["--long-answers", "fit"], "long_answers must be refuse or cut"),
        (["--reasoning-field", "x"], "reasoning_field must be reasoning_content, reasoning or"),
        (["--max-gap", "0"], "max_gap must be above 0 seconds"),
    ],
)
def test_a_mistake_in_the_options_is_one_line(options: list[str], words: str) -> None:
    result = CliRunner().invoke(app, ["serve", "--port", "0", *options])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert words in result.stderr


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    file, keys = tmp_path / "paceline.toml", tmp_path / "keys"
    keys.write_text("sk-1\n")
    file.write_text(
        'target = "a"\n[server]\nname = ["x", "y"]\nhost = "0.0.0.0"\nport = 1\nqueue = 5\n'
        'api_keys = "keys"\ncors = "*"\ntimeout = 5\nlog_format = "text"\n'
        'sampling = "openai"\n'
    )
    settings, host, port = settle(file, {"port": 2, "name": [], "queue": None}, "a")
    assert (host, port) == ("0.0.0.0", 2)
    assert settings.names == ("x", "y")
    assert (settings.queue, settings.timeout, settings.drain) == (5, 5, 60)
    assert (settings.api_keys, settings.cors) == (("sk-1",), ("*",))
    assert (settings.log_format, settings.sampling) == ("text", "openai")
    file.write_text(
        'target = "a"\n[server]\nlong_answers = "cut"\nreasoning_field = "both"\n'
        "chat_template_kwargs = {enable_thinking = false, depth = 2}\n"
    )
    settings, _, _ = settle(file, {}, "a")
    assert settings.chat_template_kwargs == {"enable_thinking": False, "depth": 2}
    assert (settings.long_answers, settings.reasoning_field) == ("cut", "both")
    said = {"chat_template_kwargs": '{"depth": 3}', "reasoning_field": "reasoning"}
    settings, _, _ = settle(file, said, "a")
    assert (settings.chat_template_kwargs, settings.reasoning_fields) == (
        {"depth": 3},
        ("reasoning",),
    )
    settings, host, port = settle(None, {"name": ["z"]}, "a")
    assert (settings.names, host, port) == (("z",), "127.0.0.1", 8000)
    assert settle(None, {}, "a")[0].name == "a"


def test_a_port_that_is_taken_is_told_before_models_are_read() -> None:
    taken = bind("127.0.0.1", 0)
    taken.listen()
    command = [sys.executable, "-m", "paceline", "serve", "--port", str(taken.getsockname()[1])]
    done = subprocess.run(command, capture_output=True, timeout=300, check=False)
    taken.close()
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: cannot listen on 127.0.0.1:")
    assert done.stderr.count(b"\n") == 1


def test_the_opening_is_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory by part, a warning of the checkpoint and one of Python's, each a JSON object."""
    target = tiny_checkpoint(tmp_path / "target")
    extra = {"model.stray.weight": torch.zeros(1)}
    save_file(extra | load_file(target / "model.safetensors"), target / "model.safetensors")

    def run(engine: Engine, settings: ServerSettings, bound: socket.socket) -> bool:
        warnings.warn_explicit("a library's", UserWarning, "library.py", 1)
        server = Server(engine, settings)
        monkeypatch.setattr(server, "main_loop", lambda: asyncio.sleep(0))
        server.run(sockets=[bound])
        return True

    monkeypatch.setattr(serving, "run", run)
    options = ["--target", str(target), "--port", "0", "--threads", "1", "--k", "3", "--slots", "2",
               "--dtype", "float32", "--max-length", "200"]  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        done = CliRunner().invoke(app, ["serve", *options])
    assert done.exit_code == 0, done.stderr
    log = [json.loads(line) for line in done.stderr.splitlines()]
    events = {line["event"]: line for line in log}
    assert log[0]["event"] == "opening"
    opening = {"target": str(target), "drafter": "predicted+ngram", "draft": None, "device": "cpu"}
    assert opening.items() <= log[0].items()
    memory = next(name for name in events if name.startswith("2 texts of up to 200 positions"))
    assert "GiB" in memory
    assert "target" in memory
    spare = next(name for name in events if "tensors are not used" in name)
    assert events[spare]["level"] == "warning"
    assert any("a library's" in name for name in events)
    ready = events["ready"]
    served = {"drafter": "predicted+ngram", "k": 3, "slots": 2, "max_length": 200}
    assert served.items() <= ready.items()
    assert ready["cache_tokens"] == 512
    # What was there before is there again: the records of others go where they went.
    logger = logging.getLogger("paceline")
    assert (logger.handlers, logger.propagate) == ([], True)
    logger.warning("seen")
    assert "seen" in caplog.text

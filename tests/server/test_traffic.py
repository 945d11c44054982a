"""Finished requests in a file, for the lab to read: what is in it, and where it ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.server.tools import CHAT, PROMPT, Call, serve_in_thread

from paceline import ConfigError, Engine
from paceline.lab import fleet_traffic, workloads
from paceline.server import traffic
from paceline.server.serving import settle
from paceline.server.settings import ServerSettings

PLAIN = {"model": "mini", "prompt": PROMPT, "max_tokens": 5, "temperature": 0.5, "ignore_eos": True}
TALK = {"model": "mini", "messages": CHAT, "max_tokens": 3, "ignore_eos": True}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "traffic.jsonl"


def closed(call: Call, file: Path) -> list[dict[str, Any]]:
    """The lines, once all are written."""
    assert call.api.traffic is not None
    call.api.traffic.close()
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_the_lab_reads_what_was_asked(file: Path, app: Callable[..., Call]) -> None:
    call = app(record=file)
    pretty = json.dumps(PLAIN | {"seed": 3}, indent=1).encode()  # of several lines
    assert call("POST", "/v1/completions", pretty).status == 200
    assert call("POST", "/v1/chat/completions", TALK | {"stream": True}).frames[-1] == "[DONE]"
    first, second = closed(call, file)
    assert 0 <= first["at"] <= second["at"]
    assert (first["prompt_tokens"], first["new_tokens"]) == (6, 5)
    assert (first["body"], second["body"]) == (PLAIN | {"seed": 3}, TALK | {"stream": True})
    work = workloads.load(str(file))
    assert (work.format, work.skipped) == ("requests", ())
    assert [item.opening for item in work.items] == [PROMPT, CHAT]
    assert (work.items[0].wishes.temperature, work.items[0].wishes.seed) == (0.5, 3)
    arrivals = fleet_traffic.read(file)
    assert [(one.at, one.prompt, one.new) for one in arrivals] == [
        (line["at"], line["prompt_tokens"], line["new_tokens"]) for line in (first, second)
    ]
    assert file.stat().st_mode & 0o777 == 0o600


def test_all_is_written_when_the_server_stops(file: Path, engine: Engine) -> None:
    with serve_in_thread(engine, ServerSettings(name="mini", record=file)) as served:
        for _ in range(3):
            with httpx2.Client(trust_env=False, timeout=60) as client:
                assert client.post(f"{served.url}/v1/completions", json=PLAIN).status_code == 200
    assert [json.loads(line)["body"] for line in file.read_text().splitlines()] == [PLAIN] * 3
    assert served.api.traffic is not None
    assert not served.api.traffic._thread.is_alive()


def test_only_what_was_finished_is_in_it(file: Path, app: Callable[..., Call]) -> None:
    call = app(record=file, timeout=0.001)
    call("POST", "/v1/completions", PLAIN | {"max_tokens": 200})  # its time runs out
    call("POST", "/v1/completions", PLAIN | {"top_p": 2})
    call("POST", "/v1/completions", PLAIN | {"max_tokens": 0, "echo": True})
    call("POST", "/v1/warm", {"model": "mini", "prompt": PROMPT})
    assert closed(call, file) == []


def test_it_ends_at_its_size(
    file: Path, app: Callable[..., Call], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "paceline.server")
    call = app(record=file, record_limit=1)
    large = PLAIN | {"user": "x" * (600 << 10)}
    for _ in range(3):
        assert call("POST", "/v1/completions", large).status == 200
    assert len(closed(call, file)) == 1
    said = [record.getMessage() for record in caplog.records]
    assert (said.count("recording"), said.count("recording ended")) == (1, 1)


def test_what_cannot_be_written_in_time_is_left_out(
    file: Path, app: Callable[..., Call], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level("INFO", "paceline.server")
    monkeypatch.setattr(traffic, "_WAITING", 0)
    call = app(record=file)
    assert call("POST", "/v1/completions", PLAIN).status == 200
    assert closed(call, file) == []
    assert "recording left out" in [record.getMessage() for record in caplog.records]


def test_a_file_that_is_there_is_left_alone(file: Path, tmp_path: Path) -> None:
    file.write_text("mine")
    with pytest.raises(ConfigError, match="there is a file already"):
        ServerSettings(name="mini", record=file)
    with pytest.raises(ConfigError, match="name a new file"):
        traffic.TrafficFile(file, 1 << 20)
    with pytest.raises(ConfigError, match="No such file"):
        traffic.TrafficFile(tmp_path / "none" / "x", 1 << 20)
    table = tmp_path / "paceline.toml"
    table.write_text('[server]\nrecord = "new.jsonl"\nrecord_limit = 2\n')
    settings, _, _ = settle(table, {}, "mini")
    assert (settings.record, settings.record_limit) == (tmp_path / "new.jsonl", 2)
    assert file.read_text() == "mine"

"""What an operator relies on: keys, origins, the queue, deadlines, health, warming, the log."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.server.tools import CHAT, PROMPT, Answer, Call, in_process, until
from typer.testing import CliRunner

from paceline import ConfigError, Engine, EngineClosedError, Event, NumericsError, __version__
from paceline.cli import app as command
from paceline.server import serving
from paceline.server.file import settle
from paceline.server.gate import Gate
from paceline.server.generation import Generation, Text
from paceline.server.metrics import Metrics
from paceline.server.record import JsonLines
from paceline.server.serving import Server, bind
from paceline.server.settings import ServerSettings, read_keys
from paceline.types import SequenceStats

# A text that is the same in every run, and no shorter than it may be.
BODY: dict[str, Any] = {
    "model": "mini", "prompt": PROMPT, "max_tokens": 4, "seed": 7, "ignore_eos": True,
}  # fmt: skip
LONG: dict[str, Any] = {**BODY, "max_tokens": 480}
CHATTING: dict[str, Any] = {"messages": CHAT}


# --- keys and origins -------------------------------------------------------------------------


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[dict[str, Any]]]:
    """The log as it would be written."""
    caplog.set_level(logging.DEBUG)

    def read() -> list[dict[str, Any]]:
        return [json.loads(JsonLines().format(record)) for record in caplog.records]

    return read


def test_keys_are_asked_for_and_never_logged(
    app: Callable[..., Call], lines: Callable[[], list[dict[str, Any]]]
) -> None:
    call = app(api_keys=("sk-first", "sk-second"))
    for given in ("sk-first", "sk-second"):
        answer = call("POST", "/v1/completions", BODY, {"authorization": f"Bearer {given}"})
        assert answer.status == 200
    for header in (
        {},
        {"authorization": "Bearer sk-firs"},
        {"authorization": "Bearer sk-first-and-more"},
        {"authorization": "Basic sk-first"},
        {"authorization": "sk-first"},
        {"authorization": "Bearer "},
        {"authorization": "Bearer sk-wröng"},
    ):
        sent = {name: value.encode() for name, value in header.items()}
        answer = call("POST", "/v1/completions", BODY, sent)  # type: ignore[arg-type]
        assert answer.status == 401
        assert answer.json["error"]["code"] == "invalid_api_key"
        assert "sk-" not in answer.body.decode()
    assert call("GET", "/v1/models").status == 401
    assert call("GET", "/health/ready").status == 200
    assert "sk-" not in json.dumps(lines())
    assert "sk-" not in repr(call.api.settings)


def test_keys_come_from_a_file_and_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# team a\nsk-1\n\n  sk-2  \n")
    assert read_keys(file, {"PACELINE_API_KEYS": "sk-3, sk-1"}) == ("sk-3", "sk-1", "sk-2")
    assert read_keys(None, {}) == ()
    file.write_text("# none\n")
    with pytest.raises(ConfigError, match="no API key"):
        read_keys(file, {})
    with pytest.raises(ConfigError, match="cannot be read"):
        read_keys(tmp_path / "missing", {})


@pytest.mark.parametrize(
    "wrong",
    [{"queue": -1}, {"timeout": -1.0}, {"ping": -1.0}, {"max_body": 0}, {"drain": -1},
     {"metrics_prefix": "a-b"}, {"aliases": ("",)}, {"log_format": "xml"}, {"sampling": "vllm"}],
)  # fmt: skip
def test_settings_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        ServerSettings(name="mini", **wrong)


def test_pages_of_an_origin_may_ask(app: Callable[..., Call]) -> None:
    call = app(cors=("https://app.example",), api_keys=("sk-1",))
    asked = {
        "origin": "https://app.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    answer = call("OPTIONS", "/v1/completions", None, asked)
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == "https://app.example"
    refused = call("POST", "/v1/completions", BODY, {"origin": "https://app.example"})
    assert refused.status == 401
    assert refused.headers["access-control-allow-origin"] == "https://app.example"
    other = call("OPTIONS", "/v1/completions", None, {**asked, "origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers
    without = app()("POST", "/v1/completions", BODY, {"origin": "https://app.example"})
    assert "access-control-allow-origin" not in without.headers


# --- the queue, time, the end ------------------------------------------------------------------


def test_a_full_queue_says_when_to_come_again(app: Callable[..., Call], engine: Engine) -> None:
    call = app(queue=2)

    async def crowd() -> list[Answer]:
        with engine._driver.held():  # nobody is done before all have come
            asked = [
                asyncio.create_task(call.ask("POST", "/v1/completions", {**LONG, "max_tokens": 30}))
                for _ in range(9)
            ]
            async with asyncio.timeout(60):
                while sum(task.done() for task in asked) < 3:
                    await asyncio.sleep(0.001)
        return await asyncio.gather(*asked)

    answers = asyncio.run(crowd())
    assert sorted(answer.status for answer in answers) == [200] * 6 + [429] * 3
    full = next(answer for answer in answers if answer.status == 429)
    assert 1 <= int(full.headers["retry-after"]) <= 60
    assert full.json["error"]["code"] == "rate_limit_exceeded"
    assert call("POST", "/v1/completions", BODY).status == 200
    assert call.api.gate.inside == 0


def test_a_text_is_cut_at_its_time(
    app: Callable[..., Call], engine: Engine, monkeypatch: pytest.MonkeyPatch,
    lines: Callable[[], list[dict[str, Any]]],
) -> None:  # fmt: skip
    """The engine's clock is put forward when it has begun: a slow machine is no slower by it."""
    call, body = app(timeout=60), {**LONG, "speculative": {"enabled": False}}
    ahead, answers, before = [0.0], list[Answer](), engine.stats().emitted
    clock = SimpleNamespace(
        monotonic=lambda: time.monotonic() + ahead[0], perf_counter=time.perf_counter
    )
    monkeypatch.setattr("paceline.engine.loop.time", clock)

    def ask() -> None:
        answers.append(call("POST", "/v1/completions", body, {"x-request-id": "r-9"}))

    thread = threading.Thread(target=ask)
    with engine._driver.held() as step:
        thread.start()
        until(lambda: (step(), engine.stats().emitted)[1] > before)
        ahead[0] = 60.0
    thread.join(60)
    (choice,) = answers[0].json["choices"]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("length", "deadline")
    assert 0 < answers[0].json["usage"]["completion_tokens"] < 480
    (warned,) = (line for line in lines() if line["level"] == "warning")
    assert (warned["event"], warned["request_id"]) == ("a request's time ran out", "r-9")
    assert warned["tokens"] == answers[0].json["usage"]["completion_tokens"]
    assert "--timeout" in warned["remedy"]


def test_a_timeout_of_nothing_is_none(
    app: Callable[..., Call], engine: Engine, monkeypatch: pytest.MonkeyPatch,
    lines: Callable[[], list[dict[str, Any]]],
) -> None:  # fmt: skip
    """Also not of what reads a prompt alone."""
    given, submit = [], engine.submit

    def told(*arguments: Any, deadline: float | None, **named: Any) -> Any:
        given.append(deadline)
        return submit(*arguments, deadline=deadline, **named)

    monkeypatch.setattr(engine, "submit", told)
    call = app(timeout=0)
    for extra in ({}, {"echo": True, "logprobs": 1, "max_tokens": 0}):
        (choice,) = call("POST", "/v1/completions", {**BODY, **extra}).json["choices"]
        assert (choice["finish_reason"], choice["stop_reason"]) == ("length", None)
    assert given == [None]
    assert [line for line in lines() if line["level"] == "warning"] == []


@pytest.mark.parametrize("stream", [False, True])
def test_a_text_whose_time_is_over_before_it_began(
    stream: bool, app: Callable[..., Call], engine: Engine,
    lines: Callable[[], list[dict[str, Any]]],
) -> None:  # fmt: skip
    call = app(timeout=0.02)
    late: list[Answer] = []

    def ask() -> None:
        late.append(call("POST", "/v1/completions", {**LONG, "stream": stream}))

    with engine._driver.held():
        thread = threading.Thread(target=ask)
        thread.start()
        until(lambda: not engine._driver._commands.empty())  # the engine has been asked
        time.sleep(0.05)
    thread.join(30)
    assert (late[0].status, late[0].json["error"]["code"]) == (503, "timeout")
    assert late[0].headers["retry-after"]
    (warned,) = (line for line in lines() if line["level"] == "warning")
    assert (warned["request_id"], warned["tokens"]) == (late[0].headers["x-request-id"], 0)


def test_draining_refuses_what_comes_and_finishes_what_runs(app: Callable[..., Call]) -> None:
    call = app()
    assert call("GET", "/health/ready").json == {"status": "ready"}

    async def drained() -> tuple[Answer, Answer]:
        running = asyncio.create_task(
            call.ask("POST", "/v1/completions", {**LONG, "max_tokens": 99})
        )
        while not call.api.gate.inside:
            await asyncio.sleep(0.001)
        call.api.gate.draining = True
        refused = await call.ask("POST", "/v1/completions", BODY)
        await call.api.gate.emptied()
        return refused, await running

    refused, finished = asyncio.run(drained())
    assert (refused.status, refused.json["error"]["code"]) == (503, "unavailable")
    assert refused.headers["retry-after"]
    assert finished.json["usage"]["completion_tokens"] == 99
    assert call("GET", "/health/ready").status == 503
    assert call("GET", "/health/live").status == 200


@pytest.fixture(scope="module")
def mortal() -> Iterator[Engine]:
    """An engine that may stop without ending the server that other tests share."""
    with Engine("mini-target", threads=1, dtype="float32", max_length=128) as engine:
        yield engine


def test_an_engine_that_stopped_is_told_to_whoever_restarts(
    mortal: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anybody sends a request that shows it."""
    call = in_process(mortal, ServerSettings(name="mini"))
    gone = EngineClosedError("the engine stopped: the device is gone")
    assert call("GET", "/health/live").status == call("GET", "/health/ready").status == 200
    monkeypatch.setattr(mortal._driver, "_broken", gone)
    live = call("GET", "/health/live")
    assert (live.status, live.json) == (503, {"status": "broken", "reason": str(gone)})
    assert call("GET", "/health/ready").status == 503
    assert call("POST", "/v1/completions", BODY).status == 503
    assert 'draining{model_name="mini"} 1.0' in call("GET", "/metrics").body.decode()
    assert call.api.gate.inside == 0


def test_an_engine_that_stopped_ends_the_server(
    mortal: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, bound = Server(mortal, ServerSettings(name="mini")), bind("127.0.0.1", 0)
    with bound:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        until(lambda: server.started)
        monkeypatch.setattr(mortal._driver, "_broken", EngineClosedError("the device is gone"))
        thread.join(30)
        assert not thread.is_alive()
    assert not server.finished


def test_the_command_says_what_stopped_its_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(engine: Engine, *_: object) -> bool:
        engine._driver._broken = EngineClosedError("the engine stopped: the device is gone")
        return False

    monkeypatch.setattr(serving, "run", run)
    options = ["--target", "mini-target", "--drafter", "none", "--threads", "1", "--port", "0"]
    done = CliRunner().invoke(command, ["serve", *options])
    assert done.exit_code == 1
    assert "error: the engine stopped: the device is gone" in done.stderr


def test_a_failure_inside_is_a_500_without_its_details(
    app: Callable[..., Call],
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    lines: Callable[[], list[dict[str, Any]]],
) -> None:
    call = app()

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr(engine, "submit", broken)
    answer = call("POST", "/v1/completions", BODY, {"x-request-id": "r-1"})
    assert answer.status == 500
    assert answer.json["error"]["type"] == "server_error"
    assert answer.headers["x-request-id"] == "r-1"
    assert "secret" not in answer.body.decode()
    assert any("a secret" in line.get("trace", "") for line in lines())
    assert call.api.gate.inside == 0


def test_a_text_that_fails_midway(
    app: Callable[..., Call], monkeypatch: pytest.MonkeyPatch
) -> None:
    call, real = app(), Generation.events

    async def failing(self: Generation) -> AsyncIterator[tuple[Text, Event]]:
        async for text, event in real(self):
            yield text, event
            raise NumericsError("request r1: the target's logits are not finite")

    monkeypatch.setattr(Generation, "events", failing)
    whole = call("POST", "/v1/completions", LONG)
    assert (whole.status, whole.json["error"]["type"]) == (500, "server_error")
    assert "not finite" in whole.json["error"]["message"]
    stream = call("POST", "/v1/completions", {**LONG, "stream": True})
    assert stream.status == 200
    first, last = stream.chunks
    assert first["choices"][0]["text"]
    assert last == whole.json
    assert call.api.gate.inside == 0


# --- beyond OpenAI's ----------------------------------------------------------------------------


def test_warming_fills_the_prefix_cache(app: Callable[..., Call], engine: Engine) -> None:
    call = app()
    text = "".join(f"value_{n} = {n}\n" for n in range(40))
    prompt = engine.tokenizer.encode(text)
    warm = call("POST", "/v1/warm", {"model": "mini", "prompt": text})
    assert warm.json == {"object": "warm", "prompt_tokens": len(prompt)}
    before = engine.stats().prefix_hits
    call("POST", "/v1/completions", {**BODY, "prompt": text + "value_40"})
    assert engine.stats().prefix_hits - before >= len(prompt) // 64 * 64 > 128
    chat = call("POST", "/v1/warm", {"model": "mini", "messages": CHAT})
    assert chat.status == 200
    for wrong in ({}, {"prompt": "a", "messages": CHAT}, {"prompt": []}):
        assert call("POST", "/v1/warm", {"model": "mini", **wrong}).status == 400


def test_the_log_tells_of_each_request(
    app: Callable[..., Call], lines: Callable[[], list[dict[str, Any]]]
) -> None:
    call = app()
    began = time.monotonic()
    given = call("POST", "/v1/completions", BODY, {"x-request-id": "abc-1"})
    assert given.headers["x-request-id"] == "abc-1"
    made = call("POST", "/v1/completions", {**BODY, "temperature": 9}, {"x-request-id": "a b\tc"})
    assert len(made.headers["x-request-id"]) == 32
    call("GET", "/health/live")
    good, bad = (line for line in lines() if line["event"] == "request")
    assert good["request_id"] == "abc-1"
    assert (good["method"], good["path"], good["status"]) == ("POST", "/v1/completions", 200)
    assert (good["prompt_tokens"], good["tokens"], good["finish"]) == (6, 4, "length")
    assert 0 < good["queue"] < good["ttft"]
    assert 0 <= good["accepted"] <= good["drafted"]
    assert 0 < good["ttft"] <= good["seconds"] < time.monotonic() - began
    assert bad["status"] == 400
    assert bad["request_id"] == made.headers["x-request-id"]
    assert "temperature" in bad["error"]
    assert PROMPT not in json.dumps(lines())


def test_a_text_that_is_given_up_is_in_the_times_of_its_beginning(engine: Engine) -> None:
    metrics = Metrics(engine.stats, Gate(1, 0, lambda: None), "p", "m")
    left = Text(0, "", tokens=3, first_at=7.0, last_at=9.0, submitted=2.0, finish="cancelled")
    left.stats = SequenceStats(queue_seconds=4.0)
    never = Text(1, "", finish="deadline")
    ask = SimpleNamespace(prompts=((1, 2),))
    metrics.ended(SimpleNamespace(texts=[left, never], began=1.0, ask=ask))  # type: ignore[arg-type]
    told = metrics.text().decode()
    for name, seconds in (("time_to_first_token", 6.0), ("request_queue_time", 4.0),
                          ("request_prefill_time", 1.0)):  # fmt: skip
        assert f'p:{name}_seconds_sum{{model_name="m"}} {seconds}' in told
    assert 'p:e2e_request_latency_seconds_count{model_name="m"} 0.0' in told


def test_the_figures(app: Callable[..., Call], engine: Engine) -> None:
    call = app(metrics_prefix="vllm")
    call("POST", "/v1/completions", {**BODY, "max_tokens": 30})
    call("POST", "/v1/completions", {**BODY, "max_tokens": -1})
    call("POST", "/v1/warm", {"model": "mini", "prompt": "no text that anybody waits for"})
    engine._driver.ask(engine.stats)  # the text's last round is booked
    answer = call("GET", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    values = {}
    for line in answer.body.decode().splitlines():
        if not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            values[name] = float(value)
    stats, label = engine.stats(), '{model_name="mini"}'
    assert values[f"vllm:generation_tokens_total{label}"] == stats.emitted
    assert values[f"vllm:spec_decode_num_draft_tokens_total{label}"] == stats.drafted
    assert values[f"vllm:spec_decode_num_accepted_tokens_total{label}"] == stats.accepted
    place = 'vllm:spec_decode_num_accepted_tokens_per_pos_total{model_name="mini",position="%d"}'
    assert sum(stats.accepted_by_position) == stats.accepted > 0
    for n, accepted in enumerate(stats.accepted_by_position):
        assert values[place % n] == accepted
    drafter = "vllm:spec_decode_num_accepted_tokens_per_drafter_total"
    assert values[f'{drafter}{{drafter="model",model_name="mini"}}'] > 0
    assert values[f"vllm:draft_seconds_total{label}"] > 0
    assert values[f"vllm:verify_seconds_total{label}"] > 0
    assert values[f"vllm:time_to_first_token_seconds_count{label}"] == 1
    assert values[f"vllm:request_time_per_output_token_seconds_count{label}"] == 1
    assert (
        0 < values[f"vllm:wasted_seconds_total{label}"] < stats.draft_seconds + stats.verify_seconds
    )
    by_k = "vllm:spec_decode_num_rounds_per_k_total"
    assert sum(value for name, value in values.items() if name.startswith(by_k)) == stats.rounds
    for name in ("queue", "prefill", "decode"):
        assert values[f"vllm:request_{name}_time_seconds_count{label}"] == 1
    for counts, kind in (
        (stats.drafted_by_source, "draft"),
        (stats.evaluated_by_source, "evaluated"),
    ):
        name = f"vllm:spec_decode_num_{kind}_tokens_per_drafter_total"
        assert values[f'{name}{{drafter="model",model_name="mini"}}'] == counts["model"]
    assert values['vllm:request_success_total{finished_reason="length",model_name="mini"}'] == 1
    assert values['vllm:http_requests_total{path="/v1/completions",status="400"}'] == 1
    states = ("used", "cached", "free")
    pages = [values[f'vllm:kv_cache_pages{{model_name="mini",state="{s}"}}'] for s in states]
    assert sum(pages) == stats.pages


# --- what clients of other servers look for ----------------------------------------------------


def test_health_and_version_are_where_vllm_has_them(
    app: Callable[..., Call], lines: Callable[[], list[dict[str, Any]]]
) -> None:
    call = app(api_keys=("sk-1",))
    assert call("GET", "/health").status == 200
    assert call("GET", "/version").json == {"version": __version__}
    call.api.gate.draining = True
    assert call("GET", "/health").status == 503
    assert call("GET", "/health/live").status == 200
    assert [line.get("path") for line in lines() if line["event"] == "request"] == ["/version"]


@pytest.mark.parametrize(
    ("target", "names"),
    [
        ("org/name-7B", ("name-7B", "org/name-7B")),
        ("mini-target", ("mini-target",)),
        ("/srv/models/name", ("name",)),
        ("./models/name", ("name",)),
        ("../name", ("name",)),
        ("models/one/name", ("name",)),
    ],
)
def test_a_hub_id_is_a_name_too_and_a_path_is_none(
    target: str, names: tuple[str, ...], app: Callable[..., Call]
) -> None:
    assert settle(None, {}, target)[0].names == names
    assert settle(None, {"name": ["code"]}, target)[0].names == ("code",)
    call = app(aliases=names)
    assert call("POST", "/v1/completions", {**BODY, "model": names[-1]}).status == 200
    assert call("GET", f"/v1/models/{names[-1]}").json["id"] == names[-1]


@pytest.mark.parametrize(("host", "keys", "warned"), [
    ("0.0.0.0", (), True), ("0.0.0.0", ("sk-1",), False), ("127.0.0.1", (), False),
])  # fmt: skip
def test_a_server_open_to_everybody_is_warned_of(
    host: str, keys: tuple[str, ...], warned: bool, mortal: Engine,
    monkeypatch: pytest.MonkeyPatch, lines: Callable[[], list[dict[str, Any]]],
) -> None:  # fmt: skip
    server = Server(mortal, ServerSettings(name="mini", api_keys=keys))
    monkeypatch.setattr(server, "main_loop", lambda: asyncio.sleep(0))
    with bind(host, 0) as bound:
        server.run(sockets=[bound])
    told = [line for line in lines() if line["level"] == "warning"]
    assert len(told) == warned
    for line in told:
        assert line["event"].startswith("no API key is asked for")
        assert "--api-keys" in line["remedy"]


def test_priorities_are_the_operators_to_allow(app: Callable[..., Call]) -> None:
    for call, taken, refused in ((app(), (0, None), (1, -1)), (app(max_priority=5), (5, -5), (6,))):
        for path, text in (("completions", {"prompt": PROMPT}), ("chat/completions", CHATTING)):
            body = {"model": "mini", "max_tokens": 2, **text}
            for priority in taken:
                given = call("POST", f"/v1/{path}", {**body, "priority": priority})
                assert given.status == 200
            for priority in refused:
                answer = call("POST", f"/v1/{path}", {**body, "priority": priority})
                assert (answer.status, answer.json["error"]["param"]) == (400, "priority")
                assert f"not {priority}" in answer.json["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_usage_tells_of_the_prefix_cache(
    stream: bool, app: Callable[..., Call], engine: Engine
) -> None:
    call, texts = app(), [f"{stream} {word} = 1\n" * 40 for word in ("alpha", "beta")]
    options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}

    def counted(path: str, body: dict[str, Any]) -> tuple[int, int]:
        sent = {"model": "mini", "max_tokens": 2, "ignore_eos": True, **body, **options}
        answer = call("POST", path, sent)
        used = (answer.chunks[-1] if stream else answer.json)["usage"]
        return used["prompt_tokens"], used["prompt_tokens_details"]["cached_tokens"]

    size, cached = counted("/v1/completions", {"prompt": texts[0]})
    assert (cached, size > 128) == (0, True)
    held = (size - 1) // 64 * 64
    assert counted("/v1/completions", {"prompt": texts[0]}) == (size, held)
    # Of several prompts all that was there; of several choices of one what was there before.
    both = len(engine.tokenizer.encode(texts[1])) + size
    assert counted("/v1/completions", {"prompt": texts, "n": 3}) == (both, held)
    messages = [{"role": "user", "content": texts[0]}]
    size, cached = counted("/v1/chat/completions", {"messages": messages})
    assert cached == 0
    assert counted("/v1/chat/completions", {"messages": messages}) == (size, (size - 1) // 64 * 64)

"""The page without a browser: its files and headers, what it asks the server, its colours, and what
streamed chunks tell of their rounds."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from typing import Any

import pytest
from openai import OpenAI
from tests.server.tools import CHAT, PROMPT, Call, Served, until

from paceline import Engine, EngineStats, Event, RoundReport, SamplingParams
from paceline.server.load import KEPT, Load

TIMED: dict[str, Any] = {"stream": True, "stream_options": {"include_timing": True}}
BODY: dict[str, Any] = {"model": "mini", "prompt": PROMPT, "temperature": 0, "max_tokens": 40}


# --- chunks -----------------------------------------------------------------------------------


def test_chunks_tell_of_their_rounds(client: OpenAI, engine: Engine) -> None:
    (own,) = engine.generate(PROMPT, SamplingParams(max_tokens=40))
    chunks = list(client.completions.create(**BODY, **TIMED))
    told = [chunk.paceline for chunk in chunks]  # type: ignore[attr-defined]
    assert len(told) == own.stats.rounds
    assert ["".join(part["pieces"]) for part in told] == [c.choices[0].text for c in chunks]
    assert tuple(s for part in told for s in part["sources"]) == own.sources
    assert all(len(part["pieces"]) == part["tokens"] for part in told)
    rounds = [part["round"] for part in told]
    assert {r["k"] for r in rounds} == {engine.config.k}
    assert sum(r["drafted"] for r in rounds) == own.stats.drafted
    assert sum(r["accepted"] for r in rounds) == own.stats.accepted
    assert sum(r["evaluated"] for r in rounds) == own.stats.evaluated
    assert {r["drafter"] for r in rounds} == {"model"}
    times = [part["seconds"] for part in told]
    assert times == sorted(times)
    assert all(0 < r["seconds"] <= part["seconds"] for r, part in zip(rounds, told, strict=True))


def test_plain_rounds_have_no_drafts(client: OpenAI) -> None:
    extra = {"speculative": {"enabled": False}}
    chunks = list(client.completions.create(**BODY, **TIMED, extra_body=extra))
    rounds = [chunk.paceline["round"] for chunk in chunks]  # type: ignore[attr-defined]
    assert len(rounds) == 40
    assert {(r["k"], r["drafted"], r["drafter"]) for r in rounds} == {(0, 0, None)}


def test_a_chats_chunks_tell_the_same(client: OpenAI) -> None:
    create: Any = client.chat.completions.create
    options = {"model": "mini", "messages": CHAT, "temperature": 0, "max_tokens": 24}
    chunks = list(create(**options, **TIMED, extra_body={"min_tokens": 24}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert not hasattr(chunks[0], "paceline")
    told = [chunk for chunk in chunks if hasattr(chunk, "paceline")]
    assert sum(chunk.paceline["tokens"] for chunk in told) == 24
    for chunk in told:
        assert "".join(chunk.paceline["pieces"]) == (chunk.choices[0].delta.content or "")


def test_tokens_that_complete_no_character_have_their_chunk(client: OpenAI, engine: Engine) -> None:
    """Made to write the beginning of a character over and over: what a token began is shown with
    the token that ends it, and the last with the end of the text."""
    begun = engine.tokenizer.encode("🙂", add_special_tokens=False)[0]
    assert engine.tokenizer.decode([begun]) == "\ufffd"
    options = BODY | {"logit_bias": {str(begun): 100}}
    extra = {"speculative": {"enabled": False}}
    chunks = list(client.completions.create(**options, **TIMED, extra_body=extra))
    told = [chunk.paceline for chunk in chunks]  # type: ignore[attr-defined]
    assert sum(part["tokens"] for part in told) == 40
    pieces = [piece for part in told for piece in part["pieces"]]
    assert (told[0]["sources"], pieces[:2]) == (["target"], ["", "\ufffd"])
    assert "".join(pieces) == "".join(chunk.choices[0].text for chunk in chunks)
    done = client.completions.create(**options, extra_body=extra)
    assert "".join(pieces) == done.choices[0].text


def test_without_the_option_nothing_is_told(client: OpenAI) -> None:
    chunks = list(client.completions.create(**BODY, stream=True))
    assert not any(hasattr(chunk, "paceline") for chunk in chunks)


# --- the files --------------------------------------------------------------------------------


def test_the_page_and_its_files(app: Callable[..., Call]) -> None:
    call = app(api_keys=("sk-1",))  # the page itself needs no key: it asks for one
    page = call("GET", "/")
    assert page.status == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    names = re.findall(r'(?:src|href)="(page/[^"]+)"', page.body.decode())
    scripts = [name for name in names if name.endswith(".js")]
    for name in scripts:  # and what they import in turn
        text = call("GET", f"/{name}").body.decode()
        scripts += [f"page/{m}" for m in re.findall(r'from "\./([^"]+)"', text)
                    if f"page/{m}" not in scripts]  # fmt: skip
    for name in {*names, *scripts}:
        answer = call("GET", f"/{name}")
        assert answer.status == 200, name
        assert answer.headers["x-content-type-options"] == "nosniff"
        policy = answer.headers["content-security-policy"]
        assert "unsafe" not in policy
        assert "default-src 'none'" in policy
    lying = {entry.name for entry in (files("paceline.server") / "page").iterdir()}
    assert {f"page/{name}" for name in lying - {"index.html"}} == {*names, *scripts}


def test_a_file_that_is_known_is_not_sent_again(app: Callable[..., Call]) -> None:
    call = app()
    tag = call("GET", "/page/main.js").headers["etag"]
    for given in (tag, f'"other", W/{tag}'):
        again = call("GET", "/page/main.js", None, {"if-none-match": given})
        assert (again.status, again.body) == (304, b"")
    assert call("GET", "/page/main.js", None, {"if-none-match": '"other"'}).status == 200


@pytest.mark.parametrize("path", ["/page/none.js", "/page/..%2fapp.py", "/page/%2e%2e/app.py"])
def test_nothing_else_is_served(path: str, app: Callable[..., Call]) -> None:
    assert app()("GET", path).status == 404


def test_the_page_can_be_left_out(app: Callable[..., Call]) -> None:
    call = app(page=False)
    assert call("GET", "/").status == call("GET", "/page/main.js").status == 404
    assert call("GET", "/v1/paceline").status == 200


def test_nothing_comes_from_elsewhere() -> None:
    """No address of another host, but the name spaces of SVG, and nothing inline."""
    for entry in (files("paceline.server") / "page").iterdir():
        text = entry.read_text(encoding="utf-8")
        assert set(re.findall(r"https?://[^\s\"']+", text)) <= {"http://www.w3.org/2000/svg"}
        assert "innerHTML" not in text
        if entry.name.endswith(".html"):
            assert not re.search(r"\son\w+=|\sstyle=|<style|<script(?![^>]*\ssrc=)", text)


# --- what it asks -----------------------------------------------------------------------------


def test_what_is_served_is_told(app: Callable[..., Call], engine: Engine) -> None:
    about = app()("GET", "/v1/paceline").json
    assert (about["model"], about["k"], about["rule"]) == ("mini", engine.config.k, "match")
    assert (about["drafter"], about["draft"]) == ("predicted+model", "mini-draft")
    assert (about["chat"], about["adaptive"], about["max_length"]) == (True, False, 512)
    assert "/" not in about["target"]


def test_keys_guard_it(app: Callable[..., Call]) -> None:
    call = app(api_keys=("sk-1",))
    for path in ("/v1/paceline", "/v1/paceline/load"):
        assert call("GET", path).status == 401
        assert call("GET", path, None, {"authorization": "Bearer sk-1"}).status == 200


def test_the_load_counts_what_is_handed_out(app: Callable[..., Call]) -> None:
    call = app()
    load = call.api.watch.load
    call("POST", "/v1/completions", BODY)
    call("POST", "/v1/completions", BODY | {"speculative": {"enabled": False}})
    counts = replace(load._counts)
    assert counts.tokens == 80
    assert 0 < counts.accepted <= counts.evaluated < 40
    load.sample()
    told = call("GET", "/v1/paceline/load").json
    assert told["count"] == 1
    assert told["pages"] == call.api.engine.stats().pages
    (rate,), (acceptance,) = told["samples"]["tokens_per_second"], told["samples"]["acceptance"]
    assert rate > 0
    assert acceptance == round(counts.accepted / counts.evaluated, 4)
    for wrong in ("-1", "x", "٣", "1e3", "9" * 30, "²"):
        assert call("GET", f"/v1/paceline/load?after={wrong}").status == 400


def test_the_load_of_the_last_minutes() -> None:
    now = itertools.count(100.0, 2.0)  # two seconds a sample
    load = Load(lambda: EngineStats(running=1, waiting=2, pages=9), clock=lambda: next(now))
    assert load.told()["samples"]["running"] == []  # type: ignore[index]
    report = RoundReport(k=4, drafted=4, evaluated=2, accepted=1, drafter="model", seconds=0.1)
    load.saw(Event("r", (1, 2), "ab", ("model", "target"), round=report))
    load.saw(
        Event("r", (3,), "c", ("target",), round=replace(report, k=1, evaluated=0, accepted=0))
    )
    load.saw(Event("r", (), "", (), finish="cancelled"))
    load.sample()
    load.sample()
    samples: Any = load.told()["samples"]
    assert samples["tokens_per_second"] == [1.5, 0.0]
    assert samples["acceptance"] == [0.5, None]
    assert samples["k"] == [2.5, None]
    assert (samples["running"], samples["waiting"]) == ([1, 1], [2, 2])

    def length(after: int) -> int:
        told: Any = load.told(after)
        return len(told["samples"]["k"])

    assert [length(after) for after in (0, 1, 2, 3)] == [2, 1, 0, 2]
    for _ in range(KEPT):
        load.sample()
    assert (load.count, length(0), length(1), length(KEPT)) == (KEPT + 2, KEPT, KEPT, 2)


def test_a_sample_a_second_while_the_server_runs(served: Served) -> None:
    load = served.api.watch.load
    before = load.count
    until(lambda: load.count > before)


# --- colours ----------------------------------------------------------------------------------

SOURCES = ("model", "ngram", "predicted", "forced", "other")
TEXT = [("ink", "ground"), ("ink", "sheet"), ("quiet", "ground"), ("quiet", "sheet"),
        ("on-accent", "accent"), ("good", "good-ground"), ("good", "ground"), ("bad", "bad-ground"),
        ("bad", "ground"), *((name, f"{name}-ground") for name in SOURCES)]  # fmt: skip
# Lines and edges that say something: WCAG asks for 3.
LINES = [("trace-one", "sheet"), ("trace-two", "sheet"), ("field-edge", "sheet"),
         ("focus", "ground"), ("focus", "sheet"), ("accent", "sheet")]  # fmt: skip


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colours_have_contrast(scheme: int) -> None:
    text = (files("paceline.server") / "page" / "palette.css").read_text()
    blocks = re.findall(r":root \{(.*?)\}", text, re.S)
    assert len(blocks) == 2
    palette = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", blocks[scheme]))
    assert len(palette) == len(re.findall(r"--[\w-]+:", blocks[0]))
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    low = [(a, b) for a, b in TEXT if contrast(palette[a], palette[b]) < 4.5]
    low += [(a, b) for a, b in LINES if contrast(palette[a], palette[b]) < 3]
    assert not low

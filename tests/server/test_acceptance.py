"""What an answer says of its drafts and, chunk by chunk, of its tokens."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from tests.server.tools import CHAT, PROMPT, Call

from paceline import Engine, SamplingParams, SequenceStats
from paceline.server.acceptance import acceptance
from paceline.server.gate import Gate
from paceline.server.generation import Text
from paceline.server.metrics import Metrics

BODY: dict[str, Any] = {"model": "mini", "prompt": PROMPT, "temperature": 0, "max_tokens": 40}


def test_the_counts_of_several_texts() -> None:
    one = SequenceStats(rounds=4, drafted=9, evaluated=7, accepted=5)
    one.evaluated_by_position, one.accepted_by_position = [3, 2, 2], [2, 2, 1]
    other = SequenceStats(rounds=2, drafted=3, evaluated=2, accepted=1)
    other.evaluated_by_position, other.accepted_by_position = [1, 1], [1, 0]
    assert acceptance([one, other, SequenceStats(rounds=1)]) == {
        "speculative_decoding": {
            "mean_acceptance_length": 10 / 4,
            "draft_acceptance_rate": 6 / 12,
            "acceptance_rate": 6 / 9,
            "acceptance_histogram": [1, 1, 1, 1],
            "num_spec_steps": 4,
            "num_rounds": 7,
            "num_draft_tokens": 12,
            "num_evaluated_draft_tokens": 9,
            "num_accepted_draft_tokens": 6,
            "evaluated_per_position": [4, 3, 2],
            "accepted_per_position": [3, 2, 1],
        }
    }


@pytest.mark.parametrize("stats", [[], [SequenceStats(rounds=3)]])
def test_where_nothing_was_drafted(stats: list[SequenceStats]) -> None:
    told: Any = acceptance(stats)["speculative_decoding"]
    assert told["acceptance_rate"] is told["draft_acceptance_rate"] is None
    assert told["mean_acceptance_length"] is None
    assert (told["num_spec_steps"], told["acceptance_histogram"]) == (0, [0])


@pytest.mark.parametrize("counted", [True, False])
def test_an_answer_tells_of_its_drafts(
    counted: bool, app: Callable[..., Call], engine: Engine
) -> None:
    call = app()
    (own,) = engine.generate(PROMPT, SamplingParams(max_tokens=40))
    sent = {**BODY, "include_metrics": True}
    whole = call("POST", "/v1/completions", sent).json
    assert whole["metrics"] == acceptance([own.stats])
    told = whole["metrics"]["speculative_decoding"]
    assert told["num_accepted_draft_tokens"] + told["num_rounds"] == 40
    assert sum(told["acceptance_histogram"]) == told["num_spec_steps"] > 0
    options = {"stream_options": {"include_usage": True}} if counted else {}
    *chunks, last = call("POST", "/v1/completions", {**sent, "stream": True, **options}).chunks
    assert (last["choices"], last["metrics"]) == ([], whole["metrics"])
    assert last.get("usage") == (whole["usage"] if counted else None)
    assert all("metrics" not in chunk for chunk in chunks)


def test_of_all_its_texts_and_only_where_asked(app: Callable[..., Call]) -> None:
    call = app()
    body = {"model": "mini", "messages": CHAT, "max_tokens": 9, "min_tokens": 9, "n": 2, "seed": 7}
    for asked in ({}, {"include_metrics": False}, {"include_metrics": None}):
        assert "metrics" not in call("POST", "/v1/chat/completions", {**body, **asked}).json
        streamed = call("POST", "/v1/chat/completions", {**body, **asked, "stream": True}).chunks
        assert all("metrics" not in chunk and chunk["choices"] for chunk in streamed)
    two = call("POST", "/v1/chat/completions", {**body, "include_metrics": True}).json
    told = two["metrics"]["speculative_decoding"]
    assert told["num_accepted_draft_tokens"] + told["num_rounds"] == 18
    wrong = call("POST", "/v1/chat/completions", {**body, "include_metrics": 1})
    assert (wrong.status, wrong.json["error"]["param"]) == (400, "include_metrics")


# --- the counts so far ------------------------------------------------------------------------


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("n", [1, 2])
def test_chunks_count_the_tokens_so_far(n: int, last: bool, app: Callable[..., Call]) -> None:
    options = {"continuous_usage_stats": True, "include_usage": last}
    sent = {**BODY, "n": n, "stream": True, "stream_options": options}
    chunks = app()("POST", "/v1/completions", sent).chunks
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert 0 < counts[0] < counts[-1] == 40 * n
    assert len(set(counts)) < counts[-1]  # fewer chunks than tokens: what counting them would miss
    for chunk in chunks:
        used = chunk["usage"]
        assert used["total_tokens"] == used["prompt_tokens"] + used["completion_tokens"]
    assert bool(chunks[-1]["choices"]) != last
    assert ("completion_tokens_details" in chunks[-1]["usage"]) == last


def test_every_chunk_of_a_round_and_beside_its_times(app: Callable[..., Call]) -> None:
    options = {"continuous_usage_stats": True, "include_timing": True}
    body = {"model": "mini", "messages": CHAT, "max_tokens": 20, "min_tokens": 20, "stream": True}
    chunks = app()("POST", "/v1/chat/completions", {**body, "stream_options": options}).chunks
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert all(chunk["usage"]["completion_tokens"] for chunk in chunks)
    timed = [chunk for chunk in chunks if "paceline" in chunk]
    written = 0
    for chunk in timed:
        written += chunk["paceline"]["tokens"]
        assert chunk["usage"]["completion_tokens"] == written
    assert written == 20


# --- the server's figures ---------------------------------------------------------------------


def test_a_histogram_of_texts(engine: Engine) -> None:
    metrics = Metrics(engine.stats, Gate(1, 0, lambda: None), "p", "m")
    texts = [Text(n, "", tokens=3, first_at=7.0, last_at=9.0, finish="stop") for n in range(4)]
    texts[0].stats = SequenceStats(evaluated=4, accepted=3)
    texts[1].stats = SequenceStats(evaluated=4, accepted=1)
    texts[2].finish, texts[2].stats = "cancelled", SequenceStats(evaluated=4, accepted=4)
    ask = SimpleNamespace(prompts=())
    metrics.ended(SimpleNamespace(texts=texts, began=1.0, ask=ask))  # type: ignore[arg-type]
    name = "p:request_spec_decode_acceptance_rate"
    found = dict(re.findall(rf"{name}_(\w+{{[^}}]*}}) (\S+)", metrics.text().decode()))
    assert found['sum{model_name="m"}'] == "1.0"
    assert found['count{model_name="m"}'] == "2.0"
    assert found['bucket{le="0.3",model_name="m"}'] == "1.0"

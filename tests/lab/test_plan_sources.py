"""Measurements out of a server's metrics and out of a bench run's records."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from plan_tools import machine

from paceline import ConfigError
from paceline.lab.bench_record import (
    Contestant,
    Load,
    Measurement,
    Pass,
    Records,
    RoundCounts,
    Sampling,
    TimeSpent,
    to_line,
)
from paceline.lab.plan_acceptance import Counts
from paceline.lab.plan_answer import Question, answer
from paceline.lab.plan_bench import gather, read
from paceline.lab.plan_metrics import parse
from paceline.lab.plan_metrics import read as read_metrics
from paceline.lab.plan_model import Traffic, predict, rounds_for

OWN = """# HELP paceline:spec_decode_num_drafts_total Drafts verified
# TYPE paceline:spec_decode_num_drafts_total counter
paceline:spec_decode_num_drafts_total{model_name="m"} 100.0
paceline:spec_decode_num_accepted_tokens_per_pos_total{model_name="m",position="0"} 80.0
paceline:spec_decode_num_accepted_tokens_per_pos_total{model_name="m",position="1"} 40.0
paceline:spec_decode_num_evaluated_tokens_per_pos_total{model_name="m",position="0"} 100.0
paceline:spec_decode_num_evaluated_tokens_per_pos_total{model_name="m",position="1"} 78.0
paceline:spec_decode_num_evaluated_tokens_per_pos_total{model_name="m",position="2"} 30.0
"""
VLLM = """vllm:spec_decode_num_drafts_total{engine="0",model_name="m"} 60.0
vllm:spec_decode_num_drafts_total{engine="1",model_name="m"} 40.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="m",position="0"} 50.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="1",model_name="m",position="0"} 30.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="m",position="1"} 40.0
vllm:num_requests_running{model_name="m"} NaN-ish
"""


def test_a_server_of_this_package_counts_what_was_tested() -> None:
    assert parse(OWN)[0].total == Counts((100, 78, 30), (80, 40, 0))


def test_vllm_tested_what_was_accepted_before() -> None:
    assert parse(VLLM)[0].total == Counts((100, 80), (80, 40))


@pytest.mark.parametrize("text", ["", "vllm:num_requests_running 3\n", "<html>"])
def test_metrics_without_drafts(text: str) -> None:
    with pytest.raises(ValueError, match="drafts nothing"):
        parse(text)


def test_metrics_of_a_server_that_has_written_nothing_yet() -> None:
    with pytest.raises(ValueError, match="come again"):
        parse('x:spec_decode_num_accepted_tokens_per_pos_total{position="0"} 0.0\n')


@pytest.mark.parametrize(
    ("rounds", "said"),
    [
        ({0: 24, 4: 90}, None),  # of prompts that were warmed
        ({}, None),  # vLLM does not say
        ({0: 3, 4: 90}, None),  # rounds before a first draft, of texts written alone
        ({0: 40, 4: 90}, "(0, 4)"),  # more than its five texts and three preemptions explain
        ({1: 0, 2: 30, 4: 90}, "(2, 4)"),
    ],
)
def test_a_server_that_chooses_k_is_doubted(rounds: dict[int, int], said: str | None) -> None:
    lines = [f'paceline:spec_decode_num_rounds_per_k_total{{model_name="m",k="{k}"}} {count}.0'
             for k, count in rounds.items()]  # fmt: skip
    lines += ['paceline:request_success_total{finished_reason="stop",model_name="m"} 4.0',
              'paceline:num_requests_running{model_name="m"} 1.0',
              'paceline:num_preemptions_total{model_name="m"} 3.0',
              'paceline:http_requests_total{path="/v1/warm",status="200"} 6.0']  # fmt: skip
    accepted, doubts = parse(OWN + "\n".join(lines))
    assert accepted.total == Counts((100, 78, 30), (80, 40, 0))
    assert len(doubts) == (said is not None)
    assert said is None or (said in doubts[0] and "too high" in doubts[0])


@contextmanager
def serving(body: str, status: int) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/metrics" else 404)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_metrics_by_url_and_by_file(tmp_path: Path) -> None:
    with serving(OWN, 200) as url:
        assert read_metrics(url) == read_metrics(f"{url}/metrics")
    file = tmp_path / "metrics.txt"
    file.write_text(VLLM)
    assert read_metrics(str(file))[0].total == Counts((100, 80), (80, 40))


def test_metrics_that_are_not_there(tmp_path: Path) -> None:
    with serving("no", 500) as url, pytest.raises(ConfigError, match="no metrics there"):
        read_metrics(url)
    with pytest.raises(ConfigError, match="no metrics there"):
        read_metrics("http://127.0.0.1:9/metrics")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_metrics(str(tmp_path / "none"))


# --- bench records ------------------------------------------------------------------------------


def records(alpha: float = 0.8) -> Records:
    """A run of plain decoding and two K at two loads, on a machine of known costs."""
    found, made, new = Records(), machine(), 200
    for k in (0, 2, 4):
        name = f"k={k}" if k else "plain"
        who = Contestant(name, "paceline", "family", plain=not k, model="org/target",
                         drafter="model" if k else "none", draft="org/draft" if k else None, k=k,
                         rule="match", adaptive=False)  # fmt: skip
        for load in (1, 8):
            law = (alpha,) * k
            rounds = rounds_for(new, law, k)
            point = predict(made, Traffic(100.0, new), load, k, law)
            texts, count = [], 8 * load
            reach, tested, stood = rounds, [], []
            for _ in range(k):
                tested.append(round(reach))
                reach *= alpha
                stood.append(round(reach))
            counts = RoundCounts(round(rounds), sum(tested), sum(tested), sum(stood),
                                 tuple(tested), tuple(stood))  # fmt: skip
            spent = TimeSpent(0.0, rounds * made.costs.draft(load, k, 200.0),
                              rounds * made.costs.verify(load, k, 200.0), 0.0, 0.0)  # fmt: skip
            where = Load("closed", load)
            for number in range(count):
                made_of = f"{name} {load}"
                text = Measurement(who, f"p{number}", "all", 0, where, 0, made_of, Sampling())
                text = replace(text, prompt_tokens=100, new_tokens=new, ttft=0.1, wall=1.0)
                texts.append(replace(text, rounds=counts, spent=spent))
            found.measurements += texts
            seconds = count * new / point.tok_s
            found.passes.append(Pass(name, where, 0, f"{name} {load}", count, seconds))
    return found


def test_a_bench_run_is_planned_from() -> None:
    measured, left_out = gather(records(), "run")
    assert left_out == []
    assert measured.target == "org/target"
    plan = answer(measured, Question((1, 8), draws=20))
    for load, k in ((1, 2), (1, 4), (8, 2), (8, 4)):
        made, law = machine(), (0.8,) * k
        want = predict(made, Traffic(100.0, 200.0), load, k, law).tok_s
        want /= predict(made, Traffic(100.0, 200.0), load, 0, ()).tok_s
        got = next(s for s in plan.settings if (s.point.load, s.point.k) == (load, k))
        assert got.speed_up == pytest.approx(want, rel=0.06)


def test_what_cannot_be_used_is_named_and_the_rest_stands() -> None:
    found = records()
    first = found.measurements[0]
    for who in (
        replace(first.contestant, name="vllm", engine="url"),
        replace(first.contestant, name="adaptive", k=5, adaptive=True),
    ):
        found.measurements.append(replace(first, contestant=who))
    found.measurements.append(
        replace(first, contestant=replace(first.contestant, name="bare"), rounds=None)
    )
    measured, left_out = gather(found, "run")
    assert len(measured.drafters) == 1
    assert sorted(line.split(":")[0] for line in left_out) == ["adaptive", "bare", "vllm"]


def test_of_a_resumed_run_every_text_that_counts_has_its_time() -> None:
    found = records()
    whole, _ = gather(found, "run")
    wanted = {(run.load, run.k): run for run in whole.drafters[0].runs}
    # The first half of what plain decoding did at 8 was done before, in a pass that was cut off.
    own = [m for m in found.measurements if m.pass_id == "plain 8"]
    before = [replace(m, pass_id="cut off", new_tokens=150) for m in own[: len(own) // 2]]
    found.measurements = [*before, *found.measurements]
    # A pass of K = 2 at 8 was repeated, since a text of it had failed: it took its time again.
    again = [m for m in found.measurements if m.pass_id == "k=2 8"]
    found.measurements += [replace(m, pass_id="again") for m in again]
    (first,) = [p for p in found.passes if p.pass_id == "k=2 8"]
    found.passes.append(replace(first, pass_id="again", seconds=2 * first.seconds))
    measured, left_out = gather(found, "run")
    got = {(run.load, run.k): run for run in measured.drafters[0].runs}
    assert got[8, 0] == wanted[8, 0]
    assert got[8, 2].texts == wanted[8, 2].texts
    assert got[8, 2].tok_s == pytest.approx(wanted[8, 2].tok_s * 2 / 3)
    assert len(left_out) == 1
    assert f"{len(before)} texts left out" in left_out[0]
    # Of the last measurements of a text, the last whose pass has ended.
    found = records()
    found.measurements += before
    assert {(r.load, r.k): r for r in gather(found, "run")[0].drafters[0].runs} == wanted


def test_a_run_without_plain_decoding_or_without_drafts() -> None:
    found = records()
    found.measurements = [m for m in found.measurements if m.contestant.k]
    with pytest.raises(ConfigError, match="no plain decoding"):
        gather(found, "run")
    found = records()
    found.measurements = [m for m in found.measurements if not m.contestant.k]
    with pytest.raises(ConfigError, match="no contestant with a fixed K"):
        gather(found, "run")


def test_a_run_on_disk_with_one_bad_line(tmp_path: Path) -> None:
    found = records()
    lines = [to_line(record) for record in (*found.measurements, *found.passes)]
    (tmp_path / "records.jsonl").write_text("\n".join([*lines[:3], "{", *lines[3:]]) + "\n")
    measured, problems = read(tmp_path)
    assert len(measured.drafters[0].runs) == 6
    assert problems == [problems[0]]
    assert "line 4" in problems[0]
    with pytest.raises(ConfigError, match="there is no such run"):
        read(tmp_path / "none")


def test_two_targets_are_not_one_plan() -> None:
    found = records()
    last = found.measurements[-1].contestant
    found.measurements = [
        replace(m, contestant=replace(m.contestant, model="org/other"))
        if m.contestant == last
        else m
        for m in found.measurements
    ]
    with pytest.raises(ConfigError, match="several targets"):
        gather(found, "run")

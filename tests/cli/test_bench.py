"""`paceline bench` and `paceline report` as they are typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import Call, one_line_error
from lab.bench_tools import write_large_run
from lab.fake_server import fake_server


def test_a_run_and_its_page(call: Call, tmp_path: Path) -> None:
    prompts, out = tmp_path / "p.txt", tmp_path / "run"
    prompts.write_text("one\ntwo\n")
    with fake_server() as server:
        done = call(
            "bench", f"url:{server.url},label=served", "-w", str(prompts), "--out", str(out),
            "--load", "closed:1", "--load", "closed:2", "--max-tokens", "5", "--json",
        )  # fmt: skip
        assert all(body["max_tokens"] == 5 for body in server.bodies)
    assert done.status == 0, done
    summary = json.loads(done.out.splitlines()[-1])
    assert (summary["measured"], summary["planned"]) == (4, 4)
    assert "no speed-up of it" in done.err
    page = tmp_path / "page.html"
    done = call("report", str(out), "-o", str(page), "--title", "Mine")
    assert (done.status, done.out.strip()) == (0, str(page))
    assert "<h1>Mine</h1>" in page.read_text()


def test_what_could_not_be_measured_is_exit_status_1(call: Call, tmp_path: Path) -> None:
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"prompt": "one"}\n{\n')
    with fake_server() as server:
        done = call("bench", f"url:{server.url},model=error", "-w", str(prompts), "--out",
                    str(tmp_path / "run"))  # fmt: skip
    assert done.status == 1
    assert "skipped: p.jsonl, line 2" in done.err
    assert "problem: " in done.out
    assert "0 of 1 texts measured" in done.out


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["pacelin:plain"], "did you mean 'paceline'"),
        (["--load", "tide:4"], "closed:N"),
        (["--chat", "loud"], "auto, template or plain"),
        (["-w", "nowhere.jsonl"], "cannot be read"),
        (["--format", "specbench"], "spec-bench"),
        (["--temperature", "-1"], "temperature"),
        (["--load", "replay"], "needs the time"),
        (["--load", "closed:2", "--load", "closed:2"], "twice"),
    ],
)
def test_a_mistake_is_one_line(call: Call, tmp_path: Path, words: list[str], what: str) -> None:
    done = call("bench", *words, "--out", str(tmp_path / "run"))
    assert what in one_line_error(done)
    assert not (tmp_path / "run").exists()


def test_a_strict_workload_is_refused(call: Call, tmp_path: Path) -> None:
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"prompt": "one"}\n{\n')
    done = call("bench", "-w", str(prompts), "--strict", "--out", str(tmp_path / "run"))
    assert "line 2" in one_line_error(done)


def test_a_page_of_no_run_is_refused(call: Call, tmp_path: Path) -> None:
    assert "no run of paceline bench" in one_line_error(call("report", str(tmp_path)))
    run = write_large_run(tmp_path / "run")
    done = call("report", str(run), "-o", str(tmp_path / "missing" / "r.html"))
    assert "cannot be written" in one_line_error(done)

"""A run from end to end: resumed, crashed, left out, refused; with contestants made up for it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from helpers import tiny_checkpoint
from lab.fake_server import fake_server

from paceline import ConfigError
from paceline.lab import bench as lab_bench
from paceline.lab.bench import run
from paceline.lab.bench_ask import Answer, Ask
from paceline.lab.bench_load import Order, Tell, play
from paceline.lab.bench_options import BenchOptions
from paceline.lab.bench_record import (
    RECORDS,
    Contestant,
    Load,
    Measurement,
    Opening,
    Pass,
    Recorder,
    Sampling,
    read_records,
)
from paceline.lab.bench_result import Summary, read_summary
from paceline.lab.bench_schedule import key
from paceline.lab.bench_spec import parse_contestants
from paceline.lab.bench_worker import Crashed, Worker
from paceline.lab.workload_lines import Conversation
from paceline.lab.workloads import Workload

ITEMS = tuple(Conversation(str(n), prompt=f"prompt {n}") for n in range(6))
SHARED = {"target": "T", "draft": "D"}


class Made:
    """A contestant's process that is none: what it does is in its label."""

    # Shared by all of them; a fixture empties them.
    opened: ClassVar[Counter[str]] = Counter()
    played: ClassVar[list[tuple[str, str]]] = []
    now_open: ClassVar[set[str]] = set()
    chats = False

    def __init__(self, contestant: Contestant, texts: int, once: bool, log: Path) -> None:
        self.contestant, self.texts, self.once = contestant, texts, once

    async def open(self) -> Opening:
        name = self.contestant.name
        Made.opened[name] += 1
        Made.now_open.add(name)
        if name == "broken":
            return Opening(self.contestant, error="no such weights")
        if name == "dies early":
            raise Crashed("its process ended by SIGSEGV")
        return Opening(self.contestant, 0.1, {"made": "1"})

    async def ask(self, ask: Ask) -> Answer:
        name = self.contestant.name
        Made.played.append((name, ask.prompt or ""))
        mine = sum(who == name for who, _ in Made.played)
        if name == "crashes" and mine == 3 and Made.opened[name] == 1:
            raise Crashed("its process ended by SIGKILL")
        if name == "fails":
            return Answer(error="out of order")
        if name == "interrupted" and ask.prompt == "prompt 4":
            raise KeyboardInterrupt
        text = f"{ask.prompt}!" + ("?" if name == "differs" else "")
        return Answer(text, 0.1, (0.05, 0.1), (1, 1), 3, 2, finish="stop")

    def opening(self) -> Opening:
        return Opening(self.contestant)

    async def play(self, order: Order, tell: Tell) -> Pass:
        return await play(self, self.contestant, order, tell)

    async def close(self) -> None:
        self.kill()

    def kill(self) -> None:
        Made.now_open.discard(self.contestant.name)


@pytest.fixture(autouse=True)
def _made(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    Made.opened, Made.played, Made.now_open = Counter(), [], set()
    monkeypatch.setattr(lab_bench, "Worker", Made)
    yield
    assert not Made.now_open


def options(out: Path, *names: str, **more: Any) -> BenchOptions:
    specs = ["paceline:plain", *(f"paceline:k=3,label={name}" for name in names)]
    fields: dict[str, Any] = {
        "workload": Workload("w", "text", ITEMS), "warmup": 0, "timeout": 5.0,
    } | more  # fmt: skip
    return BenchOptions(out, contestants=tuple(parse_contestants(specs, SHARED)), **fields)


def ran(made: BenchOptions) -> Summary:
    return run(made, lambda *_: None)


def errors(out: Path) -> dict[tuple[str, str], str | None]:
    found = read_records(out).measurements
    return {(m.contestant.name, m.item): m.error for m in found}


def test_everything_is_measured_once_and_summed_up(tmp_path: Path) -> None:
    summary = ran(options(tmp_path, "good"))
    assert summary.complete
    assert (summary.planned, summary.measured) == (12, 12)
    assert len(read_records(tmp_path).passes) == 12
    assert read_summary(tmp_path) == summary
    (comparison,) = summary.comparisons
    assert (comparison.same, comparison.texts) == (6, 6)


def test_a_run_that_is_done_measures_nothing_again(tmp_path: Path) -> None:
    ran(options(tmp_path, "good"))
    before = (tmp_path / RECORDS).read_bytes()
    Made.opened.clear()
    assert ran(options(tmp_path, "good")).complete
    assert (tmp_path / RECORDS).read_bytes() == before
    assert not Made.opened


def test_a_run_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        ran(options(tmp_path, "interrupted"))
    there = read_summary(tmp_path)
    assert not there.complete
    assert 0 < there.measured < there.planned
    done = {key(m) for m in read_records(tmp_path).measurements}
    Made.played.clear()
    original = Made.ask

    async def mended(self: Made, ask: Ask) -> Answer:
        return Answer(f"{ask.prompt}!", 0.1, (0.1,), (2,), 3, 2, finish="stop")

    Made.ask = mended  # type: ignore[method-assign]
    try:
        assert ran(options(tmp_path, "interrupted")).complete
    finally:
        Made.ask = original  # type: ignore[method-assign]
    again = [key(m) for m in read_records(tmp_path).measurements]
    assert len(again) == len(set(again)) == 12
    assert done < set(again)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"seed": 1}, "seed"),
        ({"sampling": Sampling(temperature=0.5)}, "temperature"),
        ({"repeats": 2}, "repeats"),
        ({"loads": (Load(concurrency=2),)}, "loads"),
        ({"workload": Workload("w", "text", ITEMS[:3])}, "conversations"),
    ],
)
def test_another_run_is_refused_with_the_reason(
    tmp_path: Path, change: dict[str, Any], what: str
) -> None:
    made = options(tmp_path, "good")
    ran(made)
    with pytest.raises(ConfigError, match=what):
        ran(replace(made, **change))
    with pytest.raises(ConfigError, match="other"):
        ran(options(tmp_path, "good", "other"))


def test_a_folder_that_is_no_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(ConfigError, match="no bench run"):
        ran(options(tmp_path))
    assert [f.name for f in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_crash_costs_its_text_and_no_other(tmp_path: Path) -> None:
    summary = ran(options(tmp_path, "crashes", "good"))
    found = errors(tmp_path)
    assert [(who, e) for (who, _), e in found.items() if e] == [
        ("crashes", "its process ended by SIGKILL")
    ]
    assert (summary.planned, summary.measured, summary.complete) == (18, 17, False)
    assert Made.opened["crashes"] == 2  # opened again for the others
    # Started again, what failed is asked again.
    assert ran(options(tmp_path, "crashes", "good")).measured == 18


@pytest.mark.parametrize(
    ("name", "what"), [("broken", "no such weights"), ("dies early", "SIGSEGV")]
)
def test_who_cannot_be_opened_is_told_and_the_others_are_measured(
    tmp_path: Path, name: str, what: str
) -> None:
    summary = ran(options(tmp_path, name, "good"))
    assert (summary.measured, summary.complete) == (12, False)
    (problem,) = summary.problems
    assert problem.where == name
    assert what in problem.what


def test_who_fails_again_and_again_is_left_out(tmp_path: Path) -> None:
    summary = ran(options(tmp_path, "fails", "good"))
    assert summary.measured == 12
    asked = [name for name, _ in Made.played].count("fails")
    assert asked == 5
    told = [p.what for p in summary.problems if p.where == "fails"]
    assert told == ["left out after 5 texts in a row that failed; the last: out of order"]


def test_texts_that_differ_are_told_and_are_no_failure(tmp_path: Path) -> None:
    summary = ran(options(tmp_path, "differs", "good"))
    assert summary.complete
    found = {c.contestant: c for c in summary.comparisons}
    assert (found["differs"].same, found["good"].same) == (0, 6)
    assert found["differs"].partings[0].text == "?"
    assert "6 of 12 speculative texts differ" in summary.verdict[1]


def test_warming_up_is_not_measured_and_has_its_own_prompts(tmp_path: Path) -> None:
    summary = ran(options(tmp_path, "good", warmup=3))
    asked = [prompt for name, prompt in Made.played if name == "good"]
    assert len(asked) == 9
    assert not {i.prompt for i in ITEMS} & set(asked[:3])
    assert summary.measured == 12


def test_one_at_a_time_has_one_open_at_a_time(tmp_path: Path) -> None:
    most = 0
    original = Made.ask

    async def counting(self: Made, ask: Ask) -> Answer:
        nonlocal most
        most = max(most, len(Made.now_open))
        return await original(self, ask)

    Made.ask = counting  # type: ignore[method-assign]
    try:
        assert ran(options(tmp_path, "good", "better", one_at_a_time=True)).complete
    finally:
        Made.ask = original  # type: ignore[method-assign]
    assert most == 1


def test_every_load_has_its_own_passes_and_figures(tmp_path: Path) -> None:
    items = tuple(replace(item, at=0.01 * n) for n, item in enumerate(ITEMS))
    loads = (Load(concurrency=1), Load(concurrency=3), Load("poisson", rate=200.0),
             Load("replay", speed=2.0))  # fmt: skip
    work = Workload("w", "requests", items)
    summary = ran(options(tmp_path, "good", workload=work, loads=loads, repeats=2))
    assert summary.complete
    assert summary.measured == 2 * 4 * 2 * 6
    counts = Counter((p.contestant, p.load.name) for p in read_records(tmp_path).passes)
    assert counts == {
        (who, load.name): 12 if load.name == "closed:1" else 2
        for who in ("paceline:plain", "good")
        for load in loads
    }
    good = {f.load.name: f for f in summary.figures if f.contestant == "good"}
    assert set(good) == {load.name for load in loads}
    assert all(f.speedup is not None and f.tok_s is not None for f in good.values())
    dues = [m.due for m in measured(tmp_path) if m.load.kind == "replay" and m.repeat == 0]
    assert sorted(set(dues)) == pytest.approx([0.0, 0.005, 0.01, 0.015, 0.02, 0.025])


def test_a_disk_that_is_full_is_told_in_a_line_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, lines = Recorder.write, 0

    def write(self: Recorder, record: Any) -> None:
        nonlocal lines
        lines += 1
        if lines > 8:
            raise OSError(28, "No space left on device")
        original(self, record)

    monkeypatch.setattr(Recorder, "write", write)
    with pytest.raises(ConfigError, match="No space left on device"):
        ran(options(tmp_path, "good"))
    monkeypatch.undo()
    monkeypatch.setattr(lab_bench, "Worker", Made)
    assert read_summary(tmp_path).measured >= 3
    assert ran(options(tmp_path, "good")).complete


def test_replaying_needs_times(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs the time"):
        options(tmp_path, loads=(Load("replay", speed=1.0),))


# --- with engines and servers ------------------------------------------------------------------


def test_tiny_models_in_processes_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lab_bench, "Worker", Worker)
    target = tiny_checkpoint(tmp_path / "target", seed=1)
    shared = {"target": str(target), "dtype": "float32", "threads": "1", "max_length": "256"}
    specs = ["paceline:plain", "paceline:drafter=ngram,k=3,label=ngram"]
    items = (
        Conversation("chat", "x", turns=("hello", "and then?")),
        Conversation("text", "y", prompt="def f():\n    return 1\n\ndef g():\n"),
    )
    made = BenchOptions(
        tmp_path / "out", Workload("w", "chat", items), tuple(parse_contestants(specs, shared)),
        sampling=Sampling(max_tokens=12, seed=0), warmup=1, timeout=60.0,
    )  # fmt: skip
    summary = ran(made)
    assert summary.problems == ()
    assert summary.complete
    assert summary.settings["chats"] == "sent as messages"
    found = {key(m)[:1] + key(m)[3:]: m for m in read_records(made.out).measurements}
    assert len(found) == 6
    for (name, item, turn), m in found.items():
        assert m.new_tokens is not None
        assert m.prompt_tokens == found["paceline:plain", item, turn].prompt_tokens
        assert m.text == found["paceline:plain", item, turn].text, (name, item, turn)
        assert m.token_ids == found["paceline:plain", item, turn].token_ids
        assert len(m.event_times) == len(m.event_tokens)
    told = found["ngram", "text", 0]
    assert told.rounds is not None
    assert told.spent is not None
    assert set(told.rounds.sources) <= {"ngram"}
    ngram = next(f for f in summary.figures if f.contestant == "ngram" and f.category is None)
    assert ngram.speedup is not None
    assert ngram.over == "paceline:plain"
    assert ngram.rss is None or ngram.rss > 50 << 20


def test_a_process_that_is_killed_is_told_as_such(tmp_path: Path) -> None:
    (missing,) = parse_contestants(["paceline:plain"], {"target": str(tmp_path / "nowhere")})

    async def twice() -> tuple[Opening, str]:
        worker = Worker(missing, 1, True, tmp_path / "a.log")
        opening = await worker.open()
        await worker.close()
        killed = Worker(missing, 1, True, tmp_path / "b.log")
        os.kill(killed._process.pid, signal.SIGKILL)
        try:
            await killed.open()
        except Crashed as crash:
            return opening, str(crash)
        finally:
            await killed.close()
        return opening, ""

    opening, told = asyncio.run(twice())
    assert opening.error is not None
    assert "no such folder" in opening.error
    assert "ended by SIGKILL" in told


def test_a_run_killed_outright_goes_on_and_repeats_nothing(tmp_path: Path) -> None:
    prompts = tmp_path / "p.txt"
    prompts.write_text("".join(f"prompt {n}\n" for n in range(20)))
    out = tmp_path / "out"
    with fake_server() as server:
        server.delay = 0.2  # so that it is not done before it is killed
        command = [sys.executable, "-m", "paceline", "bench", f"url:{server.url}", "-w",
                   str(prompts), "--out", str(out), "--warmup", "0"]  # fmt: skip
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        until = time.monotonic() + 120
        while time.monotonic() < until and len(read_records(out).measurements) < 4:
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        before = {key(m) for m in read_records(out).measurements}
        assert 4 <= len(before) < 20
        server.delay = 0.0
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    again = Counter(key(m) for m in read_records(out).measurements)
    assert len(again) == 20
    assert all(again[k] == 1 for k in before)


def measured(out: Path) -> list[Measurement]:
    return read_records(out).measurements


def test_endpoints_that_fail_are_reported_beside_one_that_works(tmp_path: Path) -> None:
    with fake_server() as server:
        names = ("good", "error", "drop", "garbage")
        specs = [f"url:{server.url},model={name},label={name}" for name in names]
        made = BenchOptions(
            tmp_path, Workload("w", "text", ITEMS[:3]), tuple(parse_contestants(specs, {})),
            warmup=0, timeout=20.0, loads=(Load(concurrency=2),),
        )  # fmt: skip
        summary = ran(made)
    counts = Counter((m.contestant.name, m.error is None) for m in measured(tmp_path))
    assert counts == {(name, name == "good"): 3 for name in names}
    assert not summary.complete
    assert {p.where.split(",")[0] for p in summary.problems} == {"error", "drop", "garbage"}

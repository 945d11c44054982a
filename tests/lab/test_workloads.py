"""Workloads of every format, and what is said of lines that are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paceline import ConfigError
from paceline.lab import workload_lines
from paceline.lab.workloads import load


def write(path: Path, *rows: object) -> str:
    path.write_text("".join(r if isinstance(r, str) else json.dumps(r) + "\n" for r in rows))
    return str(path)


def test_the_built_in_set_is_held_out_code_that_ends_where_a_definition_does() -> None:
    work = load("mini", limit=5, seed=1)
    assert len(work.items) == 5
    assert work.items == load("mini", limit=5, seed=1).items
    assert work.items != load("mini", limit=5, seed=2).items
    assert work.items[0].prompt
    assert "\ndef " in (work.items[0].wishes.stop or ())


def test_plain_text_is_a_prompt_a_line_or_a_file_a_prompt(tmp_path: Path) -> None:
    work = load(write(tmp_path / "p.txt", "first\n", "\n", "second \u2028 line\n"))
    assert (work.format, [i.prompt for i in work.items]) == (
        "text", ["first", "second \u2028 line"]
    )  # fmt: skip
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "b.py").write_text("two\nlines\n")
    (folder / "a.py").write_text("one")
    assert [(i.id, i.prompt) for i in load(str(folder)).items] == [
        ("a.py", "one"), ("b.py", "two\nlines\n")
    ]  # fmt: skip


def test_json_lines_bring_prompts_with_their_wishes(tmp_path: Path) -> None:
    row = {"id": 7, "prompt": "p", "category": "c", "max_tokens": 3, "stop": "x", "temperature": 1}
    (item,) = load(write(tmp_path / "p.jsonl", row)).items
    assert (item.id, item.category, item.prompt, item.length) == ("7", "c", "p", 1)
    assert item.wishes == workload_lines.Wishes(temperature=1.0, max_tokens=3, stop=("x",))


def test_a_chat_goes_on_after_its_recorded_answers(tmp_path: Path) -> None:
    messages = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c"},
        {"role": "user", "content": "d"},
    ]
    work = load(write(tmp_path / "p.jsonl", {"messages": messages}))
    assert work.format == "chat"
    assert [m["content"] for m in work.items[0].context] == ["s", "ab", "c"]
    assert work.items[0].turns == ("d",)


def test_spec_bench_has_turns_and_categories(tmp_path: Path) -> None:
    rows = [
        {"question_id": 81, "category": "writing", "turns": ["a", "b"]},
        {"question_id": 82, "category": "qa", "turns": ["c"]},
        {"question_id": 83, "category": "qa", "turns": []},
    ]
    work = load(write(tmp_path / "q.jsonl", *rows))
    assert (work.format, work.texts) == ("spec-bench", 3)
    assert [(i.id, i.category, i.turns) for i in work.items] == [
        ("81", "writing", ("a", "b")), ("82", "qa", ("c",))
    ]  # fmt: skip
    assert work.skipped == ('q.jsonl, line 3: "turns" must be a list of texts',)


def test_a_drawing_takes_evenly_from_all_categories(tmp_path: Path) -> None:
    rows = [{"question_id": n, "category": "abc"[n // 10], "turns": ["t"]} for n in range(30)]
    drawn = load(write(tmp_path / "q.jsonl", *rows), limit=6).items
    assert sorted(i.category for i in drawn) == list("aabbcc")
    assert [int(i.id) for i in drawn] == sorted(int(i.id) for i in drawn)


def test_a_log_of_requests_has_bodies_and_times(tmp_path: Path) -> None:
    chat = {
        "model": "m",
        "messages": [{"role": "user", "content": "u"}],
        "max_completion_tokens": 9,
    }
    rows = [
        {"at": 105.5, "body": {"prompt": "later", "model": "m"}},
        {"time": "1970-01-01T00:01:40+00:00", "body": chat},
    ]
    work = load(write(tmp_path / "log.jsonl", *rows))
    assert work.format == "requests"
    assert [(i.at, i.prompt, i.turns) for i in work.items] == [
        (0.0, None, ("u",)), (5.5, "later", ())
    ]  # fmt: skip
    assert work.items[0].wishes.max_tokens == 9
    bare = load(write(tmp_path / "bare.jsonl", {"model": "m", "prompt": "p"}))
    assert (bare.format, bare.items[0].at) == ("requests", None)


BAD = [
    ("{", "not JSON"),
    ("[1]", "not a JSON object"),
    ('{"promt": "x"}', 'no "prompt"'),
    ('{"prompt": ""}', "at least one character"),
    ('{"prompt": 3}', "at least one character"),
    ('{"prompt": "x", "max_tokens": 0}', "at least 1"),
    ('{"prompt": "x", "max_tokens": true}', "must be a number"),
    ('{"prompt": "x", "stop": [""]}', '"stop" must be'),
    ('{"prompt": "x", "category": 1}', '"category" must be'),
]


@pytest.mark.parametrize(("line", "what"), BAD)
def test_a_bad_line_is_told_by_its_number_and_skipped(tmp_path: Path, line: str, what: str) -> None:
    file = write(tmp_path / "p.jsonl", {"prompt": "good"}, line + "\n", {"prompt": "better"})
    work = load(file)
    assert [i.prompt for i in work.items] == ["good", "better"]
    (told,) = work.skipped
    assert told.startswith("p.jsonl, line 2: ")
    assert what in told
    with pytest.raises(ConfigError, match="line 2"):
        load(file, strict=True)


def test_a_file_may_have_prompts_and_chats(tmp_path: Path) -> None:
    rows = [{"prompt": "p"}, {"messages": [{"role": "user", "content": "u"}]}]
    for name, given in (("p.jsonl", rows), ("q.jsonl", rows[::-1])):
        work = load(write(tmp_path / name, *given))
        assert not work.skipped
        openings = [item.opening for item in work.items]
        assert sorted(openings, key=str) == sorted(["p", rows[1]["messages"]], key=str)


def test_what_a_conversation_begins_with(tmp_path: Path) -> None:
    context = [{"role": "system", "content": "s"}]
    talk = load(write(tmp_path / "a.jsonl", {"question_id": 1, "turns": ["one", "two"]}))
    assert [item.opening for item in talk.items] == [[{"role": "user", "content": "one"}]]
    chat = [*context, {"role": "user", "content": "u"}]
    asked = load(write(tmp_path / "b.jsonl", {"at": 3, "body": {"messages": chat}}))
    assert [item.opening for item in asked.items] == [chat]


def test_what_holds_no_prompt_is_refused(tmp_path: Path) -> None:
    for source, what in (
        (write(tmp_path / "empty.txt"), "no prompt"),
        (write(tmp_path / "bad.jsonl", "{\n"), "line 1"),
        (str(tmp_path / "nowhere.txt"), "cannot be read"),
    ):
        with pytest.raises(ConfigError, match=what):
            load(source)
    with pytest.raises(ConfigError, match="did you mean 'spec-bench'"):
        load("mini", "specbench")


def test_items_of_one_name_are_told_apart(tmp_path: Path) -> None:
    rows = [{"id": "a", "prompt": str(n)} for n in range(3)]
    assert [i.id for i in load(write(tmp_path / "p.jsonl", *rows)).items] == ["a", "a#2", "a#3"]

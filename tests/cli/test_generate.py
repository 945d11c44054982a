"""`paceline generate`: what it writes, and every mistake in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import Call, Done, Pair, one_line_error


def text_of(done: Done) -> str:
    assert done.status == 0, done
    return done.out.removesuffix("\n")


def object_of(done: Done) -> dict[str, object]:
    assert done.status == 0, done
    value = json.loads(done.out.splitlines()[-1])
    assert isinstance(value, dict)
    return value


def test_prompt_file_and_standard_input_are_the_same(
    call: Call, pair: Pair, tmp_path: Path
) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("def f(é):")
    common = ["generate", *pair.options, "--max-tokens", "12"]
    texts = {
        text_of(call(*common, "def f(é):")),
        text_of(call(*common, "--file", str(file))),
        text_of(call(*common, stdin="def f(é):".encode())),
        text_of(call(*common, "-", stdin="def f(é):".encode())),
        text_of(call(*common, "def f(é):", "--no-stream")),
        text_of(call(*common, "def f(é):", "--drafter", "ngram", "-k", "3")),
        text_of(call(*common, "def f(é):", "--drafter", "none", "-k", "0")),
    }
    assert len(texts) == 1
    assert texts != {""}


def test_json(call: Call, pair: Pair) -> None:
    arguments = ["generate", *pair.options, "--json", "--max-tokens", "9", "--temperature", "1",
                 "--top-k", "50", "--top-p", "0.9", "--min-p", "0.01", "--logprobs", "2",
                 "--repetition-penalty", "1.1", "--presence-penalty", "0.1",
                 "--frequency-penalty", "0.1", "--logit-bias", "65=1.5", "--ignore-eos",
                 "--stop-token-id", "3", "--stop", "zzz", "--min-tokens", "2"]  # fmt: skip
    drawn = object_of(call(*arguments, "abc"))
    assert len(drawn["token_ids"]) == len(drawn["sources"]) == len(drawn["logprobs"])
    assert drawn["prompt_tokens"] == 3
    # The seed that was drawn is told, and gives the same text again.
    assert drawn["device"] == "cpu"
    again = object_of(call(*arguments, "--seed", str(drawn["seed"]), "abc"))
    assert again["token_ids"] == drawn["token_ids"]


def test_chat(call: Call, pair: Pair) -> None:
    common = ["generate", *pair.options, "--json", "--max-tokens", "3"]
    plain = object_of(call(*common, "<system>be brief\n<user>hi\n<assistant>"))
    chat = object_of(call(*common, "--chat", "--system", "be brief", "hi"))
    assert chat["token_ids"] == plain["token_ids"]


def test_prediction(call: Call, pair: Pair, tmp_path: Path) -> None:
    common = ["generate", *pair.options, "--json", "--max-tokens", "16", "abcabc"]
    plain = object_of(call(*common, "-k", "0"))
    expected = tmp_path / "expected.txt"
    expected.write_text(str(plain["text"]))
    predicted = object_of(call(*common, "-d", "predicted", "--prediction", str(expected)))
    assert predicted["token_ids"] == plain["token_ids"]


def test_config_file(call: Call, config_file: Path, pair: Pair) -> None:
    from_file = object_of(call("generate", "--config", str(config_file), "--json", "abc"))
    given = object_of(call("generate", *pair.options, "-k", "3", "--json", "abc"))
    assert from_file["token_ids"] == given["token_ids"]
    assert from_file["drafted"] == given["drafted"]
    plain = object_of(call("generate", "--config", str(config_file), "-k", "0", "--json", "abc"))
    assert plain["drafted"] == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-k", "-1"], "k must be a whole number from 0 to 64, not -1"),
        (["-k", "1000"], "k must be a whole number from 0 to 64, not 1000"),
        (["--temperature", "-1"], "temperature must be a number of at least 0"),
        (["--top-p", "0"], "top_p must be"),
        (["--min-p", "2"], "min_p must be"),
        (["--stop", ""], "stop must hold"),
        (["--logit-bias", "a=b"], "write ID=NUMBER"),
        (["--logit-bias", "999=1"], "999"),
        (["--rule", "matsch"], "did you mean 'match'"),
        (["--dtype", "float16"], "dtype must be"),
        (["--device", "gpu"], "device must be"),
        (["--drafter", "ngrm"], "did you mean 'ngram'"),
        (["--system", "x"], "--chat"),
        (["--logprobs", "2"], "--json"),
        (["--file", "nowhere.txt"], "not both"),
        (["--prediction", "nowhere.txt"], "cannot be read"),
        (["--config", "nowhere.toml"], "cannot be read"),
        (["--draft", "nowhere"], "no such folder"),
    ],
)
def test_options_that_cannot_be(call: Call, pair: Pair, options: list[str], words: str) -> None:
    assert words in one_line_error(call("generate", *pair.options, "prompt", *options))


@pytest.mark.parametrize(
    ("stdin", "words"),
    [(b"", "empty"), (b"\xff\xfe", "not UTF-8"), (b"a" * 5000, "shorten it")],
)
def test_prompts_that_cannot_be(call: Call, pair: Pair, stdin: bytes, words: str) -> None:
    assert words in one_line_error(call("generate", *pair.options, stdin=stdin))


def test_models_that_cannot_be(call: Call, pair: Pair, tmp_path: Path) -> None:
    assert "no such folder" in one_line_error(call("generate", "-t", str(tmp_path / "no"), "x"))
    assert "config.json" in one_line_error(call("generate", "-t", str(tmp_path), "x"))
    from helpers import tiny_checkpoint, tiny_tokenizer

    other = tiny_checkpoint(tmp_path / "other", tokenizer=False)
    tiny_tokenizer(other, swap=(65, 66))
    line = one_line_error(call("generate", "-t", pair.target, "--draft", str(other), "x"))
    assert "tokenizer" in line
    shard = tiny_checkpoint(tmp_path / "cut") / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    assert "error: " in one_line_error(call("generate", "-t", str(shard.parent), "x"))

"""The tokenizer wrapper: loading and its errors, chat, and when two tokenizers are the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny_tokenizer, turns_of_others
from tokenizer_kinds import byte_level, marked, tokenizer, wrap
from transformers import AutoTokenizer

from paceline.errors import CheckpointError, RequestError
from paceline.text import Tokenizer
from paceline.text.likeness import added_differences, difference


def test_round_trip_and_sizes(tmp_path: Path) -> None:
    loaded = Tokenizer.load(tiny_tokenizer(tmp_path))
    text = "def f():\n    return '🙂'\n"
    assert loaded.decode(loaded.encode(text)) == text
    assert loaded.vocab_size == len(loaded) == 259
    assert loaded.eos_ids == (257,)
    assert loaded.decode([*loaded.encode("a"), 257]) == "a"
    assert loaded.decode([*loaded.encode("a"), 257], skip_special_tokens=False) == "a<|eos|>"


def test_a_long_text_leaves_the_lock_to_others(tmp_path: Path) -> None:
    loaded = Tokenizer.load(tiny_tokenizer(tmp_path))
    text = "def f(x):\n    return x\n" * 40_000
    ids: list[int] = []
    turns = turns_of_others(lambda: ids.extend(loaded.encode(text)))
    assert turns > 3, "nobody else ran while the text was read"
    short = "def f(x):\n    return x\n" * 10
    assert ids[: len(short)] == loaded.encode(short)
    assert loaded.decode(ids) == text


def test_token_bytes_agree_with_the_library(tmp_path: Path) -> None:
    loaded = Tokenizer.load(tiny_tokenizer(tmp_path))
    assert [loaded.token_bytes(i) for i in range(256)] == [bytes([i]) for i in range(256)]
    assert loaded.token_bytes(257) == b""
    assert loaded.token_bytes(100_000) == b""


def test_which_tokens_are_bytes() -> None:
    kind = marked("sentencepiece", ["<0xZZ>"], special=False)
    known = {name: kind.token_id(name) for name in ("<0x00>", "<0xE2>", "<0xZZ>", "x")}
    bytes_of = {
        n: kind.fallback_byte(i) for n, i in known.items() if i and kind.is_byte_fallback(i)
    }
    assert bytes_of == {"<0x00>": 0, "<0xE2>": 0xE2}
    word = kind.word_id
    assert word is not None
    assert kind.decode([word])
    assert not kind.is_byte_fallback(word)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (None, "no such folder"),
        ({}, "no tokenizer"),
        ({"config.json": '{"model_type": "llama"}'}, "no tokenizer"),
        ({"tokenizer.json": '{"version": "1.0", "mod'}, "cannot be loaded"),
        ({"tokenizer.json": "[]"}, "cannot be loaded"),
    ],
)
def test_a_folder_without_a_tokenizer(
    tmp_path: Path, files: dict[str, str] | None, words: str
) -> None:
    folder = tmp_path / "model"
    if files is not None:
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_text(content)
    with pytest.raises(CheckpointError, match=words) as caught:
        Tokenizer.load(folder)
    assert "\n" not in str(caught.value)


def test_a_lone_surrogate_is_a_clear_error() -> None:
    with pytest.raises(RequestError, match="surrogate at character 1"):
        tokenizer("byte_level").encode("a\ud800")


def test_chat_is_what_transformers_makes_of_it(tmp_path: Path) -> None:
    loaded = Tokenizer.load(tiny_tokenizer(tmp_path))
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "日本?"}]
    reference = AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert loaded.chat(messages) == list(reference)


def test_chat_errors(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no chat template"):
        tokenizer("byte_level").chat([{"role": "user", "content": "hi"}])
    tiny_tokenizer(tmp_path)
    with pytest.raises(RequestError, match="no messages"):
        Tokenizer.load(tmp_path).chat([])
    strict = wrap(
        byte_level(),
        "strict",
        chat_template="{{ raise_exception('roles must\nalternate') }}",
    )
    with pytest.raises(RequestError, match="roles must alternate"):
        strict.chat([{"role": "user", "content": "hi"}])


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "phi3", None])
@pytest.mark.parametrize("named", ["PreTrainedTokenizerFast", "TokenizersBackend", None])
def test_the_tokenizer_is_the_one_transformers_chooses(
    tmp_path: Path, kind: str | None, named: str | None
) -> None:
    _settings(tiny_tokenizer(tmp_path), kind, tokenizer_class=named)
    loaded, theirs = Tokenizer.load(tmp_path).fast, AutoTokenizer.from_pretrained(tmp_path)
    assert type(loaded) is type(theirs)
    text = "def f():\n    return '日本'<|eos|>"
    assert loaded(text)["input_ids"] == theirs(text)["input_ids"]
    assert loaded.special_tokens_map == theirs.special_tokens_map
    assert loaded.chat_template == theirs.chat_template


def test_a_class_that_came_with_the_weights_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("raise SystemExit('run')\n")
    _settings(tiny_tokenizer(tmp_path), "llama", auto_map={"AutoTokenizer": [None, "own.Own"]})
    assert Tokenizer.load(tmp_path).encode("a") == [97]


def _settings(folder: Path, kind: str | None, **entries: Any) -> None:
    if kind is not None:
        (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    file = folder / "tokenizer_config.json"
    said = json.loads(file.read_text()) | entries
    file.write_text(json.dumps({name: value for name, value in said.items() if value is not None}))


def test_a_llama_s_tokenizer_needs_no_compiler(tmp_path: Path) -> None:
    """Seconds of every start: `AutoTokenizer` would import torch's compiler."""
    _settings(tiny_tokenizer(tmp_path), "llama", tokenizer_class="PreTrainedTokenizerFast")
    script = (
        "import sys; from paceline.text import Tokenizer; Tokenizer.load(sys.argv[1]); "
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert (
        subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False).returncode == 0
    )


def test_same_as(tmp_path: Path) -> None:
    plain = Tokenizer.load(tiny_tokenizer(tmp_path / "a"))
    assert difference(plain, Tokenizer.load(tiny_tokenizer(tmp_path / "b"))) is None
    swapped = Tokenizer.load(tiny_tokenizer(tmp_path / "c", swap=(65, 66)))
    assert difference(plain, swapped) == "token 65 is 'A' against 'B'"
    assert difference(plain, tokenizer("byte_level")) == "token 0 is 'Ā' against '<s>'"


@pytest.mark.parametrize(
    ("special", "told"),
    [
        (("<|bos|>", "<|eos|>", "<|pad|>"), ["258 is '<|endoftext|>' against '<|pad|>'"]),
        (("<|bos|>", "<|eos|>"), ["258 is '<|endoftext|>' against None"]),
        (
            ("<|bos|>", "<|eos|>", "<|endoftext|>", "<|im_end|>"),
            ["259 is None against '<|im_end|>'"],
        ),
        (("<|eos|>", "<|bos|>"), [
            "256 is '<|bos|>' against '<|eos|>'",
            "257 is '<|eos|>' against '<|bos|>'",
            "258 is '<|endoftext|>' against None",
        ]),
    ],
)  # fmt: skip
def test_same_as_but_for_added_tokens(
    special: tuple[str, ...], told: list[str], tmp_path: Path
) -> None:
    plain = Tokenizer.load(tiny_tokenizer(tmp_path / "a"))
    other = Tokenizer.load(tiny_tokenizer(tmp_path / "b", special=special))
    assert difference(plain, other) is None
    assert difference(other, plain) is None
    assert added_differences(plain, other) == told


def test_an_ordinary_token_is_no_added_one(tmp_path: Path) -> None:
    """What one has added and the other has learned, or what one lacks, is no detail."""
    plain = byte_level(added=False)
    words = plain.get_vocab_size()
    fewer = json.loads(plain.to_str())
    *fewer["model"]["merges"], _ = fewer["model"]["merges"]
    last = max(fewer["model"]["vocab"], key=fewer["model"]["vocab"].get)
    del fewer["model"]["vocab"][last]
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as Backend

    whole, without = wrap(plain, "a"), Backend.from_str(json.dumps(fewer))
    assert difference(whole, wrap(without, "b")) == f"token {words - 1} is {last!r} against None"
    without.add_tokens([AddedToken("<new>")])
    assert without.token_to_id("<new>") == words - 1
    assert difference(whole, wrap(without, "b")) == f"token {words - 1} is {last!r} against '<new>'"


def test_same_as_sees_other_merges() -> None:
    """One vocabulary, other merges: only what the tokenizer does tells them apart."""
    state = json.loads(byte_level(added=False).to_str())
    state["model"]["merges"].reverse()
    from tokenizers import Tokenizer as Backend

    other = wrap(Backend.from_str(json.dumps(state)), "reversed")
    found = difference(wrap(byte_level(added=False), "plain"), other)
    assert found is not None
    assert "split differently" in found

"""Pieces of any split join to the whole decode, and no piece holds half a character."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizer_kinds import MAKERS, tokenizer

from paceline.text import Detokenizer, Tokenizer

KINDS = sorted(MAKERS)
TEXTS = [
    "",
    "a",
    "  two  spaces ",
    "def f(x):\n    return 'é'\n",
    "日本語の文章 🙂👩‍👩‍👧 e\u0301",
    "<think→>ok",
]


def pieces(kind: str, ids: list[int], cuts: list[int], context: list[int] | None = None) -> str:
    """Push `ids` cut at `cuts`, then flush; return what was shown."""
    detokenizer = Detokenizer(tokenizer(kind), context or [])
    bounds = [0, *sorted(cut % (len(ids) + 1) for cut in cuts), len(ids)]
    shown = [detokenizer.push(ids[a:b]) for a, b in pairwise(bounds)]
    return "".join(shown) + detokenizer.flush()


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_any_ids_any_split(kind: str, data: st.DataObject) -> None:
    """Arbitrary ids: invalid bytes, special tokens, ids that the tokenizer does not have."""
    size = len(tokenizer(kind))
    ids = data.draw(st.lists(st.integers(0, size + 3), max_size=24))
    cuts = data.draw(st.lists(st.integers(0, 24), max_size=6))
    assert pieces(kind, ids, cuts) == tokenizer(kind).decode(ids)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_special_tokens_shown(kind: str, data: st.DataObject) -> None:
    """By their names, wherever they stand, split anywhere."""
    special = sorted(tokenizer(kind).special_ids)
    plain = tokenizer(kind).encode("a day, it's naïve")
    ids = data.draw(st.lists(st.sampled_from([*special, *plain]), max_size=16))
    shown = Detokenizer(tokenizer(kind), special=True)
    pieces = [shown.push([token]) for token in ids] + [shown.flush()]
    assert "".join(pieces) == tokenizer(kind).decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.text(max_size=30), cuts=st.lists(st.integers(0, 200), max_size=6))
@example(text="🙂🙂", cuts=[1, 2, 3, 5, 6])
@example(text=" a", cuts=[1])
def test_any_text_any_split(kind: str, text: str, cuts: list[int]) -> None:
    ids = tokenizer(kind).encode(text)
    assert pieces(kind, ids, cuts) == tokenizer(kind).decode(ids)


@given(data=st.data())
def test_runs_of_byte_tokens(data: st.DataObject) -> None:
    """Sentencepiece byte tokens: one bad byte spoils the whole run in a whole decode."""
    kind = tokenizer("sentencepiece")
    byte_id = {b: kind._backend.token_to_id(f"<0x{b:02X}>") for b in range(256)}
    chunks = data.draw(
        st.lists(
            st.one_of(
                st.binary(max_size=5).map(lambda b: [byte_id[x] for x in b]),
                st.sampled_from(["🙂", "é", "한"]).map(lambda t: [byte_id[x] for x in t.encode()]),
                st.sampled_from(["def", " x", "日"]).map(lambda t: kind.encode(t)),
            ),
            max_size=8,
        )
    )
    ids = [i for chunk in chunks for i in chunk]
    assert pieces("sentencepiece", ids, list(range(len(ids)))) == kind.decode(ids)


@pytest.mark.parametrize("text", TEXTS)
def test_byte_level_shows_each_character_as_soon_as_it_is_whole(text: str) -> None:
    """After every token the text shown is exactly the whole characters among the bytes so far."""
    kind = tokenizer("byte_level")
    detokenizer, shown, seen = Detokenizer(kind), "", b""
    for token_id in kind.encode(text):
        shown += detokenizer.push([token_id])
        seen += kind.token_bytes(token_id)
        assert shown == seen.decode(errors="ignore")
    assert shown == text


@pytest.mark.parametrize("kind", ["sentencepiece", "metaspace"])
def test_a_continuation_keeps_its_leading_space(kind: str) -> None:
    one = tokenizer(kind).encode("The quick")
    both = tokenizer(kind).encode("The quick fox")
    assert both[: len(one)] == one
    rest = both[len(one) :]
    assert pieces(kind, rest, [1], context=one) == " fox"
    assert pieces(kind, rest, [1]) == "fox"


def test_flush_shows_an_unfinished_character_once() -> None:
    kind = tokenizer("byte_level")
    detokenizer = Detokenizer(kind)
    assert detokenizer.push(kind.encode("🙂")[:-1]) == ""
    assert detokenizer.flush() == "\ufffd"
    assert detokenizer.flush() == ""


@pytest.mark.parametrize("kind", KINDS)
def test_work_per_token_does_not_grow(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids decoded per id pushed stay few, runs of byte tokens included."""
    ids = tokenizer(kind).encode(TEXTS[3] * 50 + TEXTS[4] * 50)
    decoded = 0
    real = Tokenizer.decode

    def counting(self: Tokenizer, some: list[int], skip_special_tokens: bool = True) -> str:
        nonlocal decoded
        decoded += len(some)
        return real(self, some, skip_special_tokens)

    monkeypatch.setattr(Tokenizer, "decode", counting)
    detokenizer = Detokenizer(tokenizer(kind))
    shown = "".join(detokenizer.push([i]) for i in ids) + detokenizer.flush()
    assert shown == real(tokenizer(kind), ids)
    assert decoded <= 4 * len(ids)

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


def pieces(kind: str, ids: list[int], cuts: list[int], prompt: list[int] | None = None) -> str:
    """Push `ids` cut at `cuts`, then flush; return what was shown."""
    detokenizer = Detokenizer(tokenizer(kind), prompt or [])
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


def byte_ids(raw: bytes) -> list[int]:
    """Sentencepiece byte tokens."""
    known = [tokenizer("sentencepiece").token_id(f"<0x{byte:02X}>") for byte in raw]
    return [token for token in known if token is not None]


@st.composite
def runs(draw: st.DrawFn) -> list[int]:
    """Ids of sentencepiece: runs of byte tokens, whole characters or not, among words, special
    tokens and ids without a token."""
    kind = tokenizer("sentencepiece")
    chunk = st.one_of(
        st.binary(max_size=5).map(byte_ids),
        st.sampled_from(["🙂", "é", "한", "កខគឃ", "\n"]).map(lambda t: byte_ids(t.encode())),
        st.sampled_from(["def", " x", "日"]).map(kind.encode),
        st.sampled_from([[kind.special["</s>"]], [len(kind)]]),
    )
    return [i for ids in draw(st.lists(chunk, max_size=8)) for i in ids]


@given(ids=runs())
@example(ids=[*byte_ids(b"\xe2"), *[len(tokenizer("sentencepiece"))] * 3, *byte_ids(b"\x82\xac")])
def test_runs_of_byte_tokens(ids: list[int]) -> None:
    """Sentencepiece byte tokens: one bad byte spoils the whole run in a whole decode."""
    kind = tokenizer("sentencepiece")
    assert pieces("sentencepiece", ids, list(range(len(ids)))) == kind.decode(ids)


# --- behind a prompt --------------------------------------------------------------------------


def parted(ids: list[int]) -> tuple[list[int], list[int]]:
    """The ids that a decode sees, and of them the bytes at the end that begin a character and do
    not finish it, the long way."""
    kind = tokenizer("sentencepiece")
    seen = [i for i in ids if i not in kind.special_ids and kind.token(i) is not None]
    for size in (3, 2, 1):
        last = seen[-size:]
        if len(last) == size and all(map(kind.is_byte_fallback, last)):
            try:
                bytes(map(kind.fallback_byte, last)).decode()
            except UnicodeDecodeError as error:
                if (error.start, error.reason) == (0, "unexpected end of data"):
                    return seen[:-size], last
    return seen, []


@given(ids=runs(), at=st.integers(0, 60), data=st.data())
@example(ids=byte_ids("\0🙂".encode()), at=2, data=None)
def test_any_bytes_cut_into_prompt_and_text(
    ids: list[int], at: int, data: st.DataObject | None
) -> None:
    """What is shown is what the ids say behind the prompt's whole characters."""
    kind = tokenizer("sentencepiece")
    at %= len(ids) + 1
    prompt, rest = ids[:at], ids[at:]
    cuts = [1] if data is None else data.draw(st.lists(st.integers(0, 60), max_size=6))
    shown = pieces("sentencepiece", rest, cuts, prompt=prompt)
    complete, tail = parted(prompt)
    # A word stands for what is complete: it ends a run of bytes, and a space behind it stays.
    before = kind.encode("fox") if complete else []
    alone, text = kind.decode([*before, *tail]), kind.decode([*before, *tail, *rest])
    same = max(i for i in range(len(text) + 1) if alone.startswith(text[:i]))
    assert shown == text[same:]
    whole, known = kind.decode(ids), kind.decode(complete)
    if "\ufffd" not in whole:  # no run is spoiled: simply what the whole says more
        assert whole == known + shown


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.text(max_size=30), at=st.integers(0, 200), cuts=st.lists(st.integers(0, 200)))
@example(text="The quick 🙂", at=12, cuts=[1])
def test_any_text_cut_into_prompt_and_text(kind: str, text: str, at: int, cuts: list[int]) -> None:
    """Between two characters: every kind shows what the whole says more than the prompt."""
    ids = tokenizer(kind).encode(text)
    at %= len(ids) + 1
    prompt, whole = tokenizer(kind).decode(ids[:at]), tokenizer(kind).decode(ids)
    if whole.startswith(prompt) and "\ufffd" not in prompt:
        assert pieces(kind, ids[at:], cuts, prompt=ids[:at]) == whole[len(prompt) :]


@pytest.mark.parametrize("kind", ["sentencepiece", "byte_level"])
def test_a_long_run_of_bytes_at_the_end_of_the_prompt(kind: str) -> None:
    """Khmer, which few vocabularies have: longer than any context that is decoded again."""
    script = "កខគឃងច"
    prompt = tokenizer(kind).encode("The quick " + script[:4])
    ids = tokenizer(kind).encode("The quick " + script + " fox")[len(prompt) :]
    assert pieces(kind, ids, list(range(len(ids))), prompt=prompt) == script[4:] + " fox"
    assert pieces(kind, ids[:4], [], prompt=prompt) == (
        "ង\ufffd" if kind == "byte_level" else "\ufffd" * 4
    )


@pytest.mark.parametrize(
    ("raw", "word", "shown"),
    [
        (b"\xac", "fox", "€fox"),
        (b"\xac", "afox", "€afox"),
        (b"\xac", "", "€"),
        (b"", "fox", "fox"),  # nothing finishes it: the prompt's text stands
        (b"", "", ""),
        (b"\xac\xe1", "fox", "\ufffd\ufffdfox"),  # a run as a whole, as without a prompt
    ],
)
def test_a_prompt_that_ends_within_a_character(raw: bytes, word: str, shown: str) -> None:
    """Ids that go on with a text which its limit had cut."""
    kind = tokenizer("sentencepiece")
    prompt = [*kind.encode("The quick"), *byte_ids("ក€".encode()[:-1])]
    spelled = [kind.token_id(letter) for letter in word]
    ids = [*byte_ids(raw), *(i for i in spelled if i is not None)]
    assert len(ids) == len(raw) + len(word)
    assert pieces("sentencepiece", ids, list(range(len(ids))), prompt=prompt) == shown


def test_byte_level_reads_its_own_bytes_alone() -> None:
    """Of a character that its prompt began there is the rest, and nothing behind it is lost."""
    kind = tokenizer("byte_level")
    ids = kind.encode("€fox")
    prompt, ids = [*kind.encode("The quick "), *ids[:1]], ids[1:]
    assert kind.decode(prompt).endswith("\ufffd")
    assert pieces("byte_level", ids, [1], prompt=prompt).lstrip("\ufffd") == "fox"


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
    assert pieces(kind, rest, [1], prompt=one) == " fox"
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

"""Where a text ends, to the token and to the character, at every K."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from helpers import EOS, PAD, tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engine.tools import Case, KnownDrafter, Pair, Result, prompt, readable, same, together
from tokenizer_kinds import tokenizer

from paceline import Engine, SamplingParams
from paceline.drafters.replay import ReplayDrafter
from paceline.engine.outbox import Committed, Reader
from paceline.text import Tokenizer
from paceline.types import Request, SequenceStats

START = prompt(31)
SAMPLED = readable(SamplingParams(temperature=1.0, seed=8, max_tokens=40, ignore_eos=True))
KS = range(9)


@pytest.fixture
def free(opened: Callable[..., Engine]) -> Result:
    """The text without any end but the limit: 40 tokens, nearly all printable."""
    (result,) = together(opened(k=0), [Case(START, SAMPLED)])
    assert (result.finish, len(result.token_ids)) == ("length", 40)
    return result


def each_k(
    opened: Callable[..., Engine], text: Sequence[int], params: SamplingParams, **options: int
) -> Result:
    """The result with a draft that knows `text`, which must be the same at every K."""
    engine = opened(drafter=KnownDrafter({tuple(START): tuple(text)}), k=8, **options)
    first, *others = [together(engine, [Case(START, params)], k)[0] for k in KS]
    for other in others:
        same(other, first)
    return first


@pytest.mark.parametrize("limit", [1, 2, 7, 8, 9, 18])
def test_max_tokens_is_exact(limit: int, free: Result, opened: Callable[..., Engine]) -> None:
    got = each_k(opened, free.token_ids, replace(SAMPLED, max_tokens=limit))
    assert got.token_ids == free.token_ids[:limit]
    assert got.finish == "length"
    assert got.stop_reason is None


@pytest.mark.parametrize("room", [1, 2, 8, 13])
def test_a_full_context_ends_the_text(
    room: int, free: Result, opened: Callable[..., Engine]
) -> None:
    """max_length counts prompt and text."""
    got = each_k(opened, free.token_ids, SAMPLED, max_length=len(START) + room)
    assert got.token_ids == free.token_ids[:room]
    assert got.finish == "length"


@pytest.mark.parametrize("max_length", [2, 5, 64])
@pytest.mark.parametrize("k", [8, 64])
def test_a_window_wider_than_the_context(
    max_length: int, k: int, pair: Pair, opened: Callable[..., Engine]
) -> None:
    """Windows and catch-up chunks that reach past both ends of every slot."""
    params = replace(SAMPLED, max_tokens=80)
    cases = [Case([65], params), Case([66], replace(params, seed=2)), Case([67], SAMPLED)]
    plain = together(opened(k=0, max_length=max_length), cases)
    assert all(len(one.token_ids) == max_length - 1 for one in plain[:2])
    for drafter in (f"model:path={pair.target}", "ngram:min=1"):
        engine = opened(drafter=drafter, k=k, max_length=max_length)
        for got, expected in zip(together(engine, cases), plain, strict=True):
            same(got, expected)


def test_threads_are_measured_with_any_window(opened: Callable[..., Engine]) -> None:
    engine = opened(k=62, max_length=3, threads=None)
    assert engine.threads >= 1
    assert len(engine.generate([[65, 66]], SAMPLED)[0].token_ids) == 1


@pytest.mark.parametrize("at", [0, 1, 6, 7, 8, 9, 20])
def test_an_end_inside_a_window(at: int, free: Result, opened: Callable[..., Engine]) -> None:
    """A stop id at every place of a window; the tokens that the draft had behind it are gone."""
    seen = free.token_ids
    at = next(i for i in range(at, 40) if seen[i] not in seen[:i])
    params = replace(SAMPLED, stop_token_ids=(seen[at], 3))
    got = each_k(opened, seen, params)
    assert got.token_ids == seen[: at + 1]
    assert (got.finish, got.stop_reason) == ("stop", seen[at])
    assert got.text == bytes(t for t in seen[:at] if t < 256).decode(errors="replace")


def test_end_of_sequence_inside_a_window(free: Result, opened: Callable[..., Engine]) -> None:
    """Forced by a bias at one of the first tokens, and ignored where asked to."""
    params = replace(SAMPLED, ignore_eos=False, logit_bias=(*SAMPLED.logit_bias, (EOS, 11.0)))
    got = each_k(opened, free.token_ids, params)
    assert (got.token_ids[-1], got.finish, got.stop_reason) == (EOS, "stop", None)
    assert EOS not in got.token_ids[:-1]
    on = each_k(opened, got.token_ids, replace(params, ignore_eos=True))
    assert on.token_ids[: len(got.token_ids)] == got.token_ids
    assert (len(on.token_ids), on.finish) == (40, "length")
    assert on.text.startswith(got.text)
    listed = each_k(opened, got.token_ids, replace(params, ignore_eos=True, stop_token_ids=(EOS,)))
    assert (listed.token_ids, listed.finish) == (got.token_ids, "stop")


@pytest.mark.parametrize("shown", [True, False])
def test_a_stop_string_may_be_a_special_token(
    shown: bool, free: Result, opened: Callable[..., Engine]
) -> None:
    """Whose name the text leaves out, or not."""
    params = replace(SAMPLED, logit_bias=(*SAMPLED.logit_bias, (PAD, 11.0)))
    params = replace(params, stop=("<|endoftext|>",), skip_special_tokens=not shown)
    got = each_k(opened, free.token_ids, params)
    assert (got.token_ids[-1], got.finish) == (PAD, "stop")
    assert got.stop_reason == "<|endoftext|>"
    assert PAD not in got.token_ids[:-1]
    assert "<|endoftext|>" not in got.text
    told = each_k(opened, free.token_ids, replace(params, include_stop_str_in_output=True))
    assert (told.token_ids, told.text) == (got.token_ids, got.text + "<|endoftext|>")


@pytest.mark.parametrize("length", [1, 2, 5, 12])
@pytest.mark.parametrize("at", [0, 3, 17])
def test_a_stop_string_over_tokens_and_rounds(
    length: int, at: int, free: Result, opened: Callable[..., Engine]
) -> None:
    stop = free.text[at : at + length]
    first = free.text.index(stop)
    got = each_k(opened, free.token_ids, replace(SAMPLED, stop=("\x01\x01", stop)))
    assert got.text == free.text[:first]
    assert (got.finish, got.stop_reason) == ("stop", stop)
    text = bytes(t for t in got.token_ids if t < 256).decode(errors="replace")
    assert text == free.text[: first + length], "the tokens end with the stop string"
    params = replace(SAMPLED, stop=("\x01\x01", stop), include_stop_str_in_output=True)
    told = each_k(opened, free.token_ids, params)
    assert (told.text, told.token_ids, told.stop_reason) == (text, got.token_ids, stop)


def test_a_stop_string_that_never_comes_is_not_held_back(
    free: Result, opened: Callable[..., Engine]
) -> None:
    """The text ends in the beginning of a stop string: it is shown at the end."""
    got = each_k(opened, free.token_ids, replace(SAMPLED, stop=(free.text[-3:] + "never",)))
    assert (got.text, got.finish) == (free.text, "length")


@pytest.mark.parametrize("minimum", [5, 9, 40])
def test_min_tokens(minimum: int, free: Result, opened: Callable[..., Engine]) -> None:
    """No stop id, end of sequence or stop string among the first tokens."""
    bias = tuple((dict(SAMPLED.logit_bias) | {EOS: 20.0, 65: 27.0}).items())
    params = replace(SAMPLED, ignore_eos=False, min_tokens=minimum, logit_bias=bias)
    for stops in ({"stop_token_ids": (65,)}, {"stop": ("A",)}):
        got = each_k(opened, free.token_ids, replace(params, **stops))
        assert len(got.token_ids) == min(minimum + 1, 40)
        assert EOS not in got.token_ids[:minimum]
        if "stop_token_ids" in stops:
            assert 65 not in got.token_ids[:minimum]
        early = each_k(opened, free.token_ids, replace(params, min_tokens=0, **stops))
        assert len(early.token_ids) < 5


def test_a_stop_string_over_the_end_of_min_tokens(
    free: Result, opened: Callable[..., Engine]
) -> None:
    """It begins among the first tokens and is whole behind them."""
    at = next(i for i in range(3, 30) if free.text[i : i + 2] not in free.text[: i + 1])
    stop = free.text[at : at + 2]
    assert len(free.text) == 40, "a token is a character"
    params = replace(SAMPLED, stop=(stop,), min_tokens=at + 1)
    got = each_k(opened, free.token_ids, params)
    assert (got.text, got.stop_reason, len(got.token_ids)) == (free.text[:at], stop, at + 2)
    late = each_k(opened, free.token_ids, replace(params, min_tokens=at + 2))
    assert late.text.startswith(free.text[: at + 2])


# --- the reader alone -------------------------------------------------------------------------


def test_a_stop_string_among_bytes_that_wait() -> None:
    """Of a sentencepiece tokenizer, whose bytes are shown when a run of them is over: here with the
    text. Many have a newline only as such a byte."""
    kind = tokenizer("sentencepiece")
    ids = kind.encode("The\u20ac", add_special_tokens=False)
    assert kind.is_byte_fallback(ids[-1])
    params = SamplingParams(max_tokens=len(ids), stop=("\u20ac",))
    reader = Reader(Request("r", (1,), params, 0), kind, frozenset({EOS}), SequenceStats())
    reader.take(Committed(tuple(ids), "x", 0, 0, 0, ended=True, failed=False))
    reader.seal()
    done = reader.completion()
    assert (done.finish, done.stop_reason) == ("stop", "\u20ac")
    assert done.text.strip() == "The"


def test_a_stop_string_in_a_run_of_bytes_that_the_prompt_began() -> None:
    """Of a script that the vocabulary does not have: the prompt's part is longer than what of a
    prompt is looked at, and is not looked at from the middle of a character."""
    kind = tokenizer("sentencepiece")
    prompt = kind.encode("The quick \u1780\u1781\u1782\u1783")
    ids = kind.encode("The quick \u1780\u1781\u1782\u1783\u1784\u1785 fox")[len(prompt) :]
    params = SamplingParams(max_tokens=len(ids), stop=("\u1785",))
    reader = Reader(Request("r", tuple(prompt), params, 0), kind, frozenset(), SequenceStats())
    reader.take(Committed(tuple(ids), "x", 0, 0, 0, ended=True, failed=False))
    reader.seal()
    done = reader.completion()
    assert (done.finish, done.stop_reason, done.text) == ("stop", "\u1785", "\u1784")


@settings(max_examples=150)
@given(data=st.data())
def test_a_reader_does_not_see_rounds(data: st.DataObject) -> None:
    """Any split of the same tokens into rounds gives the same text, tokens and ending."""
    tokenizer = byte_tokenizer()
    ids = data.draw(st.lists(st.sampled_from([65, 66, 67, 0xC3, 0xA9, 0xE2, EOS]), max_size=12))
    stops = data.draw(st.lists(st.text("ABCé", min_size=1, max_size=3), max_size=2))
    params = SamplingParams(
        stop=tuple(stops),
        max_tokens=max(1, len(ids)),
        min_tokens=data.draw(st.integers(0, len(ids))),
        stop_token_ids=data.draw(st.sampled_from([(), (66,)])),
        ignore_eos=data.draw(st.booleans()),
        include_stop_str_in_output=data.draw(st.booleans()),
    )
    ends = set(params.stop_token_ids) | (set() if params.ignore_eos else {EOS})
    # What the device would commit: up to the first stop id after min_tokens.
    end = next((i for i, t in enumerate(ids) if t in ends and i >= params.min_tokens), None)
    ids = ids[: None if end is None else end + 1]
    read = partial(read_in_rounds, ids, params, tokenizer)
    whole = read([len(ids)])
    cuts = data.draw(st.lists(st.integers(1, 4), min_size=len(ids), max_size=len(ids)))
    assert read(cuts) == whole
    shown = whole[1]
    # One that is whole among the first tokens stays, and hides no later one.
    early = byte_tokenizer().decode(ids[: params.min_tokens])
    if params.include_stop_str_in_output and whole[3] in stops:
        assert shown.endswith(str(whole[3]))
        shown = shown.removesuffix(str(whole[3]))
    assert all(stop not in shown[len(early) :] for stop in stops)


@settings(max_examples=300)
@given(data=st.data())
def test_stop_strings_count_behind_the_lead(data: st.DataObject) -> None:
    """However the tokens came; where the text does not begin with it, everywhere."""
    text = data.draw(st.lists(st.sampled_from(["<>", "</", "<", ">", "a", " "]), max_size=12))
    stops = data.draw(st.lists(st.text("<>/a ", min_size=1, max_size=3), min_size=1, max_size=2))
    opened_by = data.draw(st.sampled_from(["", "<>"]))
    ids = list("".join(text).encode())
    params = SamplingParams(
        stop=tuple(stops),
        stop_after="</",
        stop_opened_by=opened_by,
        min_tokens=data.draw(st.sampled_from([0, 0, 3])),
        max_tokens=max(1, len(ids)),
    )
    read = partial(read_in_rounds, ids, params, byte_tokenizer())
    cuts = data.draw(st.lists(st.integers(1, 4), min_size=len(ids), max_size=len(ids)))
    whole = read([len(ids)])
    assert read(cuts) == whole
    if params.min_tokens == 0:
        shown, reason = beyond_the_lead("".join(text), stops, opened_by)
        assert (whole[1], whole[3]) == (shown, reason)


def beyond_the_lead(text: str, stops: list[str], opened_by: str) -> tuple[str, str | None]:
    """The text up to the first stop string that counts, and that."""
    at = len(text) - len(text.lstrip(" "))
    lead = 0
    if text[at:].startswith(opened_by):
        mark = text.find("</", at * bool(opened_by) + len(opened_by))
        behind = "" if mark < 0 else text[mark + 2 :].lstrip(" ")
        lead = len(text) - len(behind)
    for end in range(lead + 1, len(text) + 1):
        if hits := [stop for stop in stops if text[lead:end].endswith(stop)]:
            stop = max(hits, key=len)
            return text[: end - len(stop)], stop
    return text, None


def test_stop_strings_behind_the_lead_at_every_k(
    free: Result, opened: Callable[..., Engine]
) -> None:
    """The mark is the text's own; the stop string stands before it and behind it."""
    text = bytes(t for t in free.token_ids if t < 256).decode(errors="replace")
    places = ((i, j) for i in range(1, 12) for j in range(i + 3, len(text)) if text[i] == text[j])
    first, second = next(p for p in places if text[p[0]] not in " \t\r\n")
    mark = text[first + 1 : first + 3]
    params = replace(SAMPLED, stop=(text[first],))
    assert each_k(opened, free.token_ids, params).text == text[: text.index(text[first])]
    got = each_k(opened, free.token_ids, replace(params, stop_after=mark))
    begin = text.index(mark) + len(mark)
    begin += len(text[begin:]) - len(text[begin:].lstrip())
    assert got.text == text[: text.index(text[first], begin)]
    assert second >= begin
    # It begins with no such mark: all of it counts.
    other = replace(params, stop_after=mark, stop_opened_by="<think>")
    assert each_k(opened, free.token_ids, other).text == text[: text.index(text[first])]


@cache
def byte_tokenizer() -> Tokenizer:
    with TemporaryDirectory() as folder:
        return Tokenizer.load(tiny_tokenizer(Path(folder)))


def read_in_rounds(
    ids: list[int], params: SamplingParams, tokenizer: Tokenizer, sizes: list[int]
) -> tuple[list[int], str, object, object, list[str]]:
    """Ids, text, finish, stop reason, and the text split by token."""
    reader = Reader(Request("r", (1,), params, 0), tokenizer, frozenset({EOS}), SequenceStats())
    at = 0
    for size in sizes:
        if at >= len(ids) or reader.finish is not None:
            break
        part = ids[at : at + size]
        at += size
        committed = Committed(tuple(part), "x", 0, 0, 0, at >= len(ids), False)
        stand = reader.take(committed)
        assert 0 <= stand <= len(part)
    if reader.finish is not None:
        reader.seal()
    text, pieces = "".join(reader._pieces), [p for e in reader.events for p in e.pieces]
    assert "".join(pieces) == text
    assert all(len(e.pieces) == len(e.token_ids) == len(e.sources) for e in reader.events)
    return reader.token_ids, text, reader.finish, reader.stop_reason, pieces


def test_replayed_answers_end_with_the_text(free: Result, opened: Callable[..., Engine]) -> None:
    """A draft that goes on after the limit is cut before it is counted."""
    engine = opened(drafter=ReplayDrafter(answers={tuple(START): free.token_ids}), k=8)
    (one,) = engine.generate([START], replace(SAMPLED, max_tokens=10))
    assert one.stats.drafted == 8
    assert (one.stats.accepted, one.stats.rounds, one.stats.emitted) == (8, 2, 10)


def test_a_slot_forgets_the_ends_of_its_last_text(
    free: Result, opened: Callable[..., Engine]
) -> None:
    engine = opened(drafter="ngram", k=4, slots=1)
    listed = replace(SAMPLED, stop_token_ids=(3, *free.token_ids[5:9]), stop=(free.text[20:22],))
    late = replace(listed, min_tokens=30)
    for params in (listed, late, replace(SAMPLED, max_tokens=3)):
        assert len(together(engine, [Case(START, params)])[0].token_ids) < 40
        same(together(engine, [Case(START, SAMPLED)])[0], free)

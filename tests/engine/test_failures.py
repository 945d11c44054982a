"""One request's bad logits are its own affair: the others, the slot and the drafter stay clean.

The bad models here have an input embedding that is not finite for token POISON, so that every
text that holds it has logits that are not.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from helpers import VOCAB_SIZE, tiny_checkpoint, tiny_model, tiny_tokenizer
from tests.engine.tools import Case, Pair, RandomDrafter, prompt, same, together

from paceline import Engine, Event, NumericsError, SamplingParams
from paceline.drafters.base import Drafter, Draw
from paceline.engine.capture import CapturedRounds
from paceline.engine.loop import Loop
from paceline.engine.scheduling import Scheduler
from paceline.errors import EngineClosedError, PacelineError, RequestError, StepError
from paceline.text import Detokenizer
from paceline.types import (
    Draft,
    Needs,
    Request,
    Rows,
    TargetOut,
    Verdict,
    Window,
)

POISON = 200
RULES = ("match", "reject", "block")
GREEDY = SamplingParams(max_tokens=16, ignore_eos=True, logit_bias=((POISON, -1000.0),))


def clean(seed: int, length: int = 11) -> list[int]:
    return [token if token != POISON else 0 for token in prompt(seed, length)]


def dirty(seed: int, where: int, length: int = 60) -> list[int]:
    ids = clean(seed, length)
    ids[where] = POISON
    return ids


def poisoned(folder: Path, value: float, token: int | None = POISON) -> Path:
    """The pair's target, but for one row of its embedding, or all of it."""
    model = tiny_model(seed=0, dtype=torch.float64)
    with torch.no_grad():
        model.model.embed_tokens.weight[slice(None) if token is None else token] = value
    model.save_pretrained(folder)
    return tiny_tokenizer(folder)


@pytest.fixture(scope="module", params=["nan", "inf"])
def bad(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return poisoned(tmp_path_factory.mktemp("bad"), float(request.param))


@pytest.fixture(scope="module")
def all_nan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return poisoned(tmp_path_factory.mktemp("nan"), float("nan"), None)


def check_slots(engine: Engine, opened: Callable[..., Engine], slots: int = 3) -> None:
    """Every slot serves again, with the text of an engine that saw nothing else."""
    cases = [Case(clean(seed, 5 + seed), GREEDY) for seed in range(slots)]
    for got, wanted in zip(together(engine, cases), together(opened(k=0), cases), strict=True):
        same(got, wanted)


def held(engine: Engine) -> tuple[int, int]:
    """Pages and texts that the engine has, when the step on its way is over."""
    stats = engine._driver.ask(engine.stats)
    return stats.pages_used, stats.running


@pytest.mark.parametrize("k", [0, 3])
@pytest.mark.parametrize("rule", RULES)
def test_a_request_fails_alone(
    k: int, rule: str, bad: Path, pair: Pair, opened: Callable[..., Engine]
) -> None:
    """Others in the batch finish with the text they have alone; the slot serves the next."""
    good = [Case(clean(1), GREEDY), Case(clean(2), replace(GREEDY, repetition_penalty=1.2))]
    expected = together(opened(k=0), good)
    engine = opened(bad, draft=pair.target, rule=rule, k=k, slots=3)
    for where in (0, 30, 59):
        first, failing, last = (
            engine.stream(case.prompt, case.params)
            for case in (good[0], Case(dirty(3, where), GREEDY), good[1])
        )
        events: list[Event] = []
        with pytest.raises(NumericsError, match=r"not finite.*logit_bias"):
            events.extend(failing)
        assert [event.finish for event in events] == ["error"]
        assert events[0].token_ids == ()
        for stream, wanted in zip((first, last), expected, strict=True):
            tokens = tuple(token for event in stream for token in event.token_ids)
            assert tokens == wanted.token_ids
        check_slots(engine, opened)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vocabulary that stop_token_ids can cover."""
    return tiny_checkpoint(
        tmp_path_factory.mktemp("few"),
        dtype=torch.float64,
        vocab_size=40,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("k", [0, 3])
@pytest.mark.parametrize("rule", RULES)
def test_every_token_masked(
    rule: str, k: int, temperature: float, few: Path, opened: Callable[..., Engine]
) -> None:
    """Each token is a stop, and none may come yet."""
    good = Case([3, 4, 5], SamplingParams(max_tokens=12, ignore_eos=True))
    (expected,) = together(opened(few, k=0), [good])
    masked = SamplingParams(temperature=temperature, stop_token_ids=tuple(range(40)), min_tokens=1)
    engine = opened(few, draft=few, rule=rule, k=k, slots=2)
    other = engine.stream(good.prompt, good.params)
    with pytest.raises(NumericsError, match=r"masked; check logit_bias"):
        engine.generate([6, 7], masked)
    tokens = tuple(token for event in other for token in event.token_ids)
    assert tokens == expected.token_ids
    same(together(engine, [good])[0], expected)


def test_a_slot_left_while_its_prompt_is_read(bad: Path, opened: Callable[..., Engine]) -> None:
    """Cancelled before anything was drawn: nobody saw that its cache is not finite."""
    engine = opened(bad, drafter="ngram", k=2, slots=1, prefill_chunk=16)
    for steps in (1, 2):
        with engine._driver.held() as step:
            leaving = engine.stream(dirty(1, 3), GREEDY)
            for _ in range(steps):
                step()
            leaving.close()  # type: ignore[attr-defined]
        check_slots(engine, opened, 1)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_rejected_token_does_no_harm(
    dtype: str, bad: Path, opened: Callable[..., Engine]
) -> None:
    """A draft that holds the bad token, which the target would never say."""
    cases = [Case(clean(1), GREEDY), Case(clean(2), replace(GREEDY, temperature=1.0, seed=1))]
    plain = together(opened(bad, dtype=dtype, k=0), cases)
    for low in (POISON, POISON - 1):
        engine = opened(bad, dtype=dtype, k=4, drafter=RandomDrafter(low=low, high=POISON + 1))
        for got, wanted in zip(together(engine, cases), plain, strict=True):
            same(got, wanted)


# --- drafters ---------------------------------------------------------------------------------


def test_a_spoiled_draft_cache_is_cleaned(bad: Path, opened: Callable[..., Engine]) -> None:
    """The draft model alone fails on a text: that text is right, and the next text's drafts
    are as good as ever."""
    engine = opened(draft=bad, k=4, slots=1)
    for where in (0, 55):
        (spoiled,) = together(engine, [Case(dirty(1, where), GREEDY)])
        same(spoiled, together(opened(k=0), [Case(dirty(1, where), GREEDY)])[0])
        (one,) = engine.generate([clean(2)], GREEDY)
        assert one.stats.accepted == one.stats.evaluated > 10


@pytest.mark.parametrize("rule", RULES)
def test_a_draft_model_of_nothing_but_nan(
    rule: str, all_nan: Path, opened: Callable[..., Engine]
) -> None:
    greedy = [Case(clean(1), GREEDY), Case(clean(2), replace(GREEDY, frequency_penalty=0.7))]
    sampled = [Case(clean(3), replace(GREEDY, temperature=1.0, seed=1, top_p=0.9))]
    asked = [*greedy, *sampled] if rule == "match" else greedy
    engine = opened(draft=all_nan, rule=rule, k=3)
    for got, wanted in zip(together(engine, asked), together(opened(k=0), asked), strict=True):
        same(got, wanted)
    together(engine, sampled)


class Faulty(Drafter):
    """Raises in one of its methods, as often as told."""

    name: ClassVar[str] = "faulty"
    needs = Needs(catch_up="observe")

    def __init__(
        self, where: str, times: int = 1, error: type[BaseException] = ZeroDivisionError
    ) -> None:
        self.where, self.times, self.error = where, times, error
        self.held: Callable[[], object] = lambda: None

    def _fail(self, where: str) -> None:
        if where == self.where and self.times:
            self.times -= 1
            large = torch.zeros(8)
            self.held = weakref.ref(large)
            raise self.error(where)

    def admit(self, slot: int, request: Request) -> None:
        self._fail("admit")

    def release(self, slot: int) -> None:
        self._fail("release")

    def observe(
        self, window: Window, out: TargetOut | None, verdict: Verdict | None, rows: Rows
    ) -> None:
        self._fail("prefill" if verdict is None else "observe")

    def propose(self, rows: Rows, k: int, draw: Draw) -> Draft:
        self._fail("propose")
        zeros = torch.zeros_like(rows.length)
        return Draft(zeros.new_zeros(len(zeros), k), zeros, zeros)


class Panic(BaseException):
    """What a library in Rust raises where it gives up: no Exception."""


def test_a_panic_at_a_cancel_ends_no_other(opened: Callable[..., Engine]) -> None:
    drafter = Faulty("release", error=Panic)
    engine = opened(drafter=drafter, k=2, slots=2)
    with engine._driver.held() as step:
        leaving, staying = (engine.submit(clean(n), GREEDY) for n in range(2))
        step()
        step()
        leaving.cancel()
    assert leaving.result(60).finish == "cancelled"
    assert len(staying.result(60).token_ids) == 16
    assert engine.ended is None
    assert held(engine) == (0, 0)


def test_each_request_has_an_error_of_its_own(opened: Callable[..., Engine]) -> None:
    """Raised in a step, on purpose: it is the same to all and remembers nobody's frames."""

    class Refused(RequestError):
        pass

    engine = opened(drafter=Faulty("observe", error=Refused), k=2, slots=2)
    with engine._driver.held():
        handles = [engine.submit(clean(n), GREEDY) for n in range(2)]
    errors = []
    for handle in handles:
        with pytest.raises(Refused, match="observe") as caught:
            handle.result(60)
        errors.append(caught.value)
    assert errors[0] is not errors[1]


@pytest.mark.parametrize("where", ["admit", "release", "prefill", "observe", "propose"])
def test_nobody_waits_for_ever_whatever_is_raised(
    where: str, opened: Callable[..., Engine]
) -> None:
    drafter = Faulty(where, error=Panic)
    engine = opened(drafter=drafter, k=2, slots=2)
    handles = [engine.submit(clean(n), GREEDY) for n in range(4)]
    for handle in handles:
        assert handle.wait_closed(60)
    for handle in handles[1:] if where == "release" else ():
        assert len(handle.result().token_ids) == 16
    assert engine.ended is None
    assert held(engine) == (0, 0)
    check_slots(engine, opened, slots=2)


def test_a_thread_that_dies_says_so(
    opened: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in a step: where nothing is known to be raised."""
    engine = opened(k=0, slots=1)
    real = engine._driver._deliver

    def deliver() -> None:
        monkeypatch.setattr(engine._driver, "_deliver", real)
        raise Panic("out of memory")

    with engine._driver.held():
        handle = engine.submit(clean(1), GREEDY)
        monkeypatch.setattr(engine._driver, "_deliver", deliver)
    for answer in (handle.result, lambda: engine.submit(clean(1), GREEDY)):
        with pytest.raises(EngineClosedError, match="Panic: out of memory"):
            answer()


def test_a_failed_step_keeps_nothing(opened: Callable[..., Engine]) -> None:
    """Its error is kept by whoever asked, and the tensors of its frames by nobody."""
    drafter = Faulty("propose")
    engine = opened(drafter=drafter, k=2, slots=1)
    handle = engine.submit(clean(1), GREEDY)
    assert handle.wait_closed(60)
    engine._driver.ask(lambda: None)
    assert drafter.held() is None
    with pytest.raises(StepError):
        handle.result()


def test_an_engine_that_ended_says_it_anew_each_time(opened: Callable[..., Engine]) -> None:
    """One error that is raised again and again would remember every place."""
    engine = opened(k=0)
    assert engine.ended is None
    engine._driver._broken = EngineClosedError("the engine stopped: no more")
    for _ in range(2):
        with pytest.raises(EngineClosedError, match="no more") as caught:
            engine.submit(clean(1), GREEDY)
        assert caught.value is not engine._driver._broken
    engine._driver._broken = None
    engine.close()
    assert isinstance(engine.ended, EngineClosedError)


@pytest.mark.parametrize("often", [1, 1000])
def test_a_text_that_cannot_be_shown_ends(
    often: int, opened: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tokenizer gives up, at the last row or at every one, and at the rest of the text."""
    engine, left = opened(k=0, slots=1), [0, often]
    push = Detokenizer.push

    def fails(self: Detokenizer, ids: Iterable[int]) -> str:
        left[0] += 1
        if left[0] >= 16 and left[1]:
            left[1] -= 1
            raise Panic("decoder")
        return push(self, ids)

    monkeypatch.setattr(Detokenizer, "push", fails)
    if often > 1:
        monkeypatch.setattr(Detokenizer, "flush", lambda self: fails(self, ()))
    handle = engine.submit(clean(1), GREEDY)
    with pytest.raises(StepError, match="decoder"):
        handle.result(60)
    left[1] = 0
    assert held(engine) == (0, 0)
    check_slots(engine, opened, slots=1)


@pytest.mark.parametrize("where", ["prompt", "last", "text"])
def test_a_draft_that_lacks_a_token_of_the_target(
    where: str, pair: Pair, opened: Callable[..., Engine], tmp_path: Path
) -> None:
    """Checkpoints of one tokenizer pad their vocabularies differently."""
    small = {"vocab_size": 255, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    shorter = tiny_checkpoint(tmp_path / "draft", seed=1, dtype=torch.float64, **small)
    ids, params = clean(1), GREEDY
    if where == "text":
        params = replace(GREEDY, logit_bias=((VOCAB_SIZE - 1, 1000.0),))
    else:
        ids[4 if where == "prompt" else -1] = VOCAB_SIZE - 1
    cases = [Case(ids, params), Case(clean(2), GREEDY)]
    engine = opened(draft=str(shorter), drafter="model", k=3, slots=2)
    for got, wanted in zip(together(engine, cases), together(opened(k=0), cases), strict=True):
        same(got, wanted)


@pytest.mark.parametrize("where", ["prefill", "observe", "propose"])
def test_a_drafter_that_raises(where: str, opened: Callable[..., Engine]) -> None:
    """What was in the step ends with an error that names the fault, rather than with a text that
    lacks tokens; the engine goes on."""
    drafter = Faulty(where, times=0)
    engine = opened(drafter=drafter, k=2, slots=2)
    plain = [Case(clean(1), GREEDY), Case(clean(2), GREEDY), Case(clean(3), GREEDY)]
    wanted = together(opened(k=0), plain)
    with engine._driver.held() as step:
        streams = [engine.stream(case.prompt, case.params) for case in plain]
        if where == "observe":
            while engine.stats().rounds < 2:
                step()
        drafter.times = 1
    outcomes: list[object] = []
    for stream in streams:
        try:
            outcomes.append(tuple(token for event in stream for token in event.token_ids))
        except StepError as error:
            outcomes.append(f"{error.__cause__!r} {str(error)[:32]}")
    told = f"ZeroDivisionError({where!r}) the engine met ZeroDivisionError"
    failed = [outcome == told for outcome in outcomes]
    assert any(failed)
    assert not all(failed)
    assert not failed[2]
    for outcome, result, bad in zip(outcomes, wanted, failed, strict=True):
        assert bad or outcome == result.token_ids
    for got, result in zip(together(engine, plain), wanted, strict=True):
        same(got, result)
    assert held(engine) == (0, 0)


class Choosy(Faulty):
    """Takes no request with a prediction, and says so in its own way."""

    def __init__(self, error: type[BaseException]) -> None:
        super().__init__("admit", times=0, error=error)

    def admit(self, slot: int, request: Request) -> None:
        self.times = int(bool(request.prediction))
        super().admit(slot, request)


@pytest.mark.parametrize("error", [RequestError, ZeroDivisionError, Panic])
def test_what_a_drafter_cannot_take_ends_alone(
    error: type[BaseException], opened: Callable[..., Engine]
) -> None:
    """However many come one after the other: those that run miss no round, and the engine stays."""
    drafter = Choosy(error)
    engine = opened(drafter=drafter, k=2, slots=3)
    with engine._driver.held() as step:
        running = engine.submit(clean(1), replace(GREEDY, max_tokens=30))
        while engine.stats().rounds < 2:
            step()
        for _ in range(7):
            bad = engine.submit(clean(2), GREEDY, prediction=[1])
            rounds = engine.stats().rounds
            step()
            assert engine.stats().rounds == rounds + 1
            assert engine._driver._failures == 0
            assert bad.wait_closed(0)
            assert drafter.held() is None  # nothing of the frames it failed in is kept
            told = "admit" if error is RequestError else rf"'faulty' could .*: {error.__name__}: ad"
            with pytest.raises(RequestError if error is RequestError else StepError, match=told):
                bad.result()
    (alone,) = opened(k=0).generate([clean(1)], replace(GREEDY, max_tokens=30))
    assert running.result(60).token_ids == alone.token_ids
    assert engine.ended is None
    assert held(engine) == (0, 0)
    check_slots(engine, opened)


def test_a_device_that_is_gone_is_no_drafters_fault(
    opened: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = opened(drafter=Faulty("admit"), k=2, slots=2)
    monkeypatch.setattr(Loop, "answers", lambda self: False)
    handle = engine.submit(clean(1), GREEDY)
    with pytest.raises(StepError, match="the engine met ZeroDivisionError: admit"):
        handle.result(60)
    assert engine._driver._thread is not None
    engine._driver._thread.join(60)
    assert isinstance(engine.ended, EngineClosedError)


def test_nobody_waits_for_ever_where_the_books_are_wrong(
    opened: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine ends with a round in flight, and the scheduler knows nothing of it."""
    engine = opened(k=0, slots=2)
    loop, gone = engine._loop, EngineClosedError("the engine was closed")
    with engine._driver.held() as step:
        loop.rounds = CapturedRounds(loop.machine, (0,))
        handles = [engine.submit(clean(n), GREEDY) for n in range(3)]
        while engine.stats().rounds < 2:
            step()
        assert loop._launched

        def settled(*_: object) -> None:
            raise IndexError("pop from empty list")

        with monkeypatch.context() as patched:
            patched.setattr(Scheduler, "settled", settled)
            with pytest.raises(IndexError):
                loop.end_all(gone)
        for handle in handles:
            assert handle.wait_closed(0)
            with pytest.raises(EngineClosedError):
                handle.result()
        engine._driver.stop(join=False)


def test_a_release_that_raises_ends_nobody_else(opened: Callable[..., Engine]) -> None:
    """Neither the others that run, nor the slot: the next requests have it."""
    drafter = Faulty("release", times=0)
    engine = opened(drafter=drafter, k=2, slots=2)
    cases = [Case(clean(1), replace(GREEDY, max_tokens=4)), Case(clean(2), GREEDY)]
    wanted = together(opened(k=0), cases)
    drafter.times = 1
    for got, result in zip(together(engine, cases), wanted, strict=True):
        same(got, result)
    for got, result in zip(together(engine, cases), wanted, strict=True):
        same(got, result)
    assert held(engine) == (0, 0)


def test_every_row_of_a_step_that_fails_is_told_the_same(opened: Callable[..., Engine]) -> None:
    """Also where one of them cannot be released on the way."""
    drafter = Faulty("propose", times=0)
    engine = opened(drafter=drafter, k=2, slots=3)
    with engine._driver.held() as step:
        handles = [engine.submit(clean(n), GREEDY) for n in range(3)]
        while engine.stats().rounds < 2:
            step()
        drafter.times = 1
        release, left = drafter.release, [1]

        def broken(slot: int) -> None:
            if left:
                left.pop()
                raise RuntimeError("cannot release")
            release(slot)

        drafter.release = broken  # type: ignore[method-assign]
    for handle in handles:
        with pytest.raises(StepError, match="ZeroDivisionError: propose"):
            handle.result(60)
    engine._driver.ask(lambda: engine._loop.scheduler.check())
    assert held(engine) == (0, 0)
    (done,) = engine.generate([clean(1)], GREEDY)
    same(
        together(opened(k=0), [Case(clean(1), GREEDY)])[0],
        together(engine, [Case(clean(1), GREEDY)])[0],
    )
    assert done.finish == "length"


def test_what_an_engine_that_stopped_says_of_itself(opened: Callable[..., Engine]) -> None:
    """Nothing runs in it and nothing is held, whatever was on its way."""
    engine = opened(drafter=Faulty("propose", times=99), k=2, slots=1)
    with engine._driver.held():  # or it may have stopped before the last of them comes
        handles = [engine.submit(clean(n), GREEDY) for n in range(8)]
    for handle in handles:
        with pytest.raises(PacelineError):
            handle.result(60)
    assert engine._driver.broken is not None
    assert engine._driver._thread is not None
    engine._driver._thread.join(60)
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.pages_used) == (0, 0, 0)


def test_a_round_that_cannot_be_read_holds_nothing(opened: Callable[..., Engine]) -> None:
    """A drafter that names a source it does not have: nobody can say what was accepted of whom."""

    class Nameless(Drafter):
        name: ClassVar[str] = "nameless"

        def propose(self, rows: Rows, k: int, draw: Draw) -> Draft:
            count = torch.full_like(rows.length, k)
            return Draft(rows.length.new_zeros(len(count), k), count, torch.full_like(count, 9))

    engine = opened(drafter=Nameless(), k=2, slots=2)
    for _ in range(3):
        with engine._driver.held():  # in one step: five that fail in a row end the engine
            handles = [engine.submit(clean(n), GREEDY) for n in (1, 2)]
        for handle in handles:
            with pytest.raises(StepError, match="IndexError"):
                handle.result(60)
    assert held(engine) == (0, 0)
    (done,) = engine.generate([clean(1)], GREEDY, k=0)
    assert done.finish == "length"


def test_a_policy_that_raises_loses_no_token_in_silence(
    opened: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a round committed is told, or the request ends with the error."""
    engine = opened(drafter="ngram", k=2, slots=2)
    calls = iter(range(1000))

    def settled(*_: object, **__: object) -> None:
        if next(calls) == 3:
            raise ZeroDivisionError("policy")

    with engine._driver.held():
        monkeypatch.setattr(engine._loop.pilot, "settled", settled)
        handles = [engine.submit(clean(n), GREEDY) for n in range(2)]
    for handle in handles:
        with pytest.raises(StepError, match="ZeroDivisionError: policy"):
            handle.result(60)
    assert held(engine) == (0, 0)

"""Leaving, closing, and reading from several places at once."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest
from tests.engine.tools import Case, Pair, RandomDrafter, Result, joined, prompt, same, together

from paceline import Engine, EngineClosedError, RequestError, SamplingParams
from paceline.engine.round import Plan
from paceline.engine.rounds import Pending

PARAMS = SamplingParams(temperature=1.0, seed=3, max_tokens=24, ignore_eos=True, logprobs=1)
CASES = [Case(prompt(seed, 5 + 6 * seed), replace(PARAMS, seed=seed)) for seed in range(6)]


@pytest.fixture
def wanted(opened: Callable[..., Engine]) -> list[Result]:
    return together(opened(k=0, slots=1), CASES)


@pytest.fixture
def engine(pair: Pair, opened: Callable[..., Engine]) -> Engine:
    """Two slots, a draft model that is mostly right, chunks of four."""
    return opened(draft=pair.target, k=3, slots=2, prefill_chunk=4)


def idle(engine: Engine) -> bool:
    loop = engine._loop
    return engine._driver.ask(lambda: loop.idle and not loop.ledger.live)


def check_clean(engine: Engine, wanted: list[Result]) -> None:
    """Nobody is left, and every slot writes what it should."""
    assert idle(engine)
    for got, expected in zip(together(engine, CASES), wanted, strict=True):
        same(got, expected)
    assert idle(engine)


@pytest.mark.parametrize("steps", [0, 1, 4, 9, 12])
def test_leaving_a_stream(steps: int, engine: Engine, wanted: list[Result]) -> None:
    """Before it was read at all, while its prompt is read, while it runs: the slot is free, what
    runs beside it and what follows in its slot are as alone."""
    long = Case(prompt(40, 33), replace(PARAMS, max_tokens=60))
    with engine._driver.held() as step:
        leaving = engine.stream(long.prompt, long.params)
        beside = engine.stream(CASES[1].prompt, CASES[1].params)
        for _ in range(steps):
            step()
        leaving.close()  # type: ignore[attr-defined]
    assert [event.finish for event in [*leaving]] == []
    same(joined(list(beside)), wanted[1])
    check_clean(engine, wanted)


def test_a_loop_that_breaks(engine: Engine, wanted: list[Result]) -> None:
    for count in (1, 2):
        for number, event in enumerate(engine.stream(CASES[0].prompt, CASES[0].params), 1):
            assert event.finish is None
            if number == count:
                break
        gc.collect()
        assert idle(engine)
    check_clean(engine, wanted)


def test_an_exception_in_the_consumer(engine: Engine, wanted: list[Result]) -> None:
    def consume() -> None:
        for _ in engine.stream(CASES[0].prompt, CASES[0].params):
            raise KeyError("the consumer's own")

    with pytest.raises(KeyError):
        consume()
    gc.collect()
    check_clean(engine, wanted)


def test_cancelling_while_waiting(engine: Engine, wanted: list[Result]) -> None:
    """Three wait behind two; the middle one leaves."""
    with engine._driver.held() as step:
        streams = [engine.stream(case.prompt, case.params) for case in CASES[:5]]
        while not engine.stats().rounds:
            step()
        first = next(streams[0])
        assert engine.stats().waiting == 3
        streams[3].close()  # type: ignore[attr-defined]
        step()
        assert engine.stats().waiting == 2
    same(joined([first, *streams[0]]), wanted[0])
    for number in (1, 2, 4):
        same(joined(list(streams[number])), wanted[number])
    check_clean(engine, wanted)


def test_dropped_unread(engine: Engine, wanted: list[Result]) -> None:
    engine.stream(CASES[0].prompt, CASES[0].params)
    gc.collect()
    check_clean(engine, wanted)


def test_a_bad_prompt_among_good_ones_leaves_none_behind(
    engine: Engine, wanted: list[Result]
) -> None:
    with pytest.raises(RequestError, match="empty"):
        engine.generate([prompt(1), prompt(2), []], PARAMS)
    check_clean(engine, wanted)


# --- closing ----------------------------------------------------------------------------------


def wait_to_be_closed(engine: Engine) -> None:
    """Have the engine's thread do nothing from its next step on, until the engine is closed."""

    def command() -> None:
        while not engine._driver.stopping:
            time.sleep(0.001)

    engine._driver.post(command)


def test_closing_while_it_runs(engine: Engine) -> None:
    with engine._driver.held() as step:
        stream = engine.stream(CASES[0].prompt, CASES[0].params)
        while not engine.stats().rounds:
            step()
        wait_to_be_closed(engine)
    next(stream)
    engine.close()
    engine.close()
    with pytest.raises(EngineClosedError, match="open a new one"):
        list(stream)
    for use in (
        lambda: engine.stream([1]),
        lambda: engine.generate([[1]]),
        lambda: engine.score([1]),
    ):
        with pytest.raises(EngineClosedError):
            use()
    assert engine.stats().rounds > 0


def test_closing_gives_each_request_an_error_of_its_own(engine: Engine) -> None:
    """One that is raised in many threads would remember every place."""
    with engine._driver.held():
        handles = [engine.submit(case.prompt, case.params) for case in CASES]
        wait_to_be_closed(engine)
    engine.close()
    errors = []
    for handle in handles:
        with pytest.raises(EngineClosedError, match="the engine was closed") as caught:
            handle.result(60)
        errors.append(caught.value)
    assert len(set(map(id, errors))) == len(CASES)
    assert all(error.__cause__ is None for error in errors)


def test_closing_ends_the_thread_where_nothing_can_be_kept(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> None:
        raise OSError("nowhere to keep it")

    monkeypatch.setattr(engine, "_keep", fails)
    with pytest.raises(OSError, match="nowhere"):
        engine.close()
    thread = engine._driver._thread
    assert thread is not None
    assert not thread.is_alive()
    assert isinstance(engine.ended, EngineClosedError)
    engine.close()


def test_the_context_manager_closes(pair: Pair) -> None:
    with Engine(pair.target, threads=1, dtype="float32") as engine:
        engine.generate([[65]], PARAMS)
    with pytest.raises(EngineClosedError):
        engine.generate([[65]], PARAMS)


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_closed_engine_keeps_no_model(adaptive: bool, pair: Pair) -> None:
    """Whoever opens the next one in the same lines still has a name for it, and its texts."""
    engine = Engine(
        pair.target, draft=pair.target, threads=1, dtype="float32", adaptive=adaptive, slots=2
    )
    handle = engine.submit([65], PARAMS)
    before = handle.result(60)
    loop = engine._loop
    kept = [weakref.ref(x) for x in (loop.machine.target, loop.machine.pool, loop.machine.drafter)]
    del loop
    stats = engine.stats()
    engine.close()
    gc.collect()
    assert [one() for one in kept] == [None] * 3
    assert engine.stats() == stats
    assert handle.result(60) == before
    handle.cancel()
    for ask in (lambda: engine.score([65]), lambda: engine.fix_k(0), engine.costs):
        with pytest.raises(EngineClosedError):
            ask()
    engine.close()


def test_closing_from_another_thread(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of a step: its round is launched when the engine is told to close."""
    started, launched = threading.Event(), threading.Event()
    launch = engine._loop.rounds.launch
    outcome: list[object] = []

    def read() -> None:
        try:
            for _ in engine.stream(CASES[0].prompt, replace(PARAMS, max_tokens=150), k=0):
                started.set()
        except EngineClosedError as error:
            outcome.append(error)

    def slow(plan: Plan) -> Pending:
        launched.set()
        while not engine._driver.stopping:
            time.sleep(0.001)
        return launch(plan)

    reader = threading.Thread(target=read)
    with engine._driver.held() as step:
        reader.start()
        while not started.wait(0.01):
            step()
        monkeypatch.setattr(engine._loop.rounds, "launch", slow)
    assert launched.wait(60)
    engine.close()
    reader.join(60)
    assert not reader.is_alive()
    assert len(outcome) == 1


# --- threads ----------------------------------------------------------------------------------


def test_threads_stream_at_once(engine: Engine, wanted: list[Result]) -> None:
    """More readers than slots, each in its own thread, some leaving early."""
    results: dict[int, Result] = {}
    errors: list[BaseException] = []

    def read(number: int) -> None:
        try:
            case = CASES[number]
            for turn in range(3):
                if number % 2 and turn == 0:
                    next(engine.stream(case.prompt, case.params))
                results[number] = joined(list(engine.stream(case.prompt, case.params)))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=read, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not errors
    for number in range(4):
        same(results[number], wanted[number])
    check_clean(engine, wanted)


def test_generating_in_two_threads(engine: Engine, wanted: list[Result]) -> None:
    texts: dict[int, Any] = {}

    def write(number: int) -> None:
        for _ in range(3):
            texts[number] = engine.generate([CASES[number].prompt] * 2, CASES[number].params)

    threads = [threading.Thread(target=write, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    for number in (0, 1):
        assert [one.token_ids for one in texts[number]] == [wanted[number].token_ids] * 2
        assert [one.text for one in texts[number]] == [wanted[number].text] * 2


# --- asyncio ----------------------------------------------------------------------------------


async def collect(engine: Engine, case: Case) -> Result:
    return joined([event async for event in engine.astream(case.prompt, case.params)])


def test_several_consumers_at_once(engine: Engine, wanted: list[Result]) -> None:
    async def all_of_them() -> list[Result]:
        return list(await asyncio.gather(*(collect(engine, case) for case in CASES)))

    for got, expected in zip(asyncio.run(all_of_them()), wanted, strict=True):
        same(got, expected)
    check_clean(engine, wanted)


def test_tasks_that_are_cancelled_or_raise(engine: Engine, wanted: list[Result]) -> None:
    """One task is cancelled, one leaves its loop, one raises; the others are undisturbed."""

    async def leave(case: Case) -> None:
        async with aclosing(engine.astream(case.prompt, case.params)) as events:  # type: ignore[type-var]
            async for _ in events:
                return

    async def fail(case: Case) -> None:
        async with aclosing(engine.astream(case.prompt, case.params)) as events:  # type: ignore[type-var]
            async for _ in events:
                raise KeyError("the consumer's own")

    async def scene() -> list[Any]:
        with engine._driver.held() as step:  # so that none is done too early
            cancelled = asyncio.create_task(collect(engine, CASES[3]))
            rest = asyncio.gather(
                collect(engine, CASES[0]),
                leave(CASES[4]),
                fail(CASES[5]),
                collect(engine, CASES[1]),
                return_exceptions=True,
            )
            while engine.stats().rounds < 2:
                await asyncio.sleep(0)
                step()
            cancelled.cancel()
        outcomes = await rest
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        return outcomes

    first, left, failed, last = asyncio.run(scene())
    same(first, wanted[0])
    same(last, wanted[1])
    assert left is None
    assert isinstance(failed, KeyError)
    check_clean(engine, wanted)


def test_async_requests_are_checked(engine: Engine) -> None:
    async def ask() -> None:
        with pytest.raises(RequestError, match="empty"):
            await anext(engine.astream([]))

    asyncio.run(ask())
    assert idle(engine)


def test_closing_under_async_readers(opened: Callable[..., Engine]) -> None:
    engine = opened(drafter=RandomDrafter(), k=2, slots=1)

    async def scene() -> list[Any]:
        with engine._driver.held() as step:
            tasks = [
                asyncio.create_task(
                    collect(engine, replace(case, params=replace(PARAMS, max_tokens=99)))
                )
                for case in CASES[:3]
            ]
            while engine.stats().rounds < 4:
                await asyncio.sleep(0)
                step()
            wait_to_be_closed(engine)
        engine.close()
        return await asyncio.gather(*tasks, return_exceptions=True)

    for outcome in asyncio.run(scene()):
        assert isinstance(outcome, EngineClosedError)

"""What a caller holds: handles read from threads and event loops, deadlines, priorities, draining,
and what a device that fails leaves behind."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.engine.tools import Case, Pair, RandomDrafter, joined, prompt, same, together

from paceline import (
    Engine,
    EngineClosedError,
    Event,
    PacelineError,
    RequestError,
    SamplingParams,
)
from paceline.engine.loop import Loop

PARAMS = SamplingParams(temperature=1.0, seed=3, max_tokens=24, ignore_eos=True)
LONG = replace(PARAMS, max_tokens=150)


@pytest.fixture
def engine(pair: Pair, opened: Callable[..., Engine]) -> Engine:
    return opened(draft=pair.target, k=3, slots=2, prefill_chunk=4)


def clean(engine: Engine) -> bool:
    stats = engine._driver.ask(engine.stats)
    return engine._driver.ask(lambda: engine._loop.idle) and stats.pages_used == 0


def test_a_handle_is_written_without_being_read(engine: Engine) -> None:
    handles = [engine.submit(prompt(n), replace(PARAMS, seed=n)) for n in range(4)]
    assert len({handle.id for handle in handles}) == 4
    done = [handle.result(60) for handle in handles]
    assert [handle.finish for handle in handles] == ["length"] * 4
    for n, (handle, completion) in enumerate(zip(handles, done, strict=True)):
        (alone,) = engine.generate([prompt(n)], replace(PARAMS, seed=n))
        assert completion.token_ids == alone.token_ids
        result = joined(list(handle.events()))  # still there, and once only
        assert result.token_ids == alone.token_ids
        assert list(handle.events()) == []
    assert clean(engine)


def test_events_tell_what_their_rounds_did(engine: Engine) -> None:
    """Round by round they add up to the counts of the whole text."""
    handles = [
        engine.submit(prompt(n), replace(PARAMS, seed=n), k=k) for n, k in enumerate((3, 2, 0))
    ]
    for handle, k in zip(handles, (3, 2, 0), strict=True):
        events, stats = list(handle.events()), handle.result(60).stats
        rounds = [event.round for event in events if event.round is not None]
        assert len(rounds) == len(events) == stats.rounds
        assert {r.k for r in rounds} <= set(range(k + 1))
        assert max(r.k for r in rounds) == k
        assert all(r.accepted <= r.evaluated <= r.drafted <= r.k for r in rounds)
        assert all((r.drafter is None) == (r.drafted == 0) for r in rounds)
        assert sum(r.drafted for r in rounds) == stats.drafted
        assert sum(r.evaluated for r in rounds) == stats.evaluated
        assert sum(r.accepted for r in rounds) == stats.accepted
        assert sum(r.seconds for r in rounds) == pytest.approx(stats.decode_seconds)
        assert all(e.sources.count("target") == len(e.token_ids) - e.round.accepted
                   for e in events if e.round is not None)  # fmt: skip
        assert ["".join(event.pieces) for event in events] == [event.text for event in events]


def test_an_event_without_a_round(engine: Engine) -> None:
    with engine._driver.held():
        handle = engine.submit(prompt(1), LONG)
        handle.cancel()
    *_, last = handle.events()
    assert (last.finish, last.round, last.pieces, last.token_ids) == ("cancelled", None, (), ())


def test_events_in_threads_and_event_loops_at_once(engine: Engine) -> None:
    cases = [Case(prompt(n), replace(PARAMS, seed=n)) for n in range(6)]
    wanted = together(engine, cases)
    handles = [engine.submit(case.prompt, case.params) for case in cases]
    seen: dict[int, list[Event]] = {}

    def read(n: int) -> None:
        seen[n] = list(handles[n].events())

    async def read_async(n: int) -> None:
        seen[n] = [event async for event in handles[n].events()]

    async def several() -> None:
        await asyncio.gather(*(read_async(n) for n in (3, 4, 5)))

    threads = [threading.Thread(target=read, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    asyncio.run(several())
    for thread in threads:
        thread.join(60)
    for n, result in enumerate(wanted):
        same(joined(seen[n]), result)


def test_a_task_that_is_cancelled_while_it_awaits_events(engine: Engine) -> None:
    """It ends at once, its neighbour reads on, and whoever asks next gets what it has missed."""

    async def read(n: int) -> list[Event]:
        return [event async for event in handles[n].events()]

    async def both() -> list[Event]:
        leaving, staying = asyncio.create_task(read(0)), asyncio.create_task(read(1))
        await asyncio.sleep(0.01)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(leaving, 60)
        assert not staying.done()
        while handles[1].finish is None:
            step()
        return await asyncio.wait_for(staying, 60)

    with engine._driver.held() as step:
        handles = [engine.submit(prompt(n), replace(PARAMS, max_tokens=1)) for n in range(2)]
        assert [event.finish for event in asyncio.run(both())] == ["length"]
        assert [event.finish for event in handles[0].events()] == ["length"]


def test_a_result_that_is_waited_for_too_short(engine: Engine) -> None:
    with engine._driver.held():
        handle = engine.submit(prompt(1), PARAMS)
        with pytest.raises(TimeoutError, match=r"not finished after 0\.01 s"):
            handle.result(0.01)
        assert handle.finish is None
    assert len(handle.result().token_ids) == 24


def test_cancelling_frees_slot_and_pages_within_two_rounds(engine: Engine) -> None:
    for place in ("waiting", "prefill", "running"):
        with engine._driver.held() as step:
            others = [engine.submit(prompt(n), LONG) for n in range(2 if place == "waiting" else 0)]
            leaving = engine.submit(prompt(9, 30), LONG)
            before = engine.stats().rounds
            step()
            while engine.stats().rounds < before + 2 and place != "prefill":
                step()
            leaving.cancel()
            for _ in range(2):
                step()
            stats = engine.stats()
            assert stats.running == len(others), place
            assert leaving.finish == "cancelled"
            for other in others:
                other.cancel()
        events = list(leaving.events())
        assert [event.finish for event in events][-1] == "cancelled"
        assert leaving.result().finish == "cancelled"
        for other in others:
            assert other.result(60).finish in ("cancelled", "length")
        assert clean(engine), place


def test_a_deadline_keeps_what_was_written(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    ahead = [0.0]  # the engine's clock is put forward: no machine is too slow for this
    clock = SimpleNamespace(
        monotonic=lambda: time.monotonic() + ahead[0], perf_counter=time.perf_counter
    )
    monkeypatch.setattr("paceline.engine.loop.time", clock)
    (whole,) = engine.generate([prompt(1)], LONG)
    with engine._driver.held() as step:
        handle = engine.submit(prompt(1), LONG, deadline=600)
        late = engine.submit(prompt(2), LONG, deadline=1e-6)
        while not engine.stats().rounds > whole.stats.rounds + 2:
            step()
        ahead[0] = 600.0
        step()
    done = handle.result(60)
    assert done.finish == "deadline"
    assert 0 < len(done.token_ids) < 150
    assert done.token_ids == whole.token_ids[: len(done.token_ids)]
    assert late.result(60).finish == "deadline"
    assert late.result().token_ids == ()
    assert clean(engine)


def test_priorities_go_first(opened: Callable[..., Engine]) -> None:
    engine = opened(k=0, slots=1)
    order: list[int] = []
    with engine._driver.held():
        handles = {
            n: engine.submit(prompt(n), replace(PARAMS, max_tokens=3), priority=n)
            for n in (0, 2, 1, -1)
        }
        for n, handle in handles.items():
            handle._reader.notify = lambda n=n, h=handle: (  # type: ignore[misc]
                order.append(n) if h._reader.closed else None,
                engine._driver.touch(h),
            )
    for handle in handles.values():
        handle.result(60)
    assert order == [2, 1, 0, -1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"priority": 1.5}, "priority"),
        ({"deadline": 0}, "deadline"),
        ({"deadline": -1.0}, "deadline"),
        ({"k": 9}, "k must be"),
    ],
)
def test_bad_options_are_told(options: dict[str, float], words: str, engine: Engine) -> None:
    with pytest.raises(RequestError, match=words):
        engine.submit(prompt(1), PARAMS, **options)  # type: ignore[arg-type]
    assert clean(engine)


def test_every_way_in_takes_what_may_be_asked(engine: Engine) -> None:
    asked: Any = {"prediction": "abc", "k": 1, "priority": 2, "deadline": 1e-6, "grammar": None}
    (whole,) = engine.generate([prompt(1)], PARAMS, **asked)
    *_, last = engine.stream(prompt(1), PARAMS, **asked)
    assert (whole.finish, last.finish) == ("deadline", "deadline")
    for ask in (engine.generate, engine.submit, engine.stream):
        with pytest.raises(TypeError, match="'priorty'"):
            ask(prompt(1), PARAMS, priorty=2)  # type: ignore[call-arg]
    assert clean(engine)


# --- draining and closing ---------------------------------------------------------------------


def test_drain_finishes_what_runs_and_refuses_what_comes(engine: Engine) -> None:
    handles = [engine.submit(prompt(n), PARAMS) for n in range(5)]
    drained: list[bool] = []
    thread = threading.Thread(target=lambda: drained.append(engine.drain()))
    thread.start()
    while not engine._draining:
        time.sleep(0.001)
    with pytest.raises(EngineClosedError, match="draining"):
        engine.submit(prompt(9), PARAMS)
    thread.join(60)
    assert drained == [True]
    assert [handle.finish for handle in handles] == ["length"] * 5
    engine.close()
    with pytest.raises(EngineClosedError, match="open a new one"):
        engine.submit(prompt(9), PARAMS)


def test_a_drain_may_be_given_up(engine: Engine) -> None:
    handles = [engine.submit(prompt(n), LONG) for n in range(8)]  # work for long enough
    assert engine.drain(timeout=0.0) is False
    assert {handle.result(60).finish for handle in handles} == {"length"}


def test_an_engine_that_is_dropped_ends_its_thread(pair: Pair) -> None:
    engine = Engine(pair.target, threads=1, dtype="float32")
    engine.generate([[65]], PARAMS)
    thread, gone = engine._driver._thread, weakref.ref(engine)
    assert thread is not None
    del engine
    gc.collect()
    thread.join(60)
    assert gone() is None
    assert not thread.is_alive()


# --- faults -----------------------------------------------------------------------------------


class Deaf(RandomDrafter):
    """Fails when told, like a kernel that hits an error."""

    fail = 0

    def propose(self, *args: object) -> object:  # type: ignore[override]
        if self.fail:
            self.fail -= 1
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return super().propose(*args)  # type: ignore[arg-type]


def test_a_fault_fails_what_runs_and_spares_what_waits(opened: Callable[..., Engine]) -> None:
    drafter = Deaf()
    engine = opened(drafter=drafter, k=2, slots=2)
    wanted = together(opened(k=0), [Case(prompt(3), PARAMS)])[0]
    with engine._driver.held() as step:
        running = [engine.submit(prompt(n), PARAMS) for n in (1, 2)]
        waiting = engine.submit(prompt(3), PARAMS)
        while engine.stats().rounds < 2:
            step()
        drafter.fail = 1
    for handle in running:
        with pytest.raises(PacelineError, match=r"RuntimeError: CUDA error.*send it again"):
            handle.result(60)
    assert waiting.result(60).token_ids == wanted.token_ids
    assert clean(engine)


def test_a_device_that_does_not_answer_ends_the_engine(
    opened: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    drafter = Deaf()
    engine = opened(drafter=drafter, k=2, slots=1)
    monkeypatch.setattr(Loop, "answers", lambda self: False)
    with engine._driver.held():
        running, waiting = (engine.submit(prompt(n), PARAMS) for n in (1, 2))
        drafter.fail = 1
    for handle in (running, waiting):
        with pytest.raises(PacelineError, match="CUDA error"):
            handle.result(60)
    assert engine._driver._thread is not None
    engine._driver._thread.join(60)
    for use in (
        lambda: engine.submit([1], PARAMS),
        lambda: engine.score([1]),
        lambda: engine.drain(),
    ):
        with pytest.raises(EngineClosedError, match=r"the engine stopped|is closed"):
            use()
    assert engine.stats().finished == 1  # the process can still say how it stood
    engine.close()


def test_steps_that_keep_failing_end_the_engine(
    opened: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = opened(k=0)

    def step(self: Loop) -> None:
        raise AssertionError("a page is lost")

    monkeypatch.setattr(Loop, "step", step)
    with pytest.raises(EngineClosedError, match="AssertionError: a page is lost"):
        engine.submit(prompt(1), PARAMS).result(60)


def test_scores_between_rounds(engine: Engine) -> None:
    handle = engine.submit(prompt(1), LONG)
    first = engine.score(prompt(5))
    assert torch.equal(first, engine.score(prompt(5)))
    assert handle.result(60).finish == "length"


def test_a_request_that_draining_overtakes_is_nobodys(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused after it was handed over: it does not run on without a reader."""
    post = engine._driver.post

    def late(command: Callable[[], None]) -> None:
        post(command)
        engine._draining = True

    with engine._driver.held(), monkeypatch.context() as patch:
        patch.setattr(engine._driver, "post", late)
        with pytest.raises(EngineClosedError, match="draining"):
            engine.submit(prompt(1), LONG)
    assert engine.drain(60)
    assert engine.stats().emitted == 0

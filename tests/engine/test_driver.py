"""The engine's thread: what is asked of it is done between steps, and never in place of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress

import pytest
from tests.engine.tools import prompt

from paceline import Engine, EngineClosedError, SamplingParams
from paceline.engine import scoring
from paceline.engine.driver import Driver

MANY = 50


class Busy:
    """A loop that always has something to do, until it is told to rest."""

    def __init__(self, log: list[str]) -> None:
        self.log, self.idle = log, False

    def step(self) -> None:
        self.log.append("step")

    def end_all(self, error: Exception) -> None:
        self.idle = True

    def answers(self) -> bool:
        return True


@pytest.fixture
def driven() -> Iterator[tuple[Driver, Busy, list[str]]]:
    log = list[str]()
    driver, busy = Driver(nullcontext), Busy(log)
    driver.start(lambda: None, lambda _: busy)
    yield driver, busy, log
    driver.stop()


def chain(driver: Driver, log: list[str], name: str, heavy: bool) -> Callable[[], None]:
    """A caller who asks again as soon as it is answered."""
    left = iter(range(MANY))

    def command() -> None:
        log.append(name)
        if next(left, None) is not None:
            driver.post(command, heavy)

    return command


@pytest.mark.parametrize("heavy", [False, True])
def test_a_step_comes_between_however_many_ask(
    heavy: bool, driven: tuple[Driver, Busy, list[str]]
) -> None:
    driver, _, log = driven
    with driver.held() as step:
        log.clear()
        for name in ("a", "b"):
            driver.post(chain(driver, log, name, heavy), heavy)
        for _ in range(4):
            step()
        turn = ["a", "step", "b", "step"] if heavy else 2 * ["a", "b", "step"]
        assert log == 2 * turn


def test_what_is_light_goes_before_what_is_heavy(
    driven: tuple[Driver, Busy, list[str]],
) -> None:
    """One who waits for a pass over a text does not hold up who wants a text written."""
    driver, _, log = driven
    with driver.held() as step:
        log.clear()
        for name, heavy in (("a", True), ("b", True), ("c", False), ("d", True), ("e", False)):
            driver.post(lambda name=name: log.append(name), heavy)  # type: ignore[misc]
        step()
        step()
        assert log == ["c", "e", "a", "step", "b", "step"]


@pytest.mark.parametrize("heavy", [False, True])
def test_an_idle_thread_wakes_for_each(heavy: bool, driven: tuple[Driver, Busy, list[str]]) -> None:
    driver, busy, log = driven
    driver.ask(lambda: setattr(busy, "idle", True))
    log.clear()
    assert [driver.ask(lambda n=n: n, heavy) for n in range(MANY)] == list(range(MANY))  # type: ignore[misc]
    assert log == []


@pytest.mark.parametrize("heavy", [False, True])
def test_closing_does_not_wait_for_who_asks_on_and_on(
    heavy: bool, driven: tuple[Driver, Busy, list[str]]
) -> None:
    driver, _, log = driven
    done = threading.Event()
    command = chain(driver, log, "a", heavy)
    with driver.held():
        driver.post(command, heavy)
        driver.post(lambda: done.set(), heavy)
        driver.stop(join=False)
    driver.stop()
    assert driver._thread is not None
    assert not driver._thread.is_alive()
    assert done.is_set()  # what was asked before is answered
    assert log.count("a") < 4
    with pytest.raises(EngineClosedError):
        driver.ask(lambda: None, heavy)


def test_texts_go_on_beside_several_who_score(
    opened: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two at once one always asks while the other is served."""
    monkeypatch.setattr(scoring, "PIECE", 4)
    engine, read = opened(k=0), list[int]()

    def score(seed: int) -> None:
        with suppress(EngineClosedError):
            for piece in engine.prompt_logprobs(prompt(seed, 90)):
                read.append(len(piece))

    threads = [threading.Thread(target=score, args=(seed,)) for seed in range(2)]
    with engine._driver.held() as step:
        handle = engine.submit(prompt(9), SamplingParams(max_tokens=20, ignore_eos=True))
        for thread in threads:
            thread.start()
        for _ in range(20):
            rounds, pieces = engine.stats().rounds, len(read)
            step()
            assert engine.stats().rounds == rounds + 1
            assert len(read) <= pieces + 3  # one a step; each of both may book its last one late
        assert handle.wait_closed(60)
    for thread in threads:
        thread.join(60)
    assert sum(read) == 2 * 89

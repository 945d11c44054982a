"""The one thread that owns the device: it opens the machine, runs every step, and does what
callers ask of it between two steps.

Callers post commands and never wait for each other; however many they post, a step comes in
between. Knows what a loop is, and no request.
"""

from __future__ import annotations

import logging
import queue
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Protocol, TypeVar

from paceline.engine.handle import Handle, wake
from paceline.errors import EngineClosedError

log = logging.getLogger(__name__)

_T = TypeVar("_T")
_PATIENCE = 10.0  # seconds that closing waits for the round on its way
_FAILURES = 5  # steps that fail one after the other, and the engine is taken for broken


class Steps(Protocol):
    """What the thread drives: `engine.loop.Loop`."""

    @property
    def idle(self) -> bool: ...

    def step(self) -> None: ...

    def end_all(self, error: Exception) -> None:
        """Every request that is not finished fails with `error`."""
        ...

    def answers(self) -> bool:
        """Whether the device still works, after a step that failed."""
        ...


class Driver:
    """Runs a loop in a thread of its own."""

    def __init__(self, working: Callable[[], AbstractContextManager[None]]) -> None:
        """working: makes the context in which the thread touches the device."""
        self._working = working
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._heavy: deque[Callable[[], None]] = deque()
        self._touched: dict[Handle, None] = {}
        self._steps: Steps | None = None
        self._thread: threading.Thread | None = None
        self._stop = False
        self._failures = 0  # of steps, in a row
        self._broken: Exception | None = None

    # --- for callers ---

    def start(self, opening: Callable[[], _T], steps: Callable[[_T], Steps]) -> _T:
        """Run `opening` in the thread, then drive what `steps` makes of it. Raises what it raises.

        Interrupted while it waits (Ctrl-C), it tells the thread to stop and goes.
        """
        opened: Future[_T] = Future()
        thread = threading.Thread(
            target=self._main, args=(opening, steps, opened), name="paceline-engine", daemon=True
        )
        self._thread = thread
        thread.start()
        try:
            return opened.result()
        except BaseException:  # Ctrl-C, say
            self._stop = True
            raise

    def drive(self, steps: Steps) -> None:
        """Drive what there is to its end, and from then on another. Raises what a step of the
        former raises, and goes on with it."""

        def exchange() -> None:
            while self._steps is not None and not self._steps.idle:
                self._steps.step()
            self._steps = steps

        self.ask(exchange)

    @property
    def stopping(self) -> bool:
        """Whether the thread was told to stop: what takes long while it opens looks here."""
        return self._stop

    @property
    def ended(self) -> bool:
        """Whether the thread has ended, and with it all that it did to the device."""
        return self._thread is None or not self._thread.is_alive()

    @property
    def broken(self) -> Exception | None:
        """What ended the thread's work for good, or None."""
        return self._broken

    def post(self, command: Callable[[], None], heavy: bool = False) -> None:
        """Have `command` run between two steps. heavy: it keeps the device busy; one such is
        run between two steps, behind all the others that are there, so that running texts go on.
        Never waits; safe in a finaliser."""
        if heavy:
            self._heavy.append(command)
            command = _nothing
        self._commands.put(command)

    def ask(self, question: Callable[[], _T], heavy: bool = False) -> _T:
        """Run `question` in the thread between two steps and wait for what it returns. heavy: see
        `post`."""
        if threading.current_thread() is self._thread:
            return question()
        answer: Future[_T] = Future()

        def command() -> None:
            try:
                answer.set_result(question())
            except BaseException as error:  # whatever it was, whoever asks is told
                answer.set_exception(error)

        self.post(command, heavy)
        thread = self._thread
        while not answer.done():
            wait((answer,), timeout=1.0)
            if not answer.done() and (thread is None or not thread.is_alive()):
                self.forget()
                raise EngineClosedError("the engine is closed; open a new one")
        return answer.result()

    def touch(self, handle: Handle) -> None:
        """There is news for `handle`; whoever waits for it is woken at the end of the step."""
        self._touched[handle] = None

    def stop(self, join: bool = True) -> None:
        """End the thread; requests that are not finished fail. Safe to call twice."""
        self._stop = True
        self.post(_nothing)
        thread = self._thread
        if join and thread is not None and thread is not threading.current_thread():
            thread.join(_PATIENCE)

    def forget(self) -> None:
        """Once the thread has ended: drop what was posted too late, and what it holds."""
        self._heavy.clear()
        with suppress(queue.Empty):
            while True:
                self._commands.get_nowait()

    @contextmanager
    def held(self) -> Iterator[Callable[[], None]]:
        """Hold the thread between two steps; yields a function that runs one step here instead."""
        reached, go = threading.Event(), threading.Event()

        def command() -> None:
            reached.set()
            go.wait()
            self._obey(block=False)  # what came while it was held comes before the next step

        def step() -> None:
            with self._working():
                self._turn(sleep=False)

        self.post(command)
        reached.wait()
        try:
            yield step
        finally:
            go.set()

    # --- the thread ---

    def _main(
        self, opening: Callable[[], _T], steps: Callable[[_T], Steps], opened: Future[_T]
    ) -> None:
        with self._working():
            try:
                made = opening()
                self._steps = steps(made)
            except BaseException as error:  # `start` raises it, whatever it was
                opened.set_exception(error)
                return
            opened.set_result(made)
            del made, opened, opening, steps
            try:
                while not self._stop and self._broken is None:
                    self._turn(sleep=True)
            except BaseException as error:  # whatever it was: nobody may wait for ever
                self._broken = _stopped(error)
            finally:
                self._finish()

    def _turn(self, sleep: bool) -> None:
        """Do what was asked, then one step. sleep: while there is nothing to do."""
        assert self._steps is not None
        # Taken first and run last: what its thread posted before it is among the others by now.
        heavy = self._heavy.popleft() if self._heavy else None
        self._obey(sleep and heavy is None and self._steps.idle)
        if heavy is not None:
            _run(heavy)
        if not self._stop and not self._steps.idle:
            try:
                self._steps.step()
                self._failures = 0
            except BaseException as error:  # a panic of a library in Rust is no Exception
                self._fault(error)
        self._deliver()

    def _obey(self, block: bool) -> None:
        """Run the commands that are there, but the heavy ones. What comes meanwhile waits for the
        next turn: callers who ask again and again would else keep the steps from coming. block:
        wait until there is one."""
        with suppress(queue.Empty):
            command, left = self._commands.get(block), self._commands.qsize()
            _run(command)
            for _ in range(left):
                _run(self._commands.get_nowait())

    def _fault(self, error: BaseException) -> None:
        """A step failed, and with it the requests it was for. Go on if the device still works."""
        assert self._steps is not None
        log.error("a step failed: %r", error, exc_info=error)
        traceback.clear_frames(error.__traceback__)  # they hold the step's tensors
        self._failures += 1
        if self._failures >= _FAILURES or not self._steps.answers():
            self._broken = _stopped(error)

    def _finish(self) -> None:
        """Fail what is left, and answer what was asked too late."""
        assert self._steps is not None
        if self._broken is not None:
            log.error("%s", self._broken)
        closed = self._broken or EngineClosedError("the engine was closed; open a new one")
        try:
            self._steps.end_all(closed)
        finally:
            self._obey(block=False)
            for _ in range(len(self._heavy)):
                _run(self._heavy.popleft())
            try:
                self._steps.end_all(closed)  # what was posted in between
            finally:
                self._deliver()

    def _deliver(self) -> None:
        if self._touched:
            touched, self._touched = self._touched, {}
            wake(touched)


def _run(command: Callable[[], None]) -> None:
    try:
        command()
    except BaseException:  # a command tells its own caller; none may end the thread
        log.exception("a command failed")


def _stopped(error: BaseException) -> EngineClosedError:
    what = " ".join(str(error).split())[:300]
    told = EngineClosedError(f"the engine stopped: {type(error).__name__}: {what}; open a new one")
    told.__cause__ = error
    return told


def _nothing() -> None:
    """Wakes the thread."""

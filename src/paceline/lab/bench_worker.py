"""A contestant in a process of its own, so that its crash is its own and its memory can be told.

The parent sends orders, the child sends measurements as they come and a pass at the end. The child
ends when the parent has gone, also when it was killed. What it prints goes to a log file.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from paceline import PacelineError
from paceline.lab.bench_ask import Player
from paceline.lab.bench_load import Order, Tell, play
from paceline.lab.bench_record import Contestant, Measurement, Opening, Pass

_OPEN_SECONDS = 1800.0  # reading and compiling a large model
_GRACE = 60.0  # over what a text may take, before a silent process is taken for hung
_LOG_TAIL = 300


class Crashed(Exception):
    """A contestant's process has ended, or says nothing any more."""


# --- in the child ----------------------------------------------------------------------------


def open_player(contestant: Contestant, texts: int, once: bool) -> Player:
    """Open a contestant that runs in this process. Raises whatever its engine raises."""
    if contestant.engine == "paceline":
        from paceline.lab.bench_paceline import PacelinePlayer

        return PacelinePlayer(contestant, texts, once)
    from paceline.lab.bench_transformers import TransformersPlayer

    return TransformersPlayer(contestant)


def child(pipe: Connection, contestant: Contestant, texts: int, once: bool, log: str) -> None:
    """The child's whole life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, who then ends this
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(file, stream)
    faulthandler.enable()
    orders: queue.SimpleQueue[Order | None] = queue.SimpleQueue()

    def receive() -> None:
        while True:
            try:
                order = pipe.recv()
            except (EOFError, OSError):
                os._exit(0)  # the parent has gone: whatever is on its way, nobody waits for it
            orders.put(order)
            if order is None:
                return

    threading.Thread(target=receive, daemon=True).start()
    with contextlib.suppress(BrokenPipeError):
        asyncio.run(_serve(pipe, contestant, texts, once, orders))


async def _serve(
    pipe: Connection,
    contestant: Contestant,
    texts: int,
    once: bool,
    orders: queue.SimpleQueue[Order | None],
) -> None:
    try:
        player = open_player(contestant, texts, once)
    except Exception as error:  # of an engine or of a library: the bench is told, and goes on
        told = (
            str(error) if isinstance(error, PacelineError) else f"{type(error).__name__}: {error}"
        )
        if not isinstance(error, PacelineError):
            sys.excepthook(type(error), error, error.__traceback__)  # whole, into the log
        pipe.send((Opening(contestant, error=" ".join(told.split())[:500]), False))
        return
    pipe.send((player.opening(), player.chats))
    while (order := await asyncio.to_thread(orders.get)) is not None:
        pipe.send(await play(player, contestant, order, pipe.send))
    await player.close()


# --- in the parent ---------------------------------------------------------------------------


class Worker:
    """The parent's end of a contestant's process."""

    def __init__(self, contestant: Contestant, texts: int, once: bool, log: Path) -> None:
        self._contestant, self._log = contestant, log
        self._logged = log.stat().st_size if log.exists() else 0  # by processes before this one
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process: Any = context.Process(
            target=child, args=(theirs, contestant, texts, once, str(log)), daemon=True
        )
        self._process.start()
        theirs.close()
        self.chats = False

    async def open(self) -> Opening:
        """Wait until it is ready. Raises Crashed."""
        opening, self.chats = await self._next(_OPEN_SECONDS)
        assert isinstance(opening, Opening)
        return opening

    async def play(self, order: Order, tell: Tell) -> Pass:
        """Have a pass played. Raises Crashed."""
        try:
            self._pipe.send(order)
        except OSError:
            raise Crashed(self._ended()) from None
        patience = order.timeout + _GRACE + max((task.due for task in order.tasks), default=0.0)
        while isinstance(message := await self._next(patience), Measurement):
            tell(message)
        assert isinstance(message, Pass)
        return message

    async def _next(self, patience: float) -> Any:
        """The next message. Raises Crashed where there will be none."""
        until = time.monotonic() + patience

        def wait() -> Any:
            while not self._pipe.poll(min(1.0, max(0.0, until - time.monotonic()))):
                if time.monotonic() >= until:
                    raise Crashed(f"its process said nothing for {patience:g} s and was ended")
            return self._pipe.recv()

        try:
            return await asyncio.to_thread(wait)
        except (EOFError, OSError):
            raise Crashed(self._ended()) from None

    def _ended(self) -> str:
        """How the process ended, with the last line that it printed."""
        self._process.join(5)
        code = self._process.exitcode
        how = f"with status {code}"
        if code is not None and code < 0:
            with contextlib.suppress(ValueError):
                how = f"by {signal.Signals(-code).name}"
        last = ""
        with contextlib.suppress(OSError):
            printed = self._log.read_bytes()[self._logged :].decode(errors="replace")
            lines = printed.strip().splitlines()
            last = f"; its last line: {lines[-1][:_LOG_TAIL]}" if lines else ""
        return f"its process ended {how}{last}"

    async def close(self) -> None:
        """End the process. Safe to call twice, and for one that has ended."""
        with contextlib.suppress(OSError):
            self._pipe.send(None)
        await asyncio.to_thread(self._process.join, 10)
        self.kill()

    def kill(self) -> None:
        """End it at once."""
        if self._process.is_alive():
            self._process.kill()
            self._process.join(10)
        self._pipe.close()

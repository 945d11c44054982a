"""`paceline bench`: a workload, asked of several contestants under several loads, fairly.

Opens the contestants, plays passes in a random order drawn from a seed, and keeps every measurement
as it comes. What is in the folder already is not measured again, so a run that was ended in any way
goes on when it is started again with the same settings.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from paceline import ConfigError, PacelineError
from paceline.errors import needs_extra
from paceline.lab.bench_ask import Player, resolve_sampling, warm_up
from paceline.lab.bench_figures import summarize
from paceline.lab.bench_load import GIVE_UP, Order, Task, Tell, play
from paceline.lab.bench_manifest import Manifest, claim, decided
from paceline.lab.bench_options import BenchOptions
from paceline.lab.bench_record import (
    Contestant,
    Load,
    Measurement,
    Opening,
    Pass,
    Recorder,
    read_records,
)
from paceline.lab.bench_result import Summary, write_summary
from paceline.lab.bench_schedule import Key, Unit, key, schedule
from paceline.lab.bench_worker import Crashed, Worker

Progress = Callable[[str, int, int], None]
"""(what is done, texts measured, texts in all)."""

_WARM_TOKENS = 32
_CRASHES = 2  # of one contestant, and it is left out


def run(options: BenchOptions, progress: Progress) -> Summary:
    """Measure what is not measured yet and return the summary, which is also in the folder then.

    The summary is there, too, where this is interrupted. Raises ConfigError for a folder that holds
    another run.
    """
    manifest = claim(options.out, options.manifest())
    try:
        recorder = Recorder(options.out)
    except BlockingIOError:
        raise ConfigError(f"--out {options.out}: another bench is writing there") from None
    try:
        asyncio.run(_Run(options, manifest, recorder, progress).all())
    except OSError as error:  # what contestants meet is an answer; this is the folder's
        raise ConfigError(
            f"--out {options.out}: cannot be written ({error.strerror or error}); what was "
            "measured before is kept, and the same command goes on from there"
        ) from error
    finally:
        recorder.close()
        summary = summarize(options.out)
        with suppress(OSError):
            write_summary(options.out, summary)
    return summary


class _Runner(Protocol):
    """A contestant, wherever it runs."""

    @property
    def chats(self) -> bool: ...

    async def open(self) -> Opening:
        """Make it ready. An opening with an error says why it is not. Raises Crashed."""
        ...

    async def play(self, order: Order, tell: Tell) -> Pass:
        """Raises Crashed."""
        ...

    async def close(self) -> None: ...

    def kill(self) -> None: ...


class _Remote:
    """A contestant behind an address; it is asked from this process."""

    def __init__(self, contestant: Contestant) -> None:
        self._contestant = contestant
        self._player: Player | None = None

    @property
    def chats(self) -> bool:
        return self._player is not None and self._player.chats

    async def open(self) -> Opening:
        try:
            from paceline.lab.bench_endpoint import EndpointPlayer
        except ModuleNotFoundError as error:
            return Opening(self._contestant, error=needs_extra(error.name, "bench"))
        try:
            self._player = await EndpointPlayer.connect(self._contestant)
        except PacelineError as error:
            return Opening(self._contestant, error=str(error))
        return self._player.opening()

    async def play(self, order: Order, tell: Tell) -> Pass:
        assert self._player is not None
        return await play(self._player, self._contestant, order, tell)

    async def close(self) -> None:
        if self._player is not None:
            await self._player.close()

    def kill(self) -> None: ...


@dataclass(slots=True)
class _Contender:
    """How a contestant stands."""

    contestant: Contestant
    runner: _Runner | None = None
    chats: bool = True
    crashes: int = 0
    failures: int = 0  # texts in a row
    last_error: str = ""
    out: bool = False  # it is not asked any more
    warm: set[str] = field(default_factory=set)  # names of loads


class _Run:
    """A run while it is on its way."""

    def __init__(
        self, options: BenchOptions, manifest: Manifest, recorder: Recorder, progress: Progress
    ) -> None:
        self._options, self._manifest = options, manifest
        self._recorder, self._progress = recorder, progress
        self._contenders = {c.name: _Contender(c) for c in options.contestants}
        self._done: set[Key] = set()

    async def all(self) -> None:
        """Play all that is not measured."""
        options = self._options
        for measurement in read_records(options.out).measurements:
            if measurement.error is None:
                self._done.add(key(measurement))
        tasks = [
            Task(item, resolve_sampling(item, options.sampling, options.given))
            for item in options.workload.items
        ]
        units = schedule(
            options.contestants, tasks, options.loads, options.repeats, options.seed,
            options.one_at_a_time,
        )  # fmt: skip
        left = [rest for unit in units if (rest := unit.without(self._done)) is not None]
        try:
            wanted = dict.fromkeys(unit.contestant for unit in left)
            if not options.one_at_a_time:
                for name in self._contenders:
                    if name in wanted:
                        await self._open(self._contenders[name])
                self._decide()
            for place, unit in enumerate(left):
                await self._unit(unit)
                after = left[place + 1].contestant if place + 1 < len(left) else None
                if options.one_at_a_time and after != unit.contestant:
                    await self._close(self._contenders[unit.contestant])
        except BaseException:
            for contender in self._contenders.values():
                if contender.runner is not None:
                    contender.runner.kill()
            raise
        for contender in self._contenders.values():
            await self._close(contender)

    # --- one contestant ---

    async def _open(self, contender: _Contender) -> bool:
        """Open it, unless it is; whether it can be asked."""
        if contender.out or contender.runner is not None:
            return not contender.out
        contestant, options = contender.contestant, self._options
        self._tell(f"opening {contestant.name}")
        runner: _Runner
        if contestant.engine == "url":
            runner = _Remote(contestant)
        else:
            logs = options.out / "logs"
            logs.mkdir(exist_ok=True)
            place = options.contestants.index(contestant)
            log = logs / f"{place}-{contestant.engine}.log"
            runner = Worker(contestant, options.most_at_once, options.once, log)
        contender.runner = runner
        try:
            opening = await runner.open()
        except Crashed as crash:
            opening = Opening(contestant, error=f"while it was opened, {crash}")
        self._recorder.write(opening)
        contender.chats = runner.chats
        if opening.error is not None:
            contender.out = True
            await self._close(contender)
        return not contender.out

    async def _close(self, contender: _Contender) -> None:
        runner, contender.runner = contender.runner, None
        contender.warm.clear()
        if runner is not None:
            await runner.close()

    def _decide(self) -> None:
        """Whether messages are sent as such: once for all of the run, from whoever is open."""
        if self._manifest.chats is not None:
            return
        is_open = [c.chats for c in self._contenders.values() if c.runner is not None]
        chat = self._options.chat
        chats = all(is_open) if chat == "auto" else chat == "template"
        if is_open:
            self._manifest = decided(self._options.out, self._manifest, chats)

    async def _unit(self, unit: Unit) -> None:
        """Play one pass, and keep what comes of it."""
        contender = self._contenders[unit.contestant]
        if not await self._open(contender):
            return
        self._decide()
        assert contender.runner is not None
        left = {(task.item.id, turn) for task in unit.tasks for turn in range(task.item.length)}

        def tell(measurement: Measurement) -> None:
            self._recorder.write(measurement)
            left.discard((measurement.item, measurement.turn))
            if measurement.error is None:
                self._done.add(key(measurement))
            self._count(contender, measurement)
            self._tell(f"{unit.contestant}, {unit.load.name}")

        self._tell(f"{unit.contestant}, {unit.load.name}")
        order = self._order(unit, unit.tasks)
        try:
            await self._warm(contender, unit)
            if contender.failures < GIVE_UP:
                self._recorder.write(await contender.runner.play(order, tell))
        except Crashed as crash:
            await self._crashed(contender, unit, order, left, str(crash))
        if contender.failures >= GIVE_UP and not contender.out:
            await self._leave_out(
                contender,
                f"left out after {contender.failures} texts in a row that failed; the last: "
                f"{contender.last_error}",
            )

    async def _warm(self, contender: _Contender, unit: Unit) -> None:
        """Have some texts written that are not kept, before a contestant's first pass under a load.
        Raises Crashed."""
        count = self._options.warmup
        if count == 0 or unit.load.name in contender.warm:
            return
        contender.warm.add(unit.load.name)
        load = Load(concurrency=unit.load.concurrency or 1)
        items = [unit.tasks[n % len(unit.tasks)] for n in range(max(count, load.concurrency or 1))]
        tasks = tuple(Task(*warm_up(t.item, t.sampling, _WARM_TOKENS)) for t in items)
        order = self._order(Unit(unit.contestant, load, unit.repeat, tasks), tasks)
        assert contender.runner is not None
        await contender.runner.play(order, lambda m: self._count(contender, m))

    def _order(self, unit: Unit, tasks: tuple[Task, ...]) -> Order:
        options = self._options
        return Order(
            pass_id=secrets.token_hex(4),
            load=unit.load,
            repeat=unit.repeat,
            tasks=tasks,
            chats=bool(self._manifest.chats),
            timeout=options.timeout,
            texts=options.texts,
        )

    @staticmethod
    def _count(contender: _Contender, measurement: Measurement) -> None:
        if measurement.error is None:
            contender.failures = 0
        else:
            contender.failures += 1
            contender.last_error = measurement.error

    async def _crashed(
        self, contender: _Contender, unit: Unit, order: Order, left: set[tuple[str, int]], why: str
    ) -> None:
        """Book the texts that went down with a process, and let it be opened again once."""
        for task in order.tasks:
            for turn in range(task.item.length):
                if (task.item.id, turn) in left:
                    self._recorder.write(
                        Measurement(
                            contestant=contender.contestant,
                            item=task.item.id,
                            category=task.item.category,
                            turn=turn,
                            load=unit.load,
                            repeat=unit.repeat,
                            pass_id=order.pass_id,
                            sampling=task.sampling,
                            due=task.due,
                            error=why,
                        )
                    )
        contender.crashes += 1
        contender.failures = 0
        if contender.runner is not None:
            contender.runner.kill()
        contender.runner = None
        contender.warm.clear()
        if contender.crashes >= _CRASHES:
            await self._leave_out(contender, f"left out after {contender.crashes} crashes: {why}")

    async def _leave_out(self, contender: _Contender, why: str) -> None:
        contender.out = True
        self._recorder.write(Opening(contender.contestant, error=why))
        await self._close(contender)

    def _tell(self, what: str) -> None:
        self._progress(what, len(self._done), self._manifest.planned)

"""A device of plain numbers and the loop that drives it, for tests of the scheduler.

Every position of every page holds a fingerprint of the whole text up to there. So whatever goes
wrong with pages (two owners, a page given away early, a hit that is too long) meets a fingerprint
that is not the row's own. Rounds run as late as they may, when they are settled, on the page tables
that they were launched with.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from collections.abc import Sequence as Items
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

from paceline.engine.paging import Grant
from paceline.engine.scheduling import Scheduler
from paceline.engine.sequence import Sequence, Status
from paceline.errors import RequestError
from paceline.types import Request, SamplingParams

STOP = 0
POISON = -1  # what is not finite
JUNK = -2  # a rejected draft's, or one's that is not yet judged

CatchUp = Literal["none", "tokens", "observe"]
Cache = list[list[int]]  # [page][offset]


def fingerprints(tokens: Items[int]) -> list[int]:
    """One number for each beginning of a text."""
    out, value = [], 7
    for token in tokens:
        value = (value * 1_000_003 + token + 1) % (2**61 - 1)
        out.append(value)
    return out


def next_token(fingerprint: int) -> int:
    """What the fake model says next: a third each of three tokens, and now and then the end."""
    return STOP if fingerprint % 61 == 0 else 1 + fingerprint // 61 % 3


def alone(prompt: Items[int], limit: int) -> list[int]:
    """The text that a request gets which has the machine for itself."""
    tokens = list(prompt)
    while len(tokens) < limit and (len(tokens) == len(prompt) or tokens[-1] != STOP):
        tokens.append(next_token(fingerprints(tokens)[-1]))
    return tokens[len(prompt) :]


@dataclass(eq=False)
class Row:
    """A slot's text on the device, which knows more than the host."""

    tokens: list[int]
    limit: int
    active: bool = True


@dataclass(frozen=True)
class Launch:
    """A round on its way: its rows with the page tables of that moment."""

    rows: list[tuple[Sequence, Row, list[int]]]
    k: int
    luck: int
    drafting: bool


@dataclass(eq=False)
class Shape:
    """How large everything is, and what the drafter needs."""

    slots: int = 5
    pages: int = 17
    page_size: int = 4
    max_length: int = 40
    max_k: int = 3
    prefix: bool = True
    catch_up: CatchUp = "tokens"
    shift: int = 0

    @property
    def reach(self) -> int:
        return 2 * self.max_k + 1


@dataclass(eq=False)
class Answer:
    """What a caller has got. stop_after: a stop text that the host finds after so many tokens."""

    sequence: Sequence
    stop_after: int
    seen: list[int] = field(default_factory=list)
    ended: str | None = None


class FakeEngine:
    """The scheduler, the device, and a loop that obeys the one and drives the other."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.scheduler = Scheduler(
            slots=shape.slots,
            pages=shape.pages,
            page_size=shape.page_size,
            max_length=shape.max_length,
            reach=shape.reach,
            lookahead=shape.max_k,
            prefix=shape.prefix,
            catch_up=shape.catch_up,
            shift=shape.shift,
        )
        self.text: Cache = [[JUNK] * shape.page_size for _ in range(shape.pages)]
        self.drafts: Cache = [[JUNK] * shape.page_size for _ in range(shape.pages)]
        columns = -(-shape.max_length // shape.page_size)
        self.tables = [[0] * columns for _ in range(shape.slots)]
        self.rows: dict[int, Row] = {}
        self.flying: deque[Launch] = deque()
        self.answers: list[Answer] = []
        self.glitch = False  # the next chunk of a prompt comes out spoiled
        self.now = 0.0
        self._thrown: dict[int, tuple[int, ...]] = {}

    # --- what callers do ----------------------------------------------------------------------

    def submit(
        self,
        prompt: Items[int],
        max_tokens: int,
        priority: int = 0,
        patience: float | None = None,
        stop_after: int = 1000,
    ) -> Answer:
        """Raises RequestError where it can never fit."""
        deadline = None if patience is None else self.now + patience
        params = SamplingParams(max_tokens=max_tokens)
        request = Request("r", tuple(prompt), params, 0, priority=priority, deadline=deadline)
        sequence = Sequence(request, self.shape.max_k)
        self.scheduler.add(sequence)
        self.answers.append(Answer(sequence, stop_after))
        return self.answers[-1]

    @property
    def open(self) -> list[Answer]:
        return [a for a in self.answers if a.ended is None]

    def end(self, answer: Answer, how: str) -> None:
        answer.ended = how
        self.scheduler.finish(answer.sequence, keep=how != "error")

    # --- the loop -----------------------------------------------------------------------------

    def step(
        self,
        k: int = 2,
        chunk: int = 8,
        late: int = 1,
        drafting: bool = True,
        luck: int = 0,
    ) -> None:
        """One step: deadlines, admissions, a chunk of prompts, a round, what is due of others."""
        self.now, k = self.now + 1.0, min(k, self.shape.max_k)
        for sequence in self.scheduler.expire(self.now):
            self.end(self.answer(sequence), "deadline")
        self.admit()
        self.prefill(chunk)
        rows = self.make_rows(k)
        if rows:
            self.launch(rows, k, luck, drafting)
        while len(self.flying) > (late if rows else 0):
            self.settle()

    def admit(self) -> None:
        waiting = [a.sequence for a in self.open if a.sequence.status is Status.WAITING]
        line = sorted(waiting, key=lambda s: -s.request.priority)  # as they came, for the rest
        admitted = self.scheduler.admit()
        assert admitted == line[: len(admitted)], "somebody was overtaken"
        for sequence in admitted:
            known = sequence.hit // self.shape.page_size
            alike = any(self.scheduler.pages.holders(page) > 1 for page in sequence.pages[:known])
            idle = self._thrown.pop(id(sequence), ()) == self._changes()
            assert alike or not idle, "thrown out for nothing"
            self.rows[sequence.slot] = Row(list(sequence.tokens), sequence.limit)
            self.tables[sequence.slot][:] = [0] * len(self.tables[0])
            self.write(Grant(sequence.slot, 0, tuple(sequence.pages)), fresh=known)

    def prefill(self, budget: int) -> None:
        for sequence in self.scheduler.prefilling:
            grant = self.scheduler.rematch(sequence)
            if grant is not None:
                self.write(grant, fresh=len(grant.pages))
            last = len(sequence.tokens) - 1
            assert sequence.prefilled <= last, "no token is left to be the root"
            stop = min(sequence.prefilled + budget, last)
            self.read(sequence, stop)
            budget -= stop - sequence.prefilled
            sequence.prefilled = stop
            if stop == last:
                self.scheduler.start(sequence)
            if budget <= 0:
                break

    def read(self, sequence: Sequence, stop: int) -> None:
        """One chunk through target and drafter."""
        table, marks = self.tables[sequence.slot], fingerprints(sequence.tokens)
        for position in range(sequence.prefilled, stop):
            self.put(self.text, table, position, marks[position])
        if self.glitch and stop > sequence.prefilled:
            self.put(self.text, table, stop - 1, POISON)
            self.glitch = False
        if sequence.observed == sequence.prefilled:
            self.observe(sequence, table, stop)

    def observe(self, sequence: Sequence, table: list[int], stop: int) -> None:
        """Bring the drafter's cache up to `stop`."""
        marks = fingerprints(sequence.tokens)
        for position in range(sequence.observed, stop):
            self.put(self.drafts, table, position, marks[position + self.shape.shift])
        sequence.observed = stop

    def make_rows(self, k: int) -> list[Sequence]:
        """Those that run, with pages for a round; settles and preempts where they run short."""
        reach = k + 1 + self.shape.max_k
        rows = self.scheduler.running
        if self.scheduler.missing(rows, reach):
            while self.flying:
                self.settle()
            rows = self.scheduler.running
        if self.scheduler.missing(rows, reach):
            held = sorted(self.scheduler.prefilling + rows, key=lambda s: s.rank)
            victims = self.scheduler.make_room(rows, reach)
            assert victims == held[: len(victims)] != held, "not the last in line, or all of them"
            for victim in victims:
                self.tables[victim.slot][:] = [0] * len(self.tables[0])
                self._thrown[id(victim)] = self._changes()
            rows = self.scheduler.running
        for grant in self.scheduler.reserve(rows, reach):
            self.write(grant)
        return rows

    def launch(self, rows: list[Sequence], k: int, luck: int, drafting: bool) -> None:
        drafting = drafting or self.shape.catch_up == "observe"
        self.scheduler.launched(rows, k + 1)
        for s in rows:
            if drafting and self.shape.catch_up == "tokens":
                self.observe(s, self.tables[s.slot], max(s.observed, len(s.tokens) - 1))
        taken = [(s, self.rows[s.slot], list(self.tables[s.slot])) for s in rows]
        self.flying.append(Launch(taken, k, luck, drafting))

    def settle(self) -> None:
        """Run the oldest round in flight, and book it."""
        launch = self.flying.popleft()
        for place, (sequence, row, table) in enumerate(launch.rows):
            before = len(row.tokens)
            tokens = self.run(row, table, launch, place, sequence.ceiling)
            answer = self.answer(sequence)
            self.scheduler.settled(sequence, tokens or ())
            if answer.ended is not None:
                continue
            if tokens is None:
                self.end(answer, "error")
                continue
            if launch.drafting and sequence.observed >= before - 1:
                sequence.observed = len(sequence.tokens) - 1
            answer.seen += tokens
            if len(answer.seen) >= answer.stop_after:
                self.end(answer, "stop text")
            elif answer.seen[-1:] == [STOP] or len(sequence.tokens) == sequence.limit:
                self.end(answer, "natural")

    def run(
        self, row: Row, table: list[int], launch: Launch, place: int, ceiling: int
    ) -> list[int] | None:
        """One row of a round, as the device sees it: its new tokens, or None where it fails."""
        if not row.active:
            return []
        root = len(row.tokens) - 1
        count = min(launch.k, row.limit - len(row.tokens) - 1)
        new: list[int] = []
        n = 1 + (launch.luck + 5 * place + root) % (count + 1)
        while len(new) < n and STOP not in new:
            new.append(next_token(fingerprints(row.tokens + new)[-1]))
        marks = fingerprints(row.tokens + new)
        for node in range(count + 1):  # the window
            value = marks[root + node] if node < len(new) else JUNK
            self.put(self.text, table, root + node, value)
        if launch.drafting:
            length = root + 1 + len(new)
            for position in range(root, length - 1):
                self.put(self.drafts, table, position, marks[position + self.shape.shift])
            for position in range(length, min(length + self.shape.max_k, ceiling)):
                self.put(self.drafts, table, position, JUNK)
        seen = [self.get(self.text, table, p) for p in range(root + len(new))]
        if POISON in seen:
            row.active = False
            return None
        assert seen == marks[: root + len(new)], "a row reads what is not its own"
        row.tokens += new
        row.active = new[-1] != STOP and len(row.tokens) < row.limit
        return new

    # --- caches and page tables ---------------------------------------------------------------

    def write(self, grant: Grant, fresh: int = 0) -> None:
        """Write the page table; from place `fresh` on, the pages were anyone's."""
        busy = {page for launch in self.flying for _, _, table in launch.rows for page in table}
        for place, page in enumerate(grant.pages):
            assert page != 0
            assert place < fresh or page not in busy, "a round in flight still sees this page"
            self.tables[grant.slot][grant.first + place] = page

    def put(self, cache: Cache, table: list[int], position: int, value: int) -> None:
        page, offset = self._place(table, position)
        cache[page][offset] = value

    def get(self, cache: Cache, table: list[int], position: int) -> int:
        page, offset = self._place(table, position)
        return cache[page][offset]

    def _place(self, table: list[int], position: int) -> tuple[int, int]:
        page = table[position // self.shape.page_size]
        assert page != 0, f"no page was reserved for position {position}"
        return page, position % self.shape.page_size

    def answer(self, sequence: Sequence) -> Answer:
        return next(a for a in self.answers if a.sequence is sequence)

    def _changes(self) -> tuple[int, ...]:
        """Where nothing of this has changed, who was thrown out may not be let in again."""
        ended = sum(a.sequence.status is Status.DONE for a in self.answers)
        return ended, self.scheduler.preemptions, self.scheduler.index.inserts

    # --- what must hold -----------------------------------------------------------------------

    def check(self) -> None:
        """After every step."""
        scheduler, size = self.scheduler, self.shape.page_size
        scheduler.check()
        for answer in self.answers:
            s = answer.sequence
            if not s.pages:
                continue
            marks = fingerprints(s.tokens)
            for position in range(s.prefilled):
                found = self.text[s.pages[position // size]][position % size]
                assert found in (marks[position], POISON), "a cache was overwritten"
            if self.shape.catch_up != "none":
                for position in range(s.observed):
                    found = self.drafts[s.pages[position // size]][position % size]
                    assert found == marks[position + self.shape.shift], "the drafter's was"
        for page, tokens, drafter, sound in known_pages(scheduler):
            marks, end = fingerprints(tokens), len(tokens) - self.shape.shift
            for position, found in zip(range(end - size, end), self.text[page], strict=True):
                assert found == marks[position] or (found == POISON and not sound), "a wrong text"
            if drafter and self.shape.catch_up != "none":
                shifted = marks[end - size + self.shape.shift :]
                assert self.drafts[page] == shifted, "wrong in the drafter's cache"

    def drain(self, **options: int) -> None:
        """Step until nobody is left, and look whether everything is back and right."""
        for luck in range(2000):
            if self.scheduler.idle:
                break
            self.step(luck=luck, **options)
            self.check()
        while self.flying:
            self.settle()
        counts = self.scheduler.counts()
        assert self.scheduler.idle, "no end in sight"
        assert counts.pages_used == 0
        assert counts.pages_cached == len(self.scheduler.index)
        assert counts.pages_cached + self.scheduler.pages.unused == self.shape.pages - 1
        for answer in self.answers:
            s = answer.sequence
            assert answer.ended is not None, "a request was forgotten"
            assert s.status is Status.DONE
            whole = alone(s.request.prompt, s.limit)
            assert answer.seen == whole[: len(answer.seen)]
            assert answer.ended != "natural" or answer.seen == whole


def known_pages(scheduler: Scheduler) -> Iterator[tuple[int, list[int], bool, bool]]:
    """Every page of the prefix index with its whole text, and how it is marked."""
    for page, node in scheduler.index._nodes.items():
        tokens, above = list(node.key), node.parent
        while above is not None and above.parent is not None:
            tokens[:0] = above.key[: scheduler.index.page_size]
            above = above.parent
        yield page, tokens, node.drafter, node.sound


BASES = tuple(tuple(random.Random(seed).choices((1, 2, 3), k=40)) for seed in range(3))


def long(length: int, seed: int = 0) -> list[int]:
    """A prompt whose text goes on to 40 tokens, each seed's another."""
    while True:
        prompt = random.Random(seed).choices((1, 2, 3), k=length)
        if STOP not in alone(prompt, 40):
            return prompt
        seed += 1000


def crowd(seed: int) -> FakeEngine:
    """Texts that all grow long in a cache that holds little more than one, to their end."""
    draw = random.Random(seed)
    shape = Shape(pages=draw.randrange(11, 24), prefix=draw.random() < 0.5)
    engine = FakeEngine(shape)
    for _ in range(6):
        engine.submit(long(draw.randrange(1, 13), draw.randrange(100)), draw.choice((20, 28, 100)))
    engine.drain(k=draw.randrange(4), chunk=draw.choice((3, 8, 30)))
    return engine


def play(seed: int, shape: Shape | None = None, steps: int = 60) -> FakeEngine:
    """Random traffic, the same for the same seed, to its end."""
    draw = random.Random(seed)
    if shape is None:
        catch_up, shift = draw.choice((("none", 0), ("tokens", 0), ("observe", 0), ("observe", 1)))
        shape = Shape(pages=draw.choice((10, 12, 14, 17, 20, 40)), catch_up=catch_up, shift=shift)
    engine = FakeEngine(shape)
    for _ in range(steps):
        for _ in range(draw.choice((0, 0, 0, 1, 1, 4))):
            head = draw.choice(BASES)[: draw.choice((0, 0, 8, 12, 13, 24))]
            tail = draw.choices((1, 2, 3), k=draw.choice((1, 1, 4, 9)))
            request = (
                [*head, *tail][: shape.max_length - 1],
                draw.choice((1, 8, 20, 30, 100)),
                draw.choice((0, 0, 0, 1, -1)),
                draw.choice((None, None, None, None, 3.0, 60.0)),
                draw.choice((1000, 1000, 5)),
            )
            with suppress(RequestError):
                engine.submit(*request)
        if engine.open and draw.random() < 0.15:
            engine.end(draw.choice(engine.open), "cancelled")
        engine.glitch = engine.glitch or draw.random() < 0.02
        engine.step(
            k=draw.randrange(shape.max_k + 1),
            chunk=draw.choice((1, 4, 8, 30)),
            late=draw.choice((0, 1, 1, 1)),
            drafting=draw.random() < 0.7,
            luck=draw.randrange(8),
        )
        engine.check()
    engine.drain()
    return engine

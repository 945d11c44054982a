"""The scheduler as a state machine, on a device of plain numbers: see `tests.engine.fake`."""

from __future__ import annotations

import random
from collections.abc import Sequence as Items
from contextlib import suppress

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.engine.fake import BASES, CatchUp, FakeEngine, Shape, alone, crowd, long, play

from paceline.engine.scheduling import Scheduler
from paceline.engine.sequence import Sequence, Status
from paceline.errors import RequestError
from paceline.types import Request, SamplingParams

DRAFTERS = st.sampled_from((("none", 0), ("tokens", 0), ("observe", 0), ("observe", 1)))


class Traffic(RuleBasedStateMachine):
    """Callers, time and the loop do what they like; after every step everything is looked at."""

    @initialize(
        slots=st.integers(2, 5),
        pages=st.integers(8, 24),
        page_size=st.sampled_from((2, 4, 5)),
        max_k=st.integers(0, 4),
        prefix=st.booleans(),
        drafter=DRAFTERS,
    )
    def open(
        self,
        slots: int,
        pages: int,
        page_size: int,
        max_k: int,
        prefix: bool,
        drafter: tuple[CatchUp, int],
    ) -> None:
        self.engine = FakeEngine(
            Shape(
                slots=slots,
                pages=pages,
                page_size=page_size,
                max_k=max_k,
                prefix=prefix,
                catch_up=drafter[0],
                shift=drafter[1],
            )
        )

    @rule(
        base=st.sampled_from(BASES),
        head=st.sampled_from((0, 8, 12, 13, 24, 37)),
        tail=st.lists(st.integers(1, 3), min_size=1, max_size=2),
        max_tokens=st.sampled_from((1, 2, 8, 30, 100)),
        priority=st.sampled_from((0, 0, 1)),
        patience=st.sampled_from((None, None, 3.0, 20.0)),
        stop_after=st.sampled_from((1000, 5)),
        copies=st.integers(1, 3),
    )
    def submit(
        self,
        base: tuple[int, ...],
        head: int,
        tail: list[int],
        max_tokens: int,
        priority: int,
        patience: float | None,
        stop_after: int,
        copies: int,
    ) -> None:
        for _ in range(copies):
            with suppress(RequestError):
                prompt = [*base[:head], *tail]
                self.engine.submit(prompt, max_tokens, priority, patience, stop_after)

    @precondition(lambda self: self.engine.open)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.engine.end(data.draw(st.sampled_from(self.engine.open)), "cancelled")

    @rule()
    def spoil(self) -> None:
        self.engine.glitch = True

    @rule(
        times=st.integers(1, 6),
        k=st.integers(0, 4),
        chunk=st.sampled_from((1, 4, 8, 30)),
        late=st.integers(0, 2),
        drafting=st.booleans(),
        luck=st.integers(0, 7),
    )
    def step(self, times: int, k: int, chunk: int, late: int, drafting: bool, luck: int) -> None:
        for _ in range(times):
            self.engine.step(k, chunk, late, drafting, luck)

    @invariant()
    def everything_is_where_it_belongs(self) -> None:
        if hasattr(self, "engine"):
            self.engine.check()

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            self.engine.drain()


def sequence(prompt: Items[int], max_tokens: int) -> Sequence:
    return Sequence(Request("r", tuple(prompt), SamplingParams(max_tokens=max_tokens), 0), 3)


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(max_examples=250, stateful_step_count=40)


def test_a_thousand_requests() -> None:
    """Long enough that everything happens, and often."""
    engines = [play(seed) for seed in range(25)]
    counts = [engine.scheduler.counts() for engine in engines]
    ended = [answer.ended for engine in engines for answer in engine.answers]
    assert len(ended) > 1000
    assert sum(c.preemptions for c in counts) > 10
    assert sum(c.prefix_hits for c in counts) > 1000
    assert sum(engine.scheduler.index.evictions for engine in engines) > 1000
    for how in ("natural", "stop text", "cancelled", "deadline", "error"):
        assert ended.count(how) > 10


def test_crowds() -> None:
    """Preempted again and again, all texts are whole; and the first is never thrown out."""
    engines = [crowd(seed) for seed in range(100)]
    assert sum(engine.scheduler.preemptions for engine in engines) > 100
    assert all(engine.answers[0].sequence.preemptions == 0 for engine in engines)


# --- admission ------------------------------------------------------------------------------


def test_what_can_never_fit_is_refused() -> None:
    engine = FakeEngine(Shape(pages=6, max_k=2))  # 20 positions, of which 2 are the draft's
    with pytest.raises(RequestError, match="at most 8"):
        engine.scheduler.add(sequence([1] * 10, 9))
    with pytest.raises(RequestError, match="shorten the prompt"):
        engine.scheduler.add(sequence([1] * 18, 1))
    assert engine.scheduler.idle
    assert engine.submit([1] * 10, 8)
    assert engine.submit([1] * 17, 1)
    engine.drain()


@pytest.mark.parametrize("length", [1, 2, 4, 5, 38, 39])
@pytest.mark.parametrize("catch_up", ["none", "tokens"])
def test_edges_of_the_length(length: int, catch_up: CatchUp) -> None:
    """From a prompt of one token, of which nothing is read, to one that leaves room for one."""
    prompt = random.Random(length).choices((1, 2, 3), k=length)
    engine = FakeEngine(Shape(pages=11, slots=2, catch_up=catch_up))
    answers = [engine.submit(prompt, 100) for _ in range(3)]
    engine.drain(chunk=3)
    for answer in answers:
        assert answer.seen == alone(prompt, 40)
        assert answer.ended == "natural"


def test_nobody_overtakes() -> None:
    """A small request waits behind a large one that has no room yet, and before later ones."""
    engine = FakeEngine(Shape(pages=13, prefix=False))
    first = engine.submit([1] * 30, 8)
    engine.step()
    large, small = engine.submit([2] * 30, 8), engine.submit([3], 1)
    engine.step()
    assert first.sequence.status is not Status.WAITING
    assert large.sequence.status is small.sequence.status is Status.WAITING
    urgent = engine.submit([3, 3], 1, priority=1)
    engine.step()
    assert urgent.sequence.status is not Status.WAITING
    engine.drain()


def test_whoever_cannot_be_let_in_is_not_looked_up_every_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = FakeEngine(Shape(pages=13))
    engine.submit([1] * 30, 8)
    engine.step(chunk=1)
    engine.submit([2] * 30, 8)
    engine.step(chunk=1)
    monkeypatch.setattr(engine.scheduler.index, "match", refuse)
    for _ in range(10):
        engine.step(chunk=1)


def refuse(*_: object) -> None:
    raise AssertionError("looked up although nothing changed")


# --- the prefix cache -----------------------------------------------------------------------


def test_the_same_prompt_at_once_is_read_once() -> None:
    """All are admitted before the first has been read; each takes over what it finds then."""
    engine = FakeEngine(Shape(pages=40))
    for _ in range(4):
        engine.submit(BASES[0][:25], 4)
    engine.step(chunk=24)
    assert engine.scheduler.counts().prefilling == 3
    used = engine.scheduler.pages.used
    engine.step(chunk=1)
    assert engine.scheduler.counts().prefilling == 0
    assert engine.scheduler.pages.used == used - 3 * 6
    assert engine.scheduler.index.hits == 3 * 24
    engine.drain()


def test_two_that_read_the_same_leave_it_once() -> None:
    """One is in the middle when another with the same beginning overtakes it."""
    engine = FakeEngine(Shape(pages=40))
    slow = engine.submit(BASES[0][:21], 4).sequence
    engine.step(chunk=18)
    fast = engine.submit([*BASES[0][:13], 1], 4, priority=1).sequence
    engine.step(chunk=13)
    engine.step(chunk=2)
    assert slow.status is fast.status is Status.RUNNING
    assert set(slow.pages).isdisjoint(fast.pages)
    assert slow.pages[3] not in engine.scheduler.index  # its parent is held by the other alone
    texts = [slow.tokens, fast.tokens]
    engine.drain()
    pages = {tuple(t[:end]) for t in texts for end in range(4, len(t), 4)}
    assert len(engine.scheduler.index) == len(pages)


def test_a_text_that_fails_leaves_nothing_spoiled() -> None:
    """Its pages were in the index before its first verdict, and others read on from them."""
    engine = FakeEngine(Shape(pages=40))
    engine.glitch = True
    bad = engine.submit(BASES[0][:17], 8)
    engine.step(chunk=16)
    others = [engine.submit([*BASES[0][:17], n], 8) for n in (1, 2)]
    engine.step(chunk=30)
    engine.step(late=0)
    assert bad.ended == "error"
    engine.drain()
    again = engine.submit(BASES[0][:17], 8)
    engine.drain()
    assert again.ended == "natural"
    assert {o.ended for o in others} == {"error"}


def test_a_request_that_masks_everything_costs_no_other_its_pages() -> None:
    """What has been shown to be sound stays known when a text on it fails."""
    engine = FakeEngine(Shape(pages=40))
    engine.submit(BASES[0][:17], 8)
    engine.drain()
    known = len(engine.scheduler.index)
    failing = engine.submit(BASES[0][:17], 8)
    engine.step(late=0, chunk=1)
    engine.end(failing, "error")
    engine.drain()
    assert len(engine.scheduler.index) == known > 4


def test_a_drafter_behind_does_not_shorten_a_hit_it_can_make_up_for() -> None:
    """One that must observe every window can use only what was observed."""
    for catch_up, hit in (("tokens", 16), ("observe", 0)):
        engine = FakeEngine(Shape(pages=40, catch_up=catch_up))
        scheduler = engine.scheduler
        first = sequence(BASES[0][:17], 4)
        scheduler.add(first)
        scheduler.admit()
        first.prefilled = 16
        scheduler.start(first)
        scheduler.finish(first)
        second = sequence(BASES[0][:17], 4)
        scheduler.add(second)
        assert scheduler.admit() == [second]
        assert (second.prefilled, second.observed) == (hit, 0)


# --- leaving --------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["cancelled", "deadline"])
def test_pages_stay_until_the_last_round_that_saw_them(how: str) -> None:
    engine = FakeEngine(Shape())
    answer = engine.submit([1, 2, 3], 30, patience=3.0 if how == "deadline" else None)
    scheduler, s = engine.scheduler, answer.sequence
    engine.step(k=1, late=2)
    engine.step(k=1, late=2)
    assert s.in_flight == 2
    if how == "deadline":
        engine.now = 10.0
        assert scheduler.expire(3.0) == [s]
    engine.end(answer, how)
    assert s.status is Status.LEAVING
    assert scheduler.expire(1e9) == []
    used = scheduler.pages.used
    scheduler.settled(s, ())
    assert (s.status, scheduler.pages.used) == (Status.LEAVING, used)
    scheduler.settled(s, ())
    assert (s.status, scheduler.pages.used) == (Status.DONE, 0)
    scheduler.finish(s)  # once more does nothing
    scheduler.check()
    assert scheduler.idle


def test_cancelled_wherever_it_stands() -> None:
    """While it waits, while it is read, and after it was preempted."""
    engine = FakeEngine(Shape(slots=3, pages=15, prefix=False))
    engine.submit(long(12), 28)
    thrown = engine.submit(long(12, seed=1), 28)
    waiting = engine.submit([3] * 4, 4)
    while not thrown.sequence.preemptions:
        engine.step(k=0, chunk=5)
    assert thrown.sequence.status is Status.WAITING
    assert len(thrown.sequence.tokens) == 12 + len(thrown.seen) > 12
    assert waiting.sequence.status is Status.WAITING
    for answer in (waiting, thrown):
        engine.end(answer, "cancelled")
        assert answer.sequence.status is Status.DONE
        engine.check()
    late = engine.submit([3] * 8, 4)
    engine.step(chunk=1)
    assert late.sequence.status is Status.PREFILL
    engine.end(late, "cancelled")
    assert late.sequence.status is Status.DONE
    engine.check()
    engine.drain()


# --- preemption -----------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", [True, False])
def test_short_of_pages_all_texts_are_whole(prefix: bool) -> None:
    """Eight texts each of which grows to the whole pool: the first is never thrown out, and who is
    resumes with all it had."""
    engine = FakeEngine(Shape(pages=11, prefix=prefix))
    prompts = [long(4, seed) for seed in range(8)]
    answers = [engine.submit(prompt, 100) for prompt in prompts]
    engine.drain()
    assert engine.scheduler.preemptions > 0
    assert answers[0].sequence.preemptions == 0
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer.seen == alone(prompt, 40)


def test_pages_are_not_handed_to_and_fro() -> None:
    """Who is thrown out is not let in again before something has been given back. So where two
    texts grow, the second is thrown out once, and goes on when the first has ended."""
    engine = FakeEngine(Shape(pages=13, slots=3))
    first, second = (engine.submit(long(4, seed), 36) for seed in (0, 1))
    while not engine.scheduler.idle:
        engine.step(k=0)
        assert first.ended is not None or first.sequence.status is not Status.WAITING
        if second.sequence.preemptions and second.sequence.status is not Status.WAITING:
            assert first.ended is not None
    assert second.sequence.preemptions == 1
    engine.drain()


def test_the_last_in_line_gives_way() -> None:
    """By priority first, whoever's need it is; then who came last."""
    engine = FakeEngine(Shape(pages=29, prefix=False))
    low = engine.submit(long(12), 28, priority=-1)
    engine.step(k=0, chunk=60)
    texts = [low, *(engine.submit(long(12, seed), 28) for seed in (1, 2, 3))]
    thrown: list[int] = []
    while not engine.scheduler.idle:
        before = [a.sequence.preemptions for a in texts]
        engine.step(k=0, chunk=60)
        after = [a.sequence.preemptions for a in texts]
        thrown += [who for who in range(4) if before[who] != after[who]]
        engine.check()
    assert thrown == [0, 3]
    engine.drain()


def test_a_long_prompt_thrown_out_while_it_is_read_keeps_what_was_read() -> None:
    """Its full pages are found again, as far as nobody needed them."""
    engine = FakeEngine(Shape(pages=17))
    engine.submit(long(4), 36)
    engine.step(k=0)
    read = engine.submit(long(30, 1), 8, priority=-1)
    while not read.sequence.preemptions:
        engine.step(k=0, chunk=1)
    while read.sequence.status is Status.WAITING:
        engine.step(k=0, chunk=0)
    assert read.sequence.hit > 0
    engine.drain()


@pytest.mark.parametrize("pages", [5, 6, 7, 9])
def test_the_room_behind_a_prompt_is_what_is_taken(pages: int) -> None:
    """Also where the caches hold less than the longest text, and where they end with it."""
    shape = {"slots": 2, "pages": pages, "page_size": 4, "max_length": 20}
    scheduler = Scheduler(**shape, reach=8, lookahead=3)
    for prompt in range(1, 20):
        room = scheduler.room(prompt)
        for count in range(1, 20):
            request = Request("r", (1,) * prompt, SamplingParams(max_tokens=count), 0)
            if pages > 5 or count <= room:  # the longest text's end cuts, too few pages refuse
                limit, _ = scheduler.extent(request)
                assert limit - prompt == min(count, room)
            else:
                with pytest.raises(RequestError, match=f"at most {room}" if room > 0 else "prompt"):
                    scheduler.extent(request)

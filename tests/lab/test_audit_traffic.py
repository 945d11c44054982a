"""The traffic part of the audit on a tiny pair, and that it finds what it is there to find."""

from __future__ import annotations

import importlib.util
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tests.helpers import tiny_checkpoint

from paceline import Engine, Event
from paceline.engine.loop import Loop
from paceline.engine.outbox import Reader
from paceline.engine.scheduling import Scheduler
from paceline.engine.slots import Slots
from paceline.kv.pages import PageAllocator
from paceline.lab.audit_clients import TrafficOptions, make_cases
from paceline.lab.audit_pair import Pair
from paceline.lab.audit_traffic import TrafficResult, audit_traffic

PROMPTS = tuple(tuple((37 * i + 11 * n) % 256 for i in range(n)) for n in (150, 90, 200))
OPTIONS = TrafficOptions(requests=60, longest=70, dtypes=("float64",), k=3)
FEW = TrafficOptions(requests=14, longest=110, dtypes=("float64",), k=3, patience=10.0)


def _benchmark() -> ModuleType:
    """`benchmarks/traffic.py`, which upsets an engine on purpose."""
    path = Path(__file__).parents[2] / "benchmarks" / "traffic.py"
    spec = importlib.util.spec_from_file_location("traffic_benchmark", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


BENCHMARK = _benchmark()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("pair")
    target = tiny_checkpoint(folder / "target", seed=0, dtype=torch.float64)
    other = tiny_checkpoint(folder / "other", seed=1, dtype=torch.float64)
    return Pair(str(target), str(other), max_length=512, threads=1)


def played(
    pair: Pair, options: TrafficOptions, spoil: Callable[[Engine], None] | None = None
) -> tuple[TrafficResult, dict[str, Any]]:
    """spoil: what is done to the engine of the traffic alone, and not to the one that judges."""
    trouble = BENCHMARK.Trouble(options.seed, thefts=0.2)

    def prepare(engine: Engine) -> None:
        trouble(engine)
        if spoil is not None:
            spoil(engine)

    (result,) = audit_traffic(pair, PROMPTS, options, prepare=prepare).results
    return result, trouble.told()


def test_a_stream_among_many_is_the_stream_alone(pair: Pair) -> None:
    """How much trouble there is depends on who comes when: played until all of it was there."""
    seen = Counter[str]()
    for seed in range(8):
        result, trouble = played(pair, replace(OPTIONS, seed=seed))
        assert result.passed, (result.wrong[:3], result.divergences[:3])
        assert result.finished + result.cancelled == result.requests == OPTIONS.requests
        assert result.cancelled > 5
        assert result.compared > 30
        assert result.lost == 0
        assert result.stats.finished == OPTIONS.requests
        assert result.stats.pages_used == 0
        for name in ("drafter_paused", "drafter_resumed", "tokens_caught_up", "pages_evicted"):
            seen[name] += trouble[name]
        seen["preemptions"] += result.stats.preemptions
        seen["prefix_hits"] += result.stats.prefix_hits
        if len(+seen) == 6:
            return
    pytest.fail(f"eight times without one of the troubles: {seen}")


def test_every_way_to_read_and_to_hang_up_is_played() -> None:
    cases = make_cases(PROMPTS, OPTIONS)
    assert {case.reading for case in cases} == {"thread", "loop", "late"}
    assert {case.cancel is None for case in cases} == {True, False}
    assert any(case.cancel == 0 for case in cases)
    assert any(case.cancel for case in cases)
    assert make_cases(PROMPTS, OPTIONS) == cases


# --- faults put in on purpose --------------------------------------------------------------------


def _forgets_the_output(wrong: pytest.MonkeyPatch) -> None:
    """A text that comes back goes on from its prompt, with the noise of other positions."""
    admit = Slots.admit
    wrong.setattr(Slots, "admit", lambda self, *args: admit(self, *args[:4]))


def _draws_with_other_noise_when_resumed(wrong: pytest.MonkeyPatch) -> None:
    """Noise that is not the position's own, but counted from where the text came back."""
    admit = Slots.admit

    def bad(self: Slots, slot: int, *args: Any) -> None:
        admit(self, slot, *args)
        self.seed[slot] += len(args[3])

    wrong.setattr(Slots, "admit", bad)


def _keeps_the_page_table(wrong: pytest.MonkeyPatch) -> None:
    wrong.setattr(Loop, "_grant", lambda self, grant: None)


def _shares_too_much(wrong: pytest.MonkeyPatch) -> None:
    admit = Scheduler.admit

    def bad(self: Scheduler) -> list[Any]:
        admitted = admit(self)
        for sequence in admitted:  # takes one position more for read than was
            if sequence.prefilled and sequence.prefilled < len(sequence.tokens) - 1:
                sequence.prefilled += 1
        return list(admitted)

    wrong.setattr(Scheduler, "admit", bad)


def _gives_a_page_too_early(wrong: pytest.MonkeyPatch) -> Callable[[Engine], None]:
    """A page is written into another text's table while its holder still writes it."""

    def spoil(engine: Engine) -> None:
        slots = engine._loop.machine.slots
        set_pages, rng = slots.set_pages, random.Random(0)

        def bad(slot: int, first: int, pages: Sequence[int]) -> None:
            held = slots.pages[:, 0].unique().tolist()
            if pages and len(held) > 2 and rng.random() < 0.5:
                pages = (rng.choice(held[1:]), *pages[1:])
            set_pages(slot, first, pages)

        wrong.setattr(slots, "set_pages", bad)

    return spoil


def _loses_an_event(wrong: pytest.MonkeyPatch) -> None:
    emit, count = Reader._emit, iter(range(1 << 30))

    def bad(self: Reader, *args: Any) -> None:
        emit(self, *args)
        if next(count) % 20 == 19 and self.finish is None:
            self.events.pop()

    wrong.setattr(Reader, "_emit", bad)


def _swaps_events(wrong: pytest.MonkeyPatch) -> None:
    emit = Reader._emit

    def bad(self: Reader, *args: Any) -> None:
        emit(self, *args)
        if len(self.events) > 1 and self.finish is None:
            self.events.append(_popped(self, -2))

    def _popped(reader: Reader, place: int) -> Event:
        event = reader.events[place]
        del reader.events[place]
        return event

    wrong.setattr(Reader, "_emit", bad)


def _leaks_a_page(wrong: pytest.MonkeyPatch) -> None:
    drop, left = PageAllocator.drop, [1]

    def bad(self: PageAllocator, pages: Sequence[int]) -> None:
        drop(self, pages[left.pop() :] if left and len(pages) > 1 else pages)

    wrong.setattr(PageAllocator, "drop", bad)
    wrong.setattr(Scheduler, "check", lambda self: None)  # the count at the end must show it


@pytest.mark.parametrize(
    "fault",
    [
        _forgets_the_output,
        _draws_with_other_noise_when_resumed,
        _keeps_the_page_table,
        _shares_too_much,
        _gives_a_page_too_early,
        _loses_an_event,
        _swaps_events,
        _leaks_a_page,
    ],
)
def test_faults_are_found(
    fault: Callable[[pytest.MonkeyPatch], Callable[[Engine], None] | None],
    pair: Pair,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A fault may need a text to be preempted at the right moment, which not every play has."""
    spoil = fault(monkeypatch)
    assert any(not played(pair, replace(FEW, seed=seed), spoil)[0].passed for seed in range(8))


def test_a_dtype_that_is_not_asserted_tells_its_divergences(pair: Pair) -> None:
    options = TrafficOptions(
        requests=12, longest=60, dtypes=("float32",), k=3, drafter="ngram:min=1"
    )
    (result,) = audit_traffic(pair, PROMPTS, options).results
    assert not result.asserted
    assert result.passed
    assert result.divergences == ()  # CPU kernels sum in an order that is the position's alone

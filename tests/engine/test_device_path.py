"""The path a GPU takes, kernels and recorded rounds, driven on a machine without one.

Triton's interpreter stands for the device and a re-run for a graph's replay; all else is what
runs on a GPU: rows rounded up, idle rows, static inputs, rounds launched ahead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny_checkpoint
from tests.engine.tools import EVERYTHING, Case, alone, comes_to_rest, prompt, same, together

pytest.importorskip("triton")

from triton.runtime.interpreter import InterpretedFunction

from paceline import Engine, SamplingParams
from paceline.engine import build
from paceline.engine.capture import LEVELS, CapturedRounds
from paceline.engine.catch_up import Span
from paceline.engine.readings import CapturedReadings, EagerReadings
from paceline.ops.bookkeeping import Bookkeeping
from paceline.ops.choose import FusedChooser
from paceline.ops.device_attention import Tuning
from paceline.ops.layer import _DeviceOps
from paceline.types import Request

if torch.cuda.is_available():
    pytest.skip("a GPU runs the real thing", allow_module_level=True)

# numpy, under the interpreter, warns of what a GPU computes silently: of idle rows.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("device")
    shape: dict[str, Any] = {"head_dim": 16, "num_hidden_layers": 1}
    return {
        "target": tiny_checkpoint(root / "target", "qwen3", seed=0, **shape),
        "draft": tiny_checkpoint(root / "draft", seed=1, **shape),
    }


@pytest.fixture
def device_engine(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Engine]]:
    """Opens engines as a GPU would run them."""
    monkeypatch.setattr(
        "paceline.models.decoder.make_ops",
        lambda dtype, device, steady=True: _DeviceOps(dtype, steady),
    )
    monkeypatch.setattr("paceline.models.decoder.kept", lambda dtype, device: None)
    monkeypatch.setattr(
        "paceline.engine.build.make_chooser", lambda device: FusedChooser(native=False)
    )
    # The interpreter takes seconds for a pass: narrow ones, and rounds without and with everything.
    monkeypatch.setattr("paceline.engine.readings.WIDTHS", (2, 8))
    monkeypatch.setattr("paceline.engine.capture.LEVELS", (LEVELS[0], LEVELS[-1]))
    few = Tuning(tile=32, chunk=32, streams=2, rows=16, stages=1)
    monkeypatch.setattr(Tuning, "of", staticmethod(lambda spec: few))
    for module in ("paceline.engine.slots", "paceline.ops.bookkeeping"):
        monkeypatch.setattr(f"{module}.make_bookkeeping", lambda device: Bookkeeping(device))
    engines: list[Engine] = []

    def open_engine(capture: bool = True, **options: Any) -> Engine:
        sizes = {"threads": 1, "max_length": 64, "slots": 2}
        options = {"dtype": "float32", "adaptive": False} | sizes | options
        engine = Engine(folders["target"], **options)
        engines.append(engine)
        if capture:
            machine = engine._loop.machine
            engine._loop.rounds = CapturedRounds(machine, (0, engine.config.k))
            engine._loop.feeder.readings = CapturedReadings(machine)
        return engine

    yield open_engine
    for engine in engines:
        engine.close()


CASES = [
    Case(prompt(1, 5), SamplingParams(max_tokens=7)),
    Case(prompt(2, 9), SamplingParams(temperature=0.8, seed=5, max_tokens=9), k=0),
    Case(
        prompt(3, 3),
        SamplingParams(
            temperature=1.0, top_k=3, seed=6, max_tokens=5, logprobs=2, processed_logprobs=True
        ),
    ),
]


@pytest.fixture(scope="module")
def on_the_cpu(folders: dict[str, Path]) -> list[Any]:
    with Engine(folders["target"], dtype="float32", threads=1, max_length=64) as engine:
        return alone(engine, CASES)


def test_the_text_is_the_cpus(
    device_engine: Callable[..., Engine], folders: dict[str, Path], on_the_cpu: list[Any]
) -> None:
    """Speculative and plain rows, greedy and drawn, more requests than slots."""
    engine = device_engine(draft=folders["draft"], k=2)
    for mine, theirs in zip(together(engine, CASES), on_the_cpu, strict=True):
        same(mine, theirs, tolerance=1e-3, ties=True)


def test_plain_rounds_are_launched_ahead(
    device_engine: Callable[..., Engine], on_the_cpu: list[Any]
) -> None:
    engine = device_engine(k=0)
    for mine, theirs in zip(together(engine, CASES), on_the_cpu, strict=True):
        same(mine, theirs, tolerance=1e-3, ties=True)
    (plan,) = _plans(engine)
    assert engine._loop.rounds.ahead(plan) == 1
    assert engine._loop.rounds.ahead(replace(plan, next_k=2)) == 0
    # What it commits is more than the next draft's first pass has room for.
    assert engine._loop.rounds.ahead(replace(plan, k=2)) == 0
    comes_to_rest(engine)


def _plans(engine: Engine) -> list[Any]:
    """A plan of no rows, to ask about."""
    from paceline.engine.round import Plan
    from paceline.types import SamplingFlags

    batch = engine._loop.machine.slots.batch(torch.zeros(1, dtype=torch.int64))
    return [Plan(batch, ((0, 64),), SamplingFlags(), 0, 0)]


def test_recorded_rounds_equal_eager_ones_with_everything_on(
    device_engine: Callable[..., Engine],
) -> None:
    params = EVERYTHING.__class__(
        **{
            **{name: getattr(EVERYTHING, name) for name in EVERYTHING.__slots__},
            "max_tokens": 8,
            "min_tokens": 3,
        }
    )
    case = Case(prompt(4, 6), params)
    recorded = together(device_engine(drafter="ngram", k=2), [case])[0]
    eager = together(device_engine(capture=False, drafter="ngram", k=2), [case])[0]
    same(recorded, eager, tolerance=1e-6, ties=True)


def test_a_rehearsal_without_kernels_does_no_harm(
    device_engine: Callable[..., Engine],
    folders: dict[str, Path],
    on_the_cpu: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Indices that no kernel has written stay inside, and nothing that counts is changed."""
    engine = device_engine(draft=folders["draft"], k=2, capture=False)
    machine, told = engine._loop.machine, []
    with monkeypatch.context() as patch, torch.inference_mode():
        patch.setattr(InterpretedFunction, "run", lambda *_, **__: None, raising=False)
        patch.setattr(InterpretedFunction, "__getitem__", lambda *_: lambda *_, **__: None)
        build._compile(machine, (0, 2), lambda *step: told.append(step))
    assert told[-1] == ("compiling kernels", 8, 8)
    engine._loop.rounds = CapturedRounds(machine, (0, 2))
    for mine, theirs in zip(together(engine, CASES), on_the_cpu, strict=True):
        same(mine, theirs, tolerance=1e-3, ties=True)


def test_recording_tells_how_far_it_is(device_engine: Callable[..., Engine]) -> None:
    machine = device_engine(capture=False, k=1, slots=1)._loop.machine
    steps: list[tuple[int, int]] = []
    CapturedRounds(machine, (0, 1), lambda *step: steps.append(step))
    assert steps == [(done, 8) for done in range(1, 9)]


def test_leaving_early_frees_the_slot(device_engine: Callable[..., Engine]) -> None:
    engine = device_engine(k=0, slots=1)
    stream = engine.stream(prompt(1, 4), SamplingParams(max_tokens=30))
    next(stream)
    stream.close()
    assert len(engine.generate(prompt(2, 4), SamplingParams(max_tokens=3))[0].token_ids) == 3
    comes_to_rest(engine)


@pytest.mark.parametrize("kind", ["target", "drafter"])
def test_cells_are_the_same_in_whatever_pieces_a_text_is_read(
    device_engine: Callable[..., Engine], folders: dict[str, Path], kind: str
) -> None:
    """Recorded passes, padded or not, and chunks that are read at once."""
    engine = device_engine(draft=folders["draft"], k=2)
    machine, readings = engine._loop.machine, engine._loop.feeder.readings
    assert isinstance(readings, CapturedReadings)
    text = prompt(7, 24)
    request = Request("one", tuple(text), SamplingParams(), seed=0)
    pool = machine.pool if kind == "target" else machine.drafter._pool  # type: ignore[attr-defined]
    found: list[list[torch.Tensor]] = []
    with torch.inference_mode():
        machine.slots.admit(1, request, (), 2)
        machine.slots.set_pages(1, 0, [1])
        for cuts in ((23,), (8, 23), (1, 3, 12, 23), ()):
            for layer in pool.layers:
                layer.keys.fill_(float("nan"))
                layer.values.fill_(float("nan"))
            for start, stop in pairwise((0, *cuts)):
                readings.read(1, start, stop, True)
            if not cuts:  # of at most 16 rows: numpy multiplies wider tiles in another order
                EagerReadings(machine).read(1, 0, 12, True)
                EagerReadings(machine).read(1, 12, 23, True)
            size = machine.slots.limits.page_size
            cells = [
                x[:, size : size + 23] for layer in pool.layers for x in (layer.keys, layer.values)
            ]
            found.append([cell.clone() for cell in cells])
    for others in found[1:]:
        for mine, theirs in zip(found[0], others, strict=True):
            assert mine.isfinite().all()
            assert torch.equal(mine, theirs)


def test_a_drafter_that_was_left_behind_is_brought_up_in_the_same_passes(
    device_engine: Callable[..., Engine], folders: dict[str, Path]
) -> None:
    engine = device_engine(draft=folders["draft"], k=2)
    machine, readings = engine._loop.machine, engine._loop.feeder.readings
    cache = machine.drafter._pool.layers[0].keys  # type: ignore[attr-defined]
    request = Request("one", tuple(prompt(7, 20)), SamplingParams(), seed=0)
    found = []
    with torch.inference_mode():
        machine.slots.admit(1, request, (), 2)
        machine.slots.set_pages(1, 0, [1])
        for together in (True, False):
            cache.zero_()
            readings.read(1, 0, 19, together)
            if not together:
                readings.catch_up([Span(1, 0, 9)])
                readings.catch_up([Span(1, 9, 19)])
            found.append(cache.clone())
    assert found[0].any()
    size = machine.slots.limits.page_size
    assert torch.equal(found[0][:, size:], found[1][:, size:])


@pytest.mark.parametrize("recorded", [True, False])
def test_drafters_are_brought_up_side_by_side_as_alone(
    device_engine: Callable[..., Engine], folders: dict[str, Path], recorded: bool
) -> None:
    """Three texts, from different places on and of different lengths, in a pass of four rows."""
    engine = device_engine(draft=folders["draft"], k=2, slots=3)
    machine, readings = engine._loop.machine, engine._loop.feeder.readings
    if not recorded:
        readings = EagerReadings(machine)
    pool = machine.drafter._pool  # type: ignore[attr-defined]
    cells = [x for layer in pool.layers for x in (layer.keys, layer.values)]
    spans = [Span(1, 3, 9), Span(2, 0, 17), Span(3, 5, 6)]
    found = []
    with torch.inference_mode():
        for slot in (1, 2, 3):
            machine.slots.admit(
                slot, Request(str(slot), tuple(prompt(slot, 20)), SamplingParams(), seed=0), (), 2
            )
            machine.slots.set_pages(slot, 0, [slot])
        for side_by_side in (True, False):
            for cell in cells:
                cell.zero_()
            for slot, start, _ in spans:
                if start:
                    readings.catch_up([Span(slot, 0, start)])
            before = [cell.clone() for cell in cells]
            for group in [spans] if side_by_side else [[span] for span in spans]:
                readings.catch_up(group)
            assert not torch.equal(before[0], cells[0])
            found.append([cell.clone() for cell in cells])
    size = machine.slots.limits.page_size
    for mine, theirs in zip(*found, strict=True):  # numpy multiplies wider tiles in another order
        assert mine[:, size:].any()
        torch.testing.assert_close(mine[:, size:], theirs[:, size:], rtol=1e-5, atol=1e-5)

"""What the engine tells of its costs, and K held for measuring."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import tiny_checkpoint

from paceline import CostPoint, Costs, Engine, RequestError, SamplingParams

PARAMS = SamplingParams(max_tokens=12, ignore_eos=True)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    place = tmp_path_factory.mktemp("costs")
    return tiny_checkpoint(place / "t"), tiny_checkpoint(place / "d", num_hidden_layers=1)


def opened(folders: tuple[Path, Path], **more: object) -> Engine:
    options: dict[str, object] = {"draft": folders[1], "k": 3, "slots": 2, "dtype": "float32",
                                  "threads": 1, "max_length": 128}  # fmt: skip
    return Engine(folders[0], **(options | more))


@pytest.fixture
def engine(folders: tuple[Path, Path]) -> Iterator[Engine]:
    with opened(folders) as engine:
        yield engine


def test_costs_are_those_the_engine_decides_by(engine: Engine) -> None:
    costs = engine.costs()
    assert costs.ks == (0, 1, 2, 3)
    assert {point.kind for point in costs.points} == {"verify", "draft"}
    assert costs.round(2, 3, 50) > costs.verify(2, 3, 50) > 0
    assert costs.draft(2, 0) == 0
    table = engine._loop.pilot.cost  # type: ignore[attr-defined]
    assert costs.verify(1, 2, 40.0) == pytest.approx(table.verify(1, 3, 40.0))


def test_rows_that_fill_up_a_recorded_size_have_no_context() -> None:
    points = [CostPoint(kind, rows, k, context, 0.01 + 1e-6 * rows * context)
              for rows in (32, 64) for context in (0, 1000)
              for kind, k in (("verify", 0), ("verify", 2), ("draft", 2))]  # fmt: skip
    recorded = Costs(tuple(points), (0, 2), sizes=(32, 64))
    assert recorded.verify(48, 0, 500.0) == pytest.approx(0.01 + 1e-6 * 48 * 500)
    assert recorded.round(33, 2, 500.0) == pytest.approx(2 * (0.01 + 1e-6 * 33 * 500))
    assert recorded.verify(64, 0, 500.0) == pytest.approx(0.01 + 1e-6 * 64 * 500)


def test_costs_are_measured_anew_where_nothing_is_in_the_caches(engine: Engine) -> None:
    prompt = "def area(width, height):\n" * 4  # longer than a page, which is kept
    before = engine.generate(prompt, PARAMS, k=0)[0].text
    with pytest.raises(RequestError, match="ask before the first text"):
        engine.costs(0.05)
    assert engine.costs().points  # what is known can be told at any time
    assert engine.generate(prompt, PARAMS)[0].text == before


def test_measuring_leaves_no_trace_in_a_text(folders: tuple[Path, Path]) -> None:
    prompt = "def f(x):" * 8
    with opened(folders, prefix_cache=False, adaptive=False) as engine:
        first = engine.costs()  # K is fixed: nothing was measured at start
        before = engine.generate(prompt, PARAMS)[0].token_ids
        again = engine.costs(0.05)  # and nothing is kept, so it may be measured between texts
        assert engine.generate(prompt, PARAMS)[0].token_ids == before
        assert first.ks == again.ks
        assert all(point.seconds >= 0 for point in again.points)


def test_costs_while_texts_are_written(folders: tuple[Path, Path]) -> None:
    with opened(folders, prefix_cache=False) as engine:
        params = SamplingParams(max_tokens=100, ignore_eos=True)
        handles = [engine.submit("abc", params) for _ in range(20)]  # none of them is soon done
        with pytest.raises(RequestError, match="wait until it is idle"):
            engine.costs(0.05)
        with pytest.raises(RequestError, match="texts are being written"):
            engine.fix_k(0)
        for handle in handles:
            handle.cancel()


@pytest.mark.parametrize("drafter", ["model", "ngram"])
def test_k_is_held_and_the_text_is_the_same(folders: tuple[Path, Path], drafter: str) -> None:
    with opened(folders, drafter=drafter) as engine:
        texts = set()
        for k in (0, 2, 3, None, 0):
            engine.fix_k(k)
            done = engine.generate("abcabcabc", PARAMS)[0]
            texts.add(done.token_ids)
            assert len(done.stats.evaluated_by_position) <= (3 if k is None else k)
            if k == 0:
                assert done.stats.rounds == 12
            elif k == 3 and drafter == "model":
                assert done.stats.drafted >= 3
        assert len(texts) == 1


@pytest.mark.parametrize("k", [-1, 4, 1.5, True])
def test_a_k_the_engine_is_not_made_for(engine: Engine, k: object) -> None:
    with pytest.raises(RequestError, match="k must be a whole number"):
        engine.fix_k(k)  # type: ignore[arg-type]


def test_a_k_that_no_round_was_recorded_for(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU it would be drafted as the next longer one."""
    monkeypatch.setattr(engine._loop.rounds, "width", lambda k: {2: 3}.get(k, k))
    with pytest.raises(
        RequestError, match="no round of 2 drafts was recorded: take one of 0, 1 or 3"
    ):
        engine.fix_k(2)
    engine.fix_k(3)


def test_a_plain_engine_has_costs_too(folders: tuple[Path, Path]) -> None:
    with Engine(folders[0], dtype="float32", threads=1, max_length=128, slots=1) as engine:
        costs = engine.costs()
        assert costs.ks == (0,)
        assert costs.verify(1, 0) > 0


def test_a_table_without_a_verify_window_is_none() -> None:
    with pytest.raises(ValueError, match="at least one measured verify window"):
        Costs((CostPoint("draft", 1, 2, 64, 0.1),), (0, 2))

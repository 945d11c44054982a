"""The engine's figures: they count with every round, and its seconds once a round."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
from tests.engine.tools import Pair

from paceline import Engine, sampling_params

PROMPT = "def add(a, b):"


@pytest.fixture
def engine(opened: Callable[..., Engine], pair: Pair) -> Engine:
    return opened(draft=pair.other, k=3)


def test_figures_of_the_engine_are_its_texts_together(engine: Engine) -> None:
    before = engine.stats()
    done = engine.generate([PROMPT, "import os\n", "class A:"], sampling_params(max_tokens=20))
    after, every = engine.stats(), [item.stats for item in done]
    for name in ("drafted", "evaluated", "accepted", "emitted", "prompt_tokens", "queue_seconds"):
        grown = getattr(after, name) - getattr(before, name)
        assert abs(grown - sum(getattr(stats, name) for stats in every)) < 1e-9, name
    for name in ("drafted_by_source", "evaluated_by_source", "accepted_by_source"):
        grown = getattr(after, name)["model"] - getattr(before, name).get("model", 0)
        assert grown == sum(getattr(stats, name)["model"] for stats in every)
    assert sum(after.rounds_by_k) == after.rounds
    rounds = after.rounds - before.rounds
    assert max(stats.rounds for stats in every) <= rounds < sum(stats.rounds for stats in every)
    # Three texts of one round have its seconds each; the engine has them once.
    spent = after.verify_seconds - before.verify_seconds
    assert max(stats.verify_seconds for stats in every) <= spent + 1e-9
    assert spent < sum(stats.verify_seconds for stats in every)
    lost = after.wasted_seconds - before.wasted_seconds
    assert 0 < lost < spent + after.draft_seconds - before.draft_seconds


def test_nothing_is_wasted_without_drafts(engine: Engine) -> None:
    before = engine.stats()
    (done,) = engine.generate(PROMPT, sampling_params(max_tokens=12), k=0)
    assert done.stats.wasted_seconds == engine.stats().wasted_seconds - before.wasted_seconds == 0
    assert done.stats.verify_seconds > 0


def test_they_count_while_a_text_is_written(engine: Engine) -> None:
    before = engine.stats()
    with engine._driver.held() as step:
        handle = engine.submit(PROMPT, sampling_params(max_tokens=200, ignore_eos=True))
        while handle.stats.rounds < 3:
            step()
        events = handle.events()
        for _ in range(3):
            next(events)
        during = engine.stats()
        assert during.finished == before.finished
        assert during.emitted - before.emitted >= 3
        assert during.prompt_tokens > before.prompt_tokens
        assert handle.stats.emitted >= 3
        handle.cancel()
    handle.wait_closed()
    assert engine.stats().emitted - before.emitted == handle.stats.emitted


def test_what_was_read_does_not_change(engine: Engine) -> None:
    """Whoever reads figures has lists of his own, and may be in another thread."""
    engine.generate(PROMPT, sampling_params(max_tokens=8))
    before = engine.stats()
    kept = dataclasses.replace(
        before,
        evaluated_by_position=[*before.evaluated_by_position],
        drafted_by_source={**before.drafted_by_source},
        rounds_by_k=[*before.rounds_by_k],
    )
    engine.generate(PROMPT, sampling_params(max_tokens=8))
    assert before == kept
    assert engine.stats().rounds_by_k != kept.rounds_by_k


def test_what_the_prefix_cache_spared(opened: Callable[..., Engine]) -> None:
    """In whole pages, and never the last token, which is the first window's root."""
    engine, params = opened(), sampling_params(max_tokens=4)
    prompt = "x" * 129
    counts = [engine.generate(text, params)[0].stats.cached_tokens
              for text in (prompt, prompt, prompt[:128], "y" + prompt)]  # fmt: skip
    assert counts == [0, 128, 64, 0]
    assert engine.stats().cached_tokens == engine.stats().prefix_hits == sum(counts)


def test_a_text_that_finds_its_own_pages_is_spared_nothing(opened: Callable[..., Engine]) -> None:
    engine = opened(slots=2, cache_tokens=256)
    params = sampling_params(max_tokens=170, ignore_eos=True)
    done = engine.generate(["a" * 20, "b" * 20], params)
    assert engine.stats().preemptions > 0
    assert engine.stats().prefix_hits > 0
    assert [text.stats.cached_tokens for text in done] == [0, 0]

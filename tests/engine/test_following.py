"""What a drafter is said to have seen of a text it has seen: its cache is what its model makes of
those tokens, whatever is decided between rounds, and what it drafts without having seen is not
verified."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import ClassVar

import pytest
import torch
from tests.engine.tools import Case, Pair, prompt, together

from paceline import Engine, Grammar, SamplingParams
from paceline.drafters.base import Drafter, Draw, Needs
from paceline.drafters.model import ModelDrafter
from paceline.drafters.none import NoDrafter
from paceline.engine import fitting
from paceline.engine.acceptance import Seen, Track
from paceline.engine.capture import CapturedRounds, widths
from paceline.engine.loop import Loop
from paceline.engine.pilot import Launch
from paceline.engine.readings import CapturedReadings
from paceline.kv.pools import KVPool
from paceline.models.decoder import Decoder
from paceline.ops.attention import BLOCK
from paceline.types import Draft, Rows, Window

K = 4
PARAMS = SamplingParams(max_tokens=40, ignore_eos=True)


class Whims:
    """Decides by lot: how much is drafted, for whom, and how much of it is verified."""

    def __init__(self, seed: int) -> None:
        self._rng, self._k, self.paused = random.Random(seed), 0, False
        self.put_offs = 0

    def track(self, limit: int, remaining: int) -> Track:
        return Track(min(limit, K), remaining)

    def first(self, track: Track) -> int:
        track.waiting = min(self._rng.randrange(K + 1), track.limit)
        return track.waiting

    def fed(self, tokens: int) -> None:
        pass

    def plan(self, tracks: Sequence[Track], context: float) -> Launch:
        rng = self._rng
        self.paused ^= rng.random() < 0.1
        if rng.random() < 0.4:
            self._k = rng.choice((0, 2, K))
        k = rng.choice((0, max(track.waiting for track in tracks), K))
        asked = tuple(min(track.waiting, k) for track in tracks)
        for track in tracks:
            track.waiting = min(self._k, track.limit) if rng.random() < 0.6 else 0
        drafts = tuple(track.waiting for track in tracks)
        return Launch(len(tracks), context, k, self._k, asked, drafts)

    def put_off(self, tracks: Sequence[Track], launch: Launch) -> Launch:
        self.put_offs += 1
        return launch.without_drafts(tracks)

    def settled(
        self,
        tracks: Sequence[Track],
        launch: Launch,
        seen: Seen,
        *,
        verify_seconds: float = 0.0,
        draft_seconds: float = 0.0,
        wall_seconds: float | None = None,
        elapsed_seconds: float | None = None,
    ) -> None:
        pass

    def describe(self) -> str:
        return "as it comes"


@torch.inference_mode()
def written(model: Decoder, tokens: Sequence[int]) -> KVPool:
    """The cache of a text that is read at once."""
    pages = -(-len(tokens) // BLOCK)
    pool, place = KVPool(model.spec, pages, BLOCK, torch.device("cpu")), torch.arange(len(tokens))
    table = torch.arange(pages).unsqueeze(0)
    ids, place = torch.tensor([list(tokens)]), place.unsqueeze(0)
    model.forward(Window(ids, place, place, place >= 0, (len(tokens),), table, BLOCK), pool)
    return pool


@torch.inference_mode()
def check(loop: Loop) -> int:
    """Compare what the drafter's cache should hold with what it holds; positions compared."""
    drafter, size = loop.machine.drafter, loop.machine.slots.limits.page_size
    assert isinstance(drafter, ModelDrafter)
    compared = 0
    for sequence in loop.scheduler.running + loop.scheduler.prefilling:
        known = sequence.tokens[: sequence.observed]
        if known:
            right, place = written(drafter._model, known), torch.arange(len(known))
            held = torch.tensor(sequence.pages)[place // size] * size + place % size
            for mine, one in zip(drafter._pool.layers, right.layers, strict=True):
                torch.testing.assert_close(mine.keys[:, held], one.keys[:, place])
                torch.testing.assert_close(mine.values[:, held], one.values[:, place])
            compared += len(known)
    return compared


@pytest.mark.parametrize("max_gap", [None, 1e-9])
@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_what_a_drafter_has_seen_is_in_its_cache(
    seed: int,
    recorded: bool,
    max_gap: float | None,
    pair: Pair,
    opened: Callable[..., Engine],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The target drafts for itself: all that is verified stands, since all of it was drafted with
    the whole text before it. With a bound that leaves no time, what it has not seen is shown over
    several steps, and nothing is drafted meanwhile."""
    monkeypatch.setattr(fitting, "TOGETHER", 2)
    monkeypatch.setattr(fitting, "SIDE", 6)
    engine = opened(draft=pair.target, k=K, slots=4, max_gap=max_gap)
    loop, shared, compared = engine._loop, prompt(9, 70), 0
    cases = [Case(shared[: 35 * (n % 3)] + prompt(n, 5 + n), PARAMS) for n in range(6)]
    cases.append(Case(prompt(7), PARAMS, k=0))
    with engine._driver.held() as step:
        if recorded:
            loop.rounds = CapturedRounds(loop.machine, widths(K))
            loop.feeder.readings = CapturedReadings(loop.machine)
        loop.pilot = whims = Whims(seed)
        handles = [engine.submit(case.prompt, case.params, k=case.k) for case in cases]
        step()
        while not loop.idle:
            step()
            compared += check(loop)
    stats = engine.stats()
    assert compared > 1000
    assert stats.accepted == stats.evaluated > (30 if max_gap is None else 15)
    assert (whims.put_offs > 0) == (max_gap is not None)
    for handle, alone in zip(handles, together(opened(k=0), cases), strict=True):
        assert handle.result(60).token_ids == alone.token_ids


@pytest.mark.parametrize("seed", range(3))
def test_what_a_grammar_forces_a_drafter_has_not_seen(
    seed: int, pair: Pair, opened: Callable[..., Engine]
) -> None:
    grammar = Grammar("regex", "([a-f] forced [0-9]; ){9}")
    params = SamplingParams(max_tokens=80)
    engine, compared = opened(draft=pair.target, k=K, slots=3), 0
    with engine._driver.held() as step:
        engine._loop.pilot = Whims(seed)
        handles = [engine.submit(prompt(n), params, grammar=grammar) for n in range(2)]
        handles.append(engine.submit(prompt(5), PARAMS))
        step()
        while not engine._loop.idle:
            step()
            compared += check(engine._loop)
    assert compared > 500
    plain = opened(k=0)
    for n, handle in enumerate(handles[:2]):
        (alone,) = plain.generate([prompt(n)], params, grammar=grammar)
        assert handle.result(60).text == alone.text
        assert handle.result(60).stats.accepted_by_source["forced"] > 10


class Blind(Drafter):
    """Is shown every window, and drafts nothing of use."""

    name: ClassVar[str] = "blind"
    needs = Needs(catch_up="observe")

    def propose(self, rows: Rows, k: int, draw: Draw) -> Draft:
        return NoDrafter().propose(rows, k, draw)


@pytest.mark.parametrize("k", [0, K])
def test_a_text_that_was_written_plain_is_found_again_by_one_that_is_shown_all(
    k: int, opened: Callable[..., Engine]
) -> None:
    """Its windows were shown in plain rounds too, so what follows on the text need not be read."""
    engine = opened(drafter=Blind(), k=K, slots=1)
    first = prompt(1, 60)
    (text,) = engine.generate([first], PARAMS, k=k)
    (after,) = engine.generate([first + list(text.token_ids) + [5]], PARAMS)
    assert after.stats.cached_tokens == BLOCK

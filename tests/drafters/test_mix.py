"""The mix: row by row the first part with a draft, and the union of what the parts need."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paceline.drafters.base import Drafter
from paceline.drafters.mix import MixDrafter
from paceline.drafters.ngram import NgramDrafter
from paceline.drafters.none import NoDrafter
from paceline.drafters.predicted import PredictedDrafter
from paceline.drafters.replay import ReplayDrafter
from paceline.errors import ConfigError
from paceline.types import Draft, KVSpec, Needs, Rows, TargetOut

# The parts below look at nothing but how much is new to them.
_ZERO = torch.zeros(1, dtype=torch.int64)
ROWS = Rows(_ZERO, _ZERO, _ZERO, (), _ZERO, page_size=64, committed=4, fresh=1)
KV = KVSpec(layers=1, kv_heads=1, head_dim=8, dtype=torch.float32)


class Part(Drafter):
    """Proposes set counts of one token, and keeps what it was told."""

    name: ClassVar[str] = "part"

    def __init__(
        self, token: int = 0, counts: tuple[int, ...] = (), scored: bool = False, **needs: Any
    ) -> None:
        self.token, self.counts, self.scored, self.needs = token, counts, scored, Needs(**needs)
        self.told: list[tuple[Any, ...]] = []
        self.fresh = 0

    def bind(self, target: Any, limits: Any) -> None:
        self.told.append(("bind", target, limits))

    def admit(self, slot: int, request: Any) -> None:
        self.told.append(("admit", slot, request))

    def release(self, slot: int) -> None:
        self.told.append(("release", slot))

    def observe(self, window: Any, out: Any, verdict: Any, rows: Any) -> None:
        self.told.append(("observe", out))

    def propose(self, rows: Any, k: int, draw: Any) -> Draft:
        self.fresh = rows.fresh
        count = torch.tensor(self.counts)
        tokens = torch.full((len(self.counts), k), self.token)
        scores = torch.full((len(self.counts), k, 6), float(self.token)) if self.scored else None
        return Draft(tokens, count, torch.zeros_like(count), scores)


@given(
    counts=st.integers(1, 4).flatmap(
        lambda rows: st.lists(
            st.lists(st.sampled_from([0, 0, 1, 3]), min_size=rows, max_size=rows),
            min_size=1,
            max_size=4,
        )
    ),
    scored=st.lists(st.booleans(), min_size=4, max_size=4),
)
def test_first_part_with_a_draft(counts: list[list[int]], scored: list[bool]) -> None:
    """Tokens, counts, sources and scores of every row are those of the loop's choice."""
    parts = tuple(Part(i + 1, tuple(c), scored[i]) for i, c in enumerate(counts))
    draft = MixDrafter(parts).propose(ROWS, 3, None)  # type: ignore[arg-type]
    some = any(part.scored for part in parts)
    assert (draft.scores is not None) == some
    for row in range(len(counts[0])):
        chosen = next((i for i, c in enumerate(counts) if c[row] > 0), None)
        if chosen is None:
            assert draft.count[row] == 0
            continue
        assert draft.count[row] == counts[chosen][row]
        assert draft.source[row] == chosen
        assert draft.tokens[row].tolist() == [chosen + 1] * 3
        if draft.scores is not None:
            token = chosen + 1
            one_hot = [0.0 if v == token else -torch.inf for v in range(6)]
            want = [float(token)] * 6 if scored[chosen] else one_hot
            assert draft.scores[row].tolist() == [want] * 3


def test_sources_of_a_mix_inside_a_mix() -> None:
    inner = MixDrafter((Part(1, (0, 0, 1, 0)), Part(2, (0, 1, 1, 0))))
    mix = MixDrafter((Part(3, (1, 0, 0, 0)), inner, Part(4, (1, 1, 1, 1))))
    assert mix.sources == ("part",) * 4
    draft = mix.propose(ROWS, 2, None)  # type: ignore[arg-type]
    assert draft.source.tolist() == [0, 2, 1, 3]
    assert draft.tokens[:, 0].tolist() == [3, 2, 1, 4]


def test_needs_are_the_union() -> None:
    mix = MixDrafter(
        (
            Part(features=(9, 2), catch_up="tokens", kv=KV),
            Part(features=(2, 5), host=True),
        )
    )
    assert mix.needs == Needs(features=(2, 5, 9), kv=KV, host=True, catch_up="tokens")
    with pytest.raises(ConfigError, match="cannot stand together"):
        _ = MixDrafter((Part(catch_up="tokens"), Part(catch_up="observe"))).needs
    assert MixDrafter((Part(), Part(catch_up="observe"))).needs.catch_up == "observe"
    assert MixDrafter((NoDrafter(), NgramDrafter())).needs == Needs()


def test_needs_known_only_after_bind() -> None:
    class Late(Part):
        def bind(self, target: Any, limits: Any) -> None:
            self.needs = Needs(kv=KV, catch_up="tokens")

    mix = MixDrafter((Part(), Late()))
    assert mix.needs.kv is None
    mix.bind(None, None)  # type: ignore[arg-type]
    assert mix.needs == Needs(kv=KV, catch_up="tokens")


def test_every_part_gets_its_own_features() -> None:
    first, second, third = Part(features=(7, 2)), Part(features=(5,)), Part()
    mix = MixDrafter((first, second, third))
    out = TargetOut(torch.zeros(1, 1, 1), tuple(torch.tensor(float(x)) for x in (2, 5, 7)))
    mix.observe(None, out, None, None)  # type: ignore[arg-type]
    seen = [[float(f) for f in part.told[0][1].features] for part in (first, second, third)]
    assert seen == [[7.0, 2.0], [5.0], []]
    mix.observe(None, None, None, None)  # type: ignore[arg-type]
    assert first.told[1] == ("observe", None)


def test_forwards_to_every_part(world: Any) -> None:
    parts = (Part(), Part())
    mix, request = MixDrafter(parts), world.request([1])
    mix.bind("target", "limits")  # type: ignore[arg-type]
    mix.admit(2, request)
    mix.release(2)
    for part in parts:
        assert part.told == [
            ("bind", "target", "limits"),
            ("admit", 2, request),
            ("release", 2),
        ]


def test_refuses_two_caches_and_no_part() -> None:
    with pytest.raises(ConfigError, match="only one part may keep a cache"):
        MixDrafter((Part(kv=KV), Part(kv=KV)))
    with pytest.raises(ConfigError, match="at least one part"):
        MixDrafter(())


def test_predicted_then_ngram_then_replay(world: Any) -> None:
    """Real parts: each serves the rows that those before it leave."""
    limits = world.limits()
    replay = ReplayDrafter(answers={(1,): [30, 31, 32, 33]})
    mix = MixDrafter((PredictedDrafter(), NgramDrafter(), replay))
    mix.bind(None, limits)  # type: ignore[arg-type]
    mix.admit(1, world.request([1], [20, 21, 22]))
    mix.admit(2, world.request([1]))
    mix.admit(3, world.request([1]))
    rows = world.rows([[1, 20], [1, 5, 6, 7, 5, 6], [1, 30]], [1, 2, 3], limits)
    assert world.propose(mix, rows, 2) == [[21, 22], [7, 5], [31, 32]]
    draft = mix.propose(rows, 2, None)  # type: ignore[arg-type]
    assert [mix.sources[i] for i in draft.source.tolist()] == ["predicted", "ngram", "replay"]


def test_made_by_name() -> None:
    from paceline.drafters import create

    made = create("predicted+ngram:min=3")
    assert isinstance(made, MixDrafter)
    assert made.sources == ("predicted", "ngram")


def test_all_that_was_committed_is_new_to_a_part() -> None:
    parts = (Part(1, (0,)), Part(2, (1,)))
    MixDrafter(parts).propose(ROWS, 2, None)  # type: ignore[arg-type]
    assert [part.fresh for part in parts] == [4, 4]

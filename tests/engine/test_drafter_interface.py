"""What a drafter from elsewhere can rely on: what it is shown, when, and how it is found."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from helpers import VOCAB_SIZE, tiny_model
from tests.engine.tools import Case, Pair, RandomDrafter, prompt, same, together

import paceline
from paceline import ConfigError, Engine, RequestError, SamplingParams
from paceline.drafters import create, names
from paceline.drafters.base import Drafter, Draw
from paceline.drafters.mix import MixDrafter
from paceline.drafters.ngram import NgramDrafter
from paceline.engine.capture import CapturedRounds
from paceline.engine.lending import check_needs
from paceline.engine.readings import CapturedReadings
from paceline.types import Draft, Limits, Needs, Request, Rows, TargetOut, Verdict, Window

PARAMS = SamplingParams(temperature=1.0, seed=4, max_tokens=20, ignore_eos=True)


@dataclass(frozen=True, slots=True)
class Seen:
    """One row of one window as `observe` was shown it, on the host."""

    slot: int
    ids: list[int]
    position: list[int]
    address: list[int]
    valid: list[bool]
    features: tuple[torch.Tensor, ...]
    verdict: tuple[list[int], list[int], int] | None  # tokens, path, n
    length: int


@dataclass(frozen=True, slots=True)
class WatchOptions:
    """seed: of the tokens it proposes."""

    seed: int = 0


class Watcher(Drafter):
    """Proposes at random and writes down everything it is told."""

    name: ClassVar[str] = "watcher"
    Options: ClassVar[type[WatchOptions]] = WatchOptions
    needs = Needs(features=(0, 1), catch_up="observe")

    def __init__(self, options: WatchOptions | None = None) -> None:
        self._random = RandomDrafter((options or WatchOptions()).seed)
        self.bound: list[tuple[Any, Limits]] = []
        self.calls: list[tuple[str, int]] = []
        self.seen: list[Seen] = []
        self.texts: dict[int, list[int]] = {}

    def bind(self, target: Any, limits: Limits) -> None:
        self.bound.append((target, limits))

    def admit(self, slot: int, request: Request) -> None:
        self.calls.append(("admit", slot))
        self.texts[slot] = list(request.prompt)
        self._random.admit(slot, request)

    def release(self, slot: int) -> None:
        self.calls.append(("release", slot))

    def observe(
        self, window: Window, out: TargetOut | None, verdict: Verdict | None, rows: Rows
    ) -> None:
        assert out is not None
        assert len(out.features) == len(self.needs.features)
        for feature in out.features:
            assert feature.shape == (*window.ids.shape, 32)
        for row, slot in enumerate(rows.index.tolist()):
            told = None
            if verdict is not None:
                n = int(verdict.n[row])
                told = (verdict.tokens[row].tolist(), verdict.path[row].tolist(), n)
                self.texts[slot] += told[0][:n]
            length = int(rows.length[row])
            self.seen.append(
                Seen(
                    slot,
                    window.ids[row].tolist(),
                    window.position[row].tolist(),
                    window.address[row].tolist(),
                    window.valid[row].tolist(),
                    tuple(feature[row].clone() for feature in out.features),
                    told,
                    length,
                )
            )
            # The slots hold what the verdicts told, no more and no less.
            assert rows.tokens[slot, :length].tolist() == self.texts[slot][:length]

    def propose(self, rows: Rows, k: int, draw: Draw) -> Draft:
        assert k >= 1
        for slot, length in zip(rows.index.tolist(), rows.length.tolist(), strict=True):
            assert rows.tokens[slot, :length].tolist() == self.texts[slot]
        return self._random.propose(rows, k, draw)


@pytest.mark.parametrize("rule", ["match", "reject", "block"])
def test_what_is_observed(rule: str, pair: Pair, opened: Callable[..., Engine]) -> None:
    """Features are transformers' hidden states, in prefill chunks and verified windows; the
    verdict's path names the nodes behind the committed tokens."""
    watcher = Watcher()
    engine = opened(drafter=watcher, k=3, slots=2, prefill_chunk=4, rule=rule, max_length=64)
    cases = [Case(prompt(1, 10), PARAMS), Case(prompt(2, 3), replace(PARAMS, seed=5))]
    texts = [
        case.prompt + list(result.token_ids)
        for case, result in zip(cases, together(engine, cases, in_order=True), strict=True)
    ]
    target, limits = watcher.bound[0]
    assert (target.vocab_size, target.hidden_size) == (VOCAB_SIZE, 32)
    assert target.embedding.shape == (VOCAB_SIZE, 32)
    assert (limits.max_length, limits.max_k, limits.slots) == (64, 3, 3)
    model = tiny_model(seed=0, dtype=torch.float64)
    prefilled = {1: 0, 2: 0}
    for one in watcher.seen:
        text = texts[one.slot - 1]
        assert one.position == list(range(one.position[0], one.position[0] + len(one.ids)))
        base = one.slot * 64  # a text of up to 64 positions is one page
        nodes = [node for node, valid in enumerate(one.valid) if valid]
        assert [one.address[node] for node in nodes] == [base + one.position[n] for n in nodes]
        assert all(address < 64 for address in set(one.address) - {one.address[n] for n in nodes})
        first = one.position[0]
        if one.verdict is None:
            assert all(one.valid)
            assert one.ids == text[first : first + len(one.ids)]
            assert first == prefilled[one.slot]
            assert len(one.ids) <= 4
            prefilled[one.slot] += len(one.ids)
        else:
            tokens, path, n = one.verdict
            assert path == list(range(len(tokens)))
            assert len(tokens) == len(one.ids) == 4
            assert one.ids[0] == text[first], "the root is the last committed token"
            assert n >= 1
            # Rows are those after the commit, and the path's nodes hold the accepted tokens.
            assert first == one.length - n - 1
            assert tokens[:n] == text[first + 1 : first + 1 + n]
            assert [one.ids[node] for node in path[1:n]] == tokens[: n - 1]
            nodes = nodes[:n]
        ids = torch.tensor([text[:first] + [one.ids[node] for node in nodes]])
        with torch.inference_mode():
            states = model(ids, output_hidden_states=True).hidden_states
        for layer, feature in zip((0, 1), one.features, strict=True):
            expected = states[layer][0, first:]
            torch.testing.assert_close(feature[: len(nodes)], expected, atol=2e-6, rtol=2e-6)
    assert prefilled == {1: 9, 2: 2}
    assert sorted(watcher.calls) == [("admit", 1), ("admit", 2), ("release", 1), ("release", 2)]


def test_parts_of_a_mix_see_their_own_layers(opened: Callable[..., Engine]) -> None:
    class Last(Watcher):
        needs = Needs(features=(2,), catch_up="observe")

    first, last = Watcher(), Last()
    engine = opened(drafter=MixDrafter((first, last)), k=2)
    alone = Watcher()
    other = opened(drafter=alone, k=2)
    assert engine._loop.machine.drafter.needs.features == (0, 1, 2)
    for each in (engine, other):
        each.generate([prompt(1)], PARAMS)
    torch.testing.assert_close(first.seen[0].features, alone.seen[0].features)
    assert len(last.seen[0].features) == 1


def test_no_features_where_none_are_declared(opened: Callable[..., Engine]) -> None:
    class Blind(Watcher):
        needs = Needs(catch_up="observe")

    opened(drafter=Blind(), k=2).generate([prompt(1)], PARAMS)


def test_most_0_is_plain_decoding(opened: Callable[..., Engine]) -> None:
    """It is never asked, and not shown verified windows; the text is what it was."""

    class Silent(Watcher):
        needs = Needs(most=0)

        def propose(self, rows: Rows, k: int, draw: Draw) -> Draft:
            raise AssertionError("nothing was to be proposed")

    silent = Silent()
    (one,) = opened(drafter=silent, k=5).generate([prompt(1)], PARAMS)
    assert one.stats.rounds == one.stats.emitted == 20
    assert all(seen.verdict is None for seen in silent.seen)
    (plain,) = opened(k=0).generate([prompt(1)], PARAMS)
    assert one.token_ids == plain.token_ids


def test_who_must_observe_is_shown_plain_rounds_too(opened: Callable[..., Engine]) -> None:
    class Keen(Watcher):
        needs = Needs(catch_up="observe")

    keen = Keen()
    (one,) = opened(drafter=keen, k=5).generate([prompt(1)], PARAMS, k=0)
    assert sum(seen.verdict is not None for seen in keen.seen) == one.stats.rounds == 20


def test_most_bounds_the_window(opened: Callable[..., Engine]) -> None:
    class Modest(Watcher):
        needs = Needs(features=(0, 1), most=2, catch_up="observe")

    modest = Modest()
    opened(drafter=modest, k=8).generate([prompt(1)], PARAMS)
    assert {len(one.ids) for one in modest.seen if one.verdict} == {3}


class Demanding(RandomDrafter):
    """Needs whatever a test says."""

    name: ClassVar[str] = "demanding"

    def __init__(self, **needs: Any) -> None:
        super().__init__(0)
        self.needs = Needs(**needs)


@pytest.mark.parametrize(
    ("needs", "message"),
    [
        ({"features": (-1,), "catch_up": "observe"}, "'demanding' .*layer -1; .* 0 to 2"),
        ({"features": (1,)}, 'catch_up="none", so nobody would show it any'),
        ({"features": (1,), "catch_up": "tokens"}, 'declare .*catch_up="observe"'),
    ],
)
def test_needs_that_are_refused(needs: dict[str, Any], message: str, pair: Pair) -> None:
    with pytest.raises(ConfigError, match=message):
        Engine(pair.target, drafter=Demanding(**needs), dtype="float32", threads=1)


def test_a_drafter_of_the_host_is_not_recorded(opened: Callable[..., Engine]) -> None:
    """It works where rounds run at once, and is refused where they would be recorded."""
    demanding = Demanding(host=True)
    engine = opened(drafter=demanding, k=2)
    engine.generate([prompt(1)], PARAMS)
    target = engine._loop.machine.target
    check_needs(demanding, target, recorded=False)
    with pytest.raises(ConfigError, match=r"'demanding' computes on the host.*capture=False"):
        check_needs(demanding, target, recorded=True)
    mixed = MixDrafter((NgramDrafter(), demanding))
    with pytest.raises(ConfigError, match=r"'mix' computes on the host"):
        check_needs(mixed, target, recorded=True)


@pytest.mark.parametrize("catch_up", ["none", "observe"])
def test_a_failed_recording_names_the_drafter(catch_up: str, opened: Callable[..., Engine]) -> None:
    class Reading(Demanding):
        def propose(self, rows: Rows, k: int, draw: Draw) -> Draft:
            raise RuntimeError("operation not permitted when stream is capturing")

        def observe(self, *seen: object) -> None:
            raise RuntimeError("operation not permitted when stream is capturing")

    machine = opened(drafter=Reading(catch_up=catch_up), k=2, slots=1)._loop.machine
    message = r"'demanding' cannot be recorded .RuntimeError: operation not .*capture=False"
    with pytest.raises(ConfigError, match=message):
        CapturedRounds(machine, (0, 2))
    if catch_up == "observe":
        with pytest.raises(ConfigError, match=message):
            CapturedReadings(machine)


def test_what_is_lent_of_the_target(opened: Callable[..., Engine]) -> None:
    """The head, with its norm, makes of the last layer's features the target's own logits."""

    class Borrower(Demanding):
        def bind(self, target: Any, limits: Limits) -> None:
            self.target, self.needs = target, Needs((target.layers,), catch_up="observe")
            super().bind(target, limits)

        def observe(
            self, window: Window, out: TargetOut | None, verdict: Verdict | None, rows: Rows
        ) -> None:
            assert out is not None
            (feature,) = out.features
            assert feature.dtype is self.target.dtype is torch.float64
            if verdict is not None:
                logits = self.target.head(feature.flatten(0, 1))
                torch.testing.assert_close(logits, out.logits.flatten(0, 1))

    borrower = Borrower()
    opened(drafter=borrower, k=2).generate([prompt(1)], PARAMS)
    assert borrower.target.layers == 2


class Refusing(RandomDrafter):
    """Will not serve prompts that begin with 7."""

    def admit(self, slot: int, request: Request) -> None:
        if request.prompt[0] == 7:
            raise RequestError("not this one: begin with another token")


def test_a_refusal_is_the_requests_own(opened: Callable[..., Engine]) -> None:
    engine = opened(drafter=Refusing(), k=2, slots=2)
    good = Case(prompt(1), PARAMS)
    stream = engine.stream(good.prompt, good.params)
    with pytest.raises(RequestError, match="not this one"):
        engine.generate([[7, 8, 9]], PARAMS)
    tokens = tuple(token for event in stream for token in event.token_ids)
    (expected,) = together(opened(k=0), [good])
    assert tokens == expected.token_ids


# --- by name ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FakeEntry:
    """What `importlib.metadata` gives for an installed package's entry point."""

    name: str
    made: type[Drafter]

    def load(self) -> type[Drafter]:
        return self.made


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a package had registered `watcher` under paceline.drafters."""
    real = importlib.metadata.entry_points

    def entry_points(**wanted: Any) -> Any:
        if wanted == {"group": "paceline.drafters"}:
            return (FakeEntry("watcher", Watcher),)
        return real(**wanted)

    monkeypatch.setattr("paceline.drafters.entry_points", entry_points)


@pytest.mark.usefixtures("installed")
def test_an_entry_point_is_a_drafter(opened: Callable[..., Engine]) -> None:
    assert "watcher" in names()
    case = Case(prompt(1), PARAMS)
    (expected,) = together(opened(k=0), [case])
    for spec in ("watcher", "watcher:seed=3", "ngram+watcher"):
        engine = opened(drafter=spec, k=3)
        same(together(engine, [case])[0], expected)
    sources = {
        source
        for event in opened(drafter="ngram+watcher", k=3).stream(case.prompt, case.params)
        for source in event.sources
    }
    assert sources <= {"ngram", "watcher", "target"}
    with pytest.raises(ConfigError, match="no option 'sed'; did you mean 'seed'"):
        create("watcher:sed=1")
    with pytest.raises(ConfigError, match="did you mean 'watcher'"):
        create("watchr")


def test_without_the_package_it_is_unknown() -> None:
    with pytest.raises(ConfigError, match="unknown drafter 'watcher'"):
        create("watcher")
    assert "ngram" in names()
    assert isinstance(create("ngram"), NgramDrafter)
    assert issubclass(paceline.Drafter, Drafter)

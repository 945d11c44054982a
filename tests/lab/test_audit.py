"""The audit on a tiny pair: it passes a sound engine and fails a broken one."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers import tiny_checkpoint, tiny_model, tiny_tokenizer

from paceline import CheckpointError, Engine, SamplingParams
from paceline.lab.audit import (
    AuditOptions,
    Pair,
    audit,
    audit_enumeration,
    audit_identity,
    audit_laws,
    audit_mutations,
)
from paceline.lab.audit_clients import TrafficOptions
from paceline.lab.audit_identity import IdentityOptions, top_two_margin
from paceline.lab.audit_laws import LawOptions, bin_of, expected_bins, places, recurrences
from paceline.lab.audit_mutations import BLOCK, MUTANTS, REJECT
from paceline.lab.audit_pair import Job, asserted, teacher_forced, write
from paceline.speculation.verify import RULES
from paceline.types import RuleName

PROMPTS = (tuple(b"def add(a"), tuple(b"import os"), tuple(b"x = 1"))
WARM = SamplingParams(temperature=1.0)
SMALL = LawOptions(settings=(WARM,), samples=250, texts=16, text_tokens=60, k=3)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("pair")
    target = tiny_checkpoint(folder / "target", seed=0)
    return Pair(str(target), str(near(folder / "draft")), max_length=192, threads=1)


def near(folder: Path) -> Path:
    """A draft that knows the target: its weights, shaken. Half of what it proposes is accepted."""
    model = tiny_model(seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.03 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    return tiny_tokenizer(folder)


def test_enumeration_and_mutations_pass() -> None:
    seen: list[tuple[str, int, int]] = []
    report = audit_enumeration(1, lambda *step: seen.append(step))
    assert report.passed
    assert report.worst == 0
    assert report.cells > 1000
    assert seen[-1][1] == seen[-1][2] == len(report.results) == 36
    mutations = audit_mutations()
    assert mutations.passed
    assert len(mutations.results) == len(MUTANTS)


@pytest.mark.slow
def test_laws_of_a_sound_engine_pass(pair: Pair) -> None:
    steps: list[tuple[str, int, int]] = []
    report = audit_laws(pair, PROMPTS, SMALL, lambda *step: steps.append(step))
    assert report.passed, [t for t in report.tests if not t.passed]
    assert steps[-1][1] == steps[-1][2] == len(report.tests) == 18
    for test in report.tests:
        assert test.adjusted >= test.test.p_value
        assert test.test.least_total_variation < 0.35
    assert all(rate is not None and rate > 0 for rate in report.acceptance_rate.values())


@pytest.mark.parametrize(
    ("rule", "name"),
    [
        ("match", "match, off by one"),
        ("match", "match, same numbers every round"),
        ("reject", "reject, residual is |p - q|"),
        ("reject", "reject, p and q swapped"),
        ("block", "block, token-wise acceptance"),
    ],
)
def test_laws_of_a_broken_engine_fail(
    pair: Pair, rule: RuleName, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RULES, rule, MUTANTS[name])
    # A low temperature puts the law's mass on few tokens, each with a bin of its own.
    cool = SamplingParams(temperature=0.6)
    options = LawOptions(settings=(cool,), rules=(rule,), samples=300, texts=24, k=3)
    assert not audit_laws(pair, PROMPTS, options).passed


@pytest.mark.slow
def test_identity_of_a_sound_engine(pair: Pair) -> None:
    options = IdentityOptions(dtypes=("float64", "bfloat16"), ks=(0, 1, 4, 8), tokens=16)
    report = audit_identity(pair, PROMPTS, options)
    assert report.passed
    asserted, counted = report.results
    assert asserted.asserted
    assert not asserted.divergences
    assert asserted.texts == (1 + 7 * 4) * len(PROMPTS) * len(options.settings)
    assert set(asserted.drafters) >= {"none", "random", "ngram", "predicted", "replay", "model"}
    assert not counted.asserted
    assert counted.rate == len(counted.divergences) / counted.texts


def test_identity_finds_what_depends_on_the_draft(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RULES, "match", MUTANTS["match, off by one"])
    options = IdentityOptions(dtypes=("float64",), ks=(0, 3), tokens=12)
    report = audit_identity(pair, PROMPTS, options)
    assert not report.passed
    for found in report.results[0].divergences:
        assert found.k == 3
        assert found.plain_token != found.speculative_token
        assert found.margin >= 0


def test_identity_shows_other_rules_keep_the_law_not_the_text(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reject and block under identity differ when drawing and not when greedy."""
    options = IdentityOptions(dtypes=("float64",), ks=(0, 3), tokens=12)
    for rule in (REJECT, BLOCK):
        monkeypatch.setitem(RULES, "match", rule)
        found = audit_identity(pair, PROMPTS, options).results[0].divergences
        assert found
        assert all(d.setting != "greedy" for d in found)


def test_margin_is_that_of_the_draw(pair: Pair) -> None:
    params = SamplingParams(temperature=0.7, seed=5, repetition_penalty=1.3)
    with pair.open("none", dtype="float64", k=0) as engine:
        (text,) = write(engine, [Job(PROMPTS[0], params, 12)])
        for n in range(12):
            assert top_two_margin(engine, PROMPTS[0], tuple(text[:n]), params) > 0
        greedy = SamplingParams()
        margin = top_two_margin(engine, PROMPTS[0], (), greedy)
        best = engine.score(PROMPTS[0])[..., -1, :].flatten().topk(2).values
        assert margin == pytest.approx(float(best[0] - best[1]))


def test_teacher_forced_scores_are_the_engines(pair: Pair) -> None:
    """Greedy text is the argmax of the teacher-forced scores, penalties included."""
    params = SamplingParams(repetition_penalty=1.5, frequency_penalty=0.5, presence_penalty=0.1)
    with pair.open("none", dtype="float64", k=0) as engine:
        (text,) = write(engine, [Job(PROMPTS[1], params, 20)])
        scores = teacher_forced(engine, PROMPTS[1], text, params)
        assert scores[:-1].argmax(-1).tolist() == text


def test_bins_hold_every_text_once(pair: Pair) -> None:
    with pair.open("none", k=0) as engine:
        bins = expected_bins(engine, PROMPTS[0], SamplingParams(temperature=0.4), 3, 5000)
    assert sum(bins.values()) == pytest.approx(1.0)
    assert any(len(name) == 3 and name[-1] >= 0 for name in bins)
    for name in bins:
        text = tuple(258 if token < 0 else token for token in name)
        assert bin_of((*text, 258, 258)[:3], bins)[: len(name) - 1] == name[:-1]


def test_places_and_recurrences() -> None:
    assert recurrences((1, 2, 1, 3, 1, 2), [0.1, 0.2, 0.3, 0.7, 0.4, 0.1]) == pytest.approx(
        [0.5, 0.4]
    )

    class Uniform:
        """An engine whose law is the same four tokens everywhere."""

        def score(self, tokens: list[int]) -> torch.Tensor:
            return torch.tensor([0.4, 0.1, 0.3, 0.2]).log().expand(1, len(tokens), 4)

    class Half:
        def random(self) -> float:
            return 0.5

    u = places(Uniform(), (0,), (0, 1, 2, 3), WARM, Half())  # type: ignore[arg-type]
    assert u == pytest.approx([0.2, 0.95, 0.55, 0.8])


def test_whole_audit(pair: Pair) -> None:
    options = AuditOptions(
        seeds=1,
        laws=LawOptions(settings=(WARM,), rules=("match",), samples=100, texts=8, text_tokens=30),
        identity=IdentityOptions(dtypes=("float64",), ks=(0, 2), tokens=8),
        traffic=TrafficOptions(requests=12, longest=12, dtypes=("float64",)),
    )
    report = audit(pair, PROMPTS, options)
    assert report.passed
    assert report.laws is not None
    assert report.laws.passed
    assert report.traffic is not None
    assert report.traffic.passed
    assert report.enumeration.passed


BRIEF = AuditOptions(
    seeds=1,
    laws=LawOptions(settings=(WARM,), rules=("match",), samples=60, texts=4, text_tokens=30),
    identity=IdentityOptions(
        settings=IdentityOptions().settings[:1], dtypes=("float64", "float32"), ks=(0, 2), tokens=8
    ),
    traffic=TrafficOptions(requests=8, longest=12),
)


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts that need no pair, which have tests of their own, are short."""
    monkeypatch.setattr("paceline.lab.audit.SIZES", ((2, 1, 5),))
    monkeypatch.setattr("paceline.lab.audit.MUTANTS", {})


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, brief: None) -> Callable[..., None]:
    """Makes the device too small for some dtypes, and for two engines at once."""

    def shrink(*dtypes: str) -> None:
        real, opened = Pair.open, weakref.WeakSet[Engine]()

        def open_if_it_fits(self: Pair, drafter: Any, **options: Any) -> Engine:
            if options.get("dtype", "float32") in dtypes:
                raise CheckpointError("it does not fit: use dtype bfloat16 or another device")
            gc.collect()  # as an engine does before it looks at what is free
            assert not opened, "one engine at a time, as one is what fits"
            engine = real(self, drafter, **options)
            opened.add(engine)
            return engine

        monkeypatch.setattr(Pair, "open", open_if_it_fits)

    return shrink


def test_dtypes_that_do_not_fit_are_left_out(pair: Pair, small: Callable[..., None]) -> None:
    small("float64", "float32")
    options = replace(BRIEF, identity=replace(BRIEF.identity, dtypes=("float64", "bfloat16")))
    report = audit(pair, PROMPTS, options)
    assert report.passed
    assert not report.incomplete
    assert [one.split(":")[0] for one in report.left_out] == ["float32", "float64"]
    assert report.identity is not None
    assert [result.dtype for result in report.identity.results] == ["bfloat16"]
    assert report.traffic is not None
    assert [result.dtype for result in report.traffic.results] == ["bfloat16"]
    assert report.laws is not None


def test_a_dtype_that_was_asked_for_is_not_left_out(pair: Pair, small: Callable[..., None]) -> None:
    """What ended before is in the report, and the audit has not passed."""
    small("float64")
    report = audit(pair, PROMPTS, BRIEF.asking(("float32", "float64"), ()))
    assert not report.passed
    assert not report.left_out
    assert report.laws is not None
    assert report.laws.passed
    assert {name: why[:25] for name, why in report.incomplete.items()} == {
        "identity": "float64: it does not fit:",
        "traffic": "float64: it does not fit:",
    }
    assert report.identity is not None
    assert [result.dtype for result in report.identity.results] == ["float32"]


def test_a_part_without_any_dtype_is_incomplete(pair: Pair, small: Callable[..., None]) -> None:
    small("float64", "float32", "bfloat16")
    report = audit(pair, PROMPTS, BRIEF)
    assert (report.laws, report.identity, report.traffic) == (None, None, None)
    assert report.enumeration.passed
    assert report.incomplete.keys() == {"laws", "identity", "traffic"}
    assert not report.passed


@pytest.mark.usefixtures("brief")
def test_drafters_that_were_asked_for(pair: Pair) -> None:
    name = "paceline.drafters.ngram.NgramDrafter:min=3"
    report = audit(pair, PROMPTS, BRIEF.asking(("float64",), (name,)))
    assert report.passed, report.incomplete
    assert report.laws is not None
    assert {test.drafter for test in report.laws.tests} == {"model", "ngram:min=1", name}
    assert report.identity is not None
    assert name in report.identity.results[0].drafters
    assert BRIEF.asking((), (name,)).traffic.drafter == name


def test_where_texts_must_be_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paceline.lab.audit_pair.find_spec", lambda name: object())
    assert [asserted(dtype, "cpu") for dtype in ("float64", "bfloat16")] == [True, False]
    assert asserted("bfloat16", "cuda:0")
    monkeypatch.setattr("paceline.lab.audit_pair.find_spec", lambda name: None)
    assert not asserted("bfloat16", "cuda"), "without kernels torch picks the order"

"""Statistics on the user's pair: do the texts follow the target's own law?

Three one-sample G-tests a case, against the target's teacher-forced probabilities, on texts
written with speculation and with seeds of their own. *Next tokens*: the joint law of the first
few tokens after one prompt, over many seeds. *Along texts*: every token of long texts is turned
into its place u in [0, 1) in the target's law (most probable first; Rosenblatt 1952), which makes
all of them independent and uniform; the joint law of three in a row is tested. *Recurrences*: so
is the difference between places after the same token, which tells a text that copies itself.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from paceline import Engine, SamplingParams
from paceline.lab.audit_pair import Job, Pair, label, next_probabilities, write
from paceline.lab.audit_statistics import (
    ALPHA,
    LEAST_EXPECTED,
    POWER,
    GTest,
    g_test_of,
    holm,
    least_total_variation,
)
from paceline.types import RuleName

Text = tuple[int, ...]
Progress = Callable[[str, int, int], None]  # what, done, of how many
OTHER = -1  # stands for every continuation without a bin of its own

SETTINGS = (
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=0.6),
    SamplingParams(temperature=1.0, top_k=8),
    SamplingParams(temperature=1.0, top_p=0.9),
    SamplingParams(temperature=1.3, min_p=0.05),
    SamplingParams(temperature=0.9, repetition_penalty=1.2, frequency_penalty=0.4),
)
RULES: tuple[RuleName, ...] = ("match", "reject", "block")


@dataclass(frozen=True, slots=True)
class LawOptions:
    """samples: seeds of a next-tokens test, of `tokens` tokens each; texts: written for an
    along-texts test, of `text_tokens` tokens each; alpha: for all tests together; drafters: names
    of more of them, tested at the first setting."""

    settings: tuple[SamplingParams, ...] = SETTINGS
    rules: tuple[RuleName, ...] = RULES
    samples: int = 300
    tokens: int = 3
    texts: int = 32
    text_tokens: int = 72
    k: int = 5
    dtype: str = "float32"
    alpha: float = ALPHA
    power: float = POWER
    seed: int = 1
    drafters: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LawTest:
    """One test. adjusted: the p-value for all tests together (Holm)."""

    kind: str
    rule: RuleName
    drafter: str
    setting: str
    test: GTest
    adjusted: float
    passed: bool


@dataclass(frozen=True, slots=True)
class LawReport:
    """All tests; `acceptance_rate` by rule shows that speculation was at work."""

    tests: tuple[LawTest, ...]
    acceptance_rate: dict[str, float | None]
    alpha: float
    power: float
    passed: bool


def audit_laws(
    pair: Pair,
    prompts: Sequence[Text],
    options: LawOptions | None = None,
    progress: Progress = lambda what, done, total: None,
) -> LawReport:
    """Run the tests: every rule and setting with the pair's own drafter, and the first setting
    with n-grams too, whose proposals have no choice in them. Raises what `Engine` raises."""
    options = options or LawOptions()
    main = "model" if pair.draft is not None else "ngram:min=1"
    cases = [(rule, main, options.settings) for rule in options.rules]
    if main == "model":
        cases += [(rule, "ngram:min=1", options.settings[:1]) for rule in options.rules]
    for name in options.drafters:
        cases += [(rule, name, options.settings[:1]) for rule in options.rules]
    total = 3 * sum(len(settings) for _, _, settings in cases)
    found: list[tuple[str, RuleName, str, str, GTest]] = []
    rates: dict[str, float | None] = {}
    for rule, drafter, settings in cases:
        with pair.open(drafter, rule=rule, dtype=options.dtype, k=options.k, slots=16) as engine:
            # An n-gram has something to propose at once where the prompt repeats itself.
            own = prompts if drafter == main == "model" else [(*p, *p) for p in prompts]
            for number, params in enumerate(settings):
                prompt = own[number % len(own)]
                for kind, test in _tests(engine, prompt, own, params, options):
                    found.append((kind, rule, drafter, label(params), test))
                    progress(f"{rule}, {drafter}: {kind} at {label(params)}", len(found), total)
            rates[f"{rule}, {drafter}"] = engine.stats().acceptance_rate
        del engine  # or its weights stay where the next one's have to go
    return _report(found, rates, options)


def _report(
    found: list[tuple[str, RuleName, str, str, GTest]],
    rates: dict[str, float | None],
    options: LawOptions,
) -> LawReport:
    """Correct for the number of tests; the stated power is that of the strictest comparison."""
    adjusted = holm([test.p_value for *_, test in found])
    tests = []
    for (kind, rule, drafter, setting, test), p in zip(found, adjusted, strict=True):
        least = least_total_variation(
            test.samples, test.bins, options.alpha / len(found), options.power
        )
        stated = replace(test, least_total_variation=least)
        tests.append(LawTest(kind, rule, drafter, setting, stated, p, p >= options.alpha))
    passed = bool(tests) and all(t.passed for t in tests)
    return LawReport(tuple(tests), rates, options.alpha, options.power, passed)


def _tests(
    engine: Engine,
    prompt: Text,
    prompts: Sequence[Text],
    params: SamplingParams,
    options: LawOptions,
) -> Iterator[tuple[str, GTest]]:
    yield "next tokens", next_tokens_test(engine, prompt, params, options)
    consecutive, repeated = along_texts_tests(engine, prompts, params, options)
    yield "along texts", consecutive
    yield "recurrences", repeated


# --- the joint law of the next tokens ----------------------------------------------------------


def next_tokens_test(
    engine: Engine, prompt: Text, params: SamplingParams, options: LawOptions
) -> GTest:
    """Write the first tokens after `prompt` with many seeds and test their joint law."""
    first = options.seed * 1_000_003
    jobs = [
        Job(prompt, replace(params, seed=first + i), options.tokens) for i in range(options.samples)
    ]
    texts = Counter(tuple(tokens) for tokens in write(engine, jobs))
    bins = expected_bins(engine, prompt, params, options.tokens, options.samples)
    observed: Counter[Text] = Counter()
    for text, count in texts.items():
        observed[bin_of(text, bins)] += count
    return g_test_of(observed, bins, options.alpha)


def expected_bins(
    engine: Engine, prompt: Text, params: SamplingParams, length: int, samples: int
) -> dict[Text, float]:
    """Return bins and probabilities: texts of `length` tokens, and (*beginning, OTHER).

    A beginning is followed as long as its continuations can be expected five times; what is left
    of it is one bin.
    """
    bins: dict[Text, float] = {}
    waiting: list[tuple[Text, float]] = [((), 1.0)]
    while waiting:
        text, weight = waiting.pop()
        p = next_probabilities(engine, prompt, text, params)[-1] * weight
        likely = (p * samples >= LEAST_EXPECTED).nonzero().flatten().tolist()
        for token in likely:
            longer, mass = (*text, token), float(p[token])
            if len(longer) == length:
                bins[longer] = mass
            else:
                waiting.append((longer, mass))
        p[likely] = 0.0
        bins[(*text, OTHER)] = float(p.sum())
    return bins


def bin_of(text: Text, bins: dict[Text, float]) -> Text:
    """Return the bin that a text falls into."""
    if text in bins:
        return text
    for n in range(len(text), 0, -1):
        name = (*text[: n - 1], OTHER)
        if name in bins:
            return name
    raise AssertionError("the empty beginning always has a bin")


# --- the law along whole texts -----------------------------------------------------------------


def along_texts_tests(
    engine: Engine, prompts: Sequence[Text], params: SamplingParams, options: LawOptions
) -> tuple[GTest, GTest]:
    """Write long texts; test consecutive places and recurrences."""
    first = options.seed * 2_000_003
    jobs = [
        Job(prompts[i % len(prompts)], replace(params, seed=first + i), options.text_tokens)
        for i in range(options.texts)
    ]
    rng = random.Random(options.seed)
    # Few triples get coarse cells rather than one pooled bin that tests nothing.
    side = 4 if options.texts * (options.text_tokens // 3) >= 10 * 4**3 else 2
    triples: Counter[Text] = Counter()
    repeats: Counter[int] = Counter()
    for job, tokens in zip(jobs, write(engine, jobs), strict=True):
        text = tuple(tokens)
        u = places(engine, job.prompt, text, params, rng)
        cells = [int(side * x) if x >= 0 else OTHER for x in u]
        triples.update(tuple(cells[i : i + 3]) for i in range(0, len(cells) - 2, 3))
        repeats.update(int(12 * x) if x >= 0 else OTHER for x in recurrences(text, u))
    uniform: dict[Text, float] = dict.fromkeys(itertools.product(range(side), repeat=3), side**-3)
    circle = dict.fromkeys(range(12), 1 / 12)
    return g_test_of(triples, uniform, options.alpha), g_test_of(repeats, circle, options.alpha)


def places(
    engine: Engine, prompt: Text, text: Text, params: SamplingParams, rng: random.Random
) -> list[float]:
    """Return each token's place u: the mass before it, plus a random share of its own.

    More probable tokens come first, lower ids first among equals. −1 for a token that the law
    does not allow.
    """
    p = next_probabilities(engine, prompt, text[:-1], params)  # [n, V]
    tokens = torch.tensor(text).unsqueeze(1)
    own = p.gather(1, tokens)
    ids = torch.arange(p.shape[1])
    before = (p > own) | ((p == own) & (ids < tokens))
    start = (p * before).sum(1).tolist()
    share = own.squeeze(1).tolist()
    return [
        min(a + rng.random() * w, 1 - 1e-9) if w > 0 else -1.0
        for a, w in zip(start, share, strict=True)
    ]


def recurrences(text: Text, u: Sequence[float]) -> list[float]:
    """Return (u at t − u at s) mod 1 for every t whose previous token stood before s last time.

    u at t is uniform given all before it, so this is uniform too, whatever s. A text that copies
    itself more often than it should, as a wrongly accepted n-gram makes it, is near 0 too often.
    """
    last: dict[int, int] = {}
    found = []
    for t in range(1, len(text)):
        s = last.get(text[t - 1])
        if s is not None:
            allowed = u[t] >= 0 and u[s] >= 0
            found.append((u[t] - u[s]) % 1.0 if allowed else -1.0)
        last[text[t - 1]] = t
    return found

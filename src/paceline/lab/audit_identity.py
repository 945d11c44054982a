"""Identity on the user's pair: under `match` the text is the same with any drafter and any K.

In float64 it must be, and on a GPU, whose kernels sum in one order. On a CPU in float32 and
bfloat16 a window of several tokens may be computed in another order than a single one, and a draw
that was almost a tie may fall the other way; every such place is found and shown with the margin by
which the winner won.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from paceline import Drafter, Engine, SamplingParams
from paceline.lab.audit_pair import (
    Job,
    Pair,
    RandomDrafter,
    asserted,
    label,
    teacher_forced,
    write,
)
from paceline.speculation.verify import RULES

Text = tuple[int, ...]
Progress = Callable[[str, int, int], None]

SETTINGS = (
    SamplingParams(),
    SamplingParams(temperature=1.0, seed=11),
    SamplingParams(
        temperature=0.8, top_p=0.95, repetition_penalty=1.1, presence_penalty=0.2, seed=12
    ),
)


@dataclass(frozen=True, slots=True)
class IdentityOptions:
    """dtypes: asserted or counted, see `audit_pair.asserted`. ks: draft lengths; tokens: of each
    text; slots: texts at once, against plain ones written alone; drafters: names of more of
    them."""

    settings: tuple[SamplingParams, ...] = SETTINGS
    dtypes: tuple[str, ...] = ("float64", "float32", "bfloat16")
    ks: tuple[int, ...] = tuple(range(9))
    tokens: int = 24
    error: float = 0.3
    slots: int = 8
    drafters: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Divergence:
    """Where a text first differs. index: among the text's tokens; margin: the best score less
    the second best there, noise included, in nats."""

    drafter: str
    k: int
    setting: str
    prompt: int
    index: int
    plain_token: int
    speculative_token: int
    margin: float


@dataclass(frozen=True, slots=True)
class IdentityResult:
    """One dtype. rate: the share of texts that differ; asserted: none may."""

    dtype: str
    asserted: bool
    texts: int
    tokens: int
    drafters: tuple[str, ...]
    divergences: tuple[Divergence, ...]
    rate: float
    passed: bool


@dataclass(frozen=True, slots=True)
class IdentityReport:
    """All dtypes."""

    results: tuple[IdentityResult, ...]
    passed: bool


@dataclass(frozen=True, slots=True)
class _Case:
    """A drafter to try: how to open it, and what prediction its requests carry."""

    name: str
    spec: str | Drafter
    prediction: str = ""  # "right", "wrong" or none

    def ks(self, every: tuple[int, ...]) -> tuple[int, ...]:
        """The draft lengths to try; without a drafter all are the same."""
        return every[:1] if self.name == "none" else every


def audit_identity(
    pair: Pair,
    prompts: Sequence[Text],
    options: IdentityOptions | None = None,
    progress: Progress = lambda what, done, total: None,
) -> IdentityReport:
    """Compare texts with plain decoding: every drafter, K, setting and prompt, in each dtype.

    The plain texts are written one at a time, the others several at once, so that a text must not
    depend on its neighbours either.
    """
    options = options or IdentityOptions()
    ways = sum(len(case.ks(options.ks)) for case in _cases(pair, options, ""))
    total = len(options.dtypes) * ways
    results: list[IdentityResult] = []
    done = 0

    def step(what: str) -> None:
        nonlocal done
        done += 1
        progress(what, done, total)

    for dtype in options.dtypes:
        results.append(_one_dtype(pair, prompts, dtype, options, step))
    return IdentityReport(tuple(results), all(r.passed for r in results))


def _cases(pair: Pair, options: IdentityOptions, answers: str) -> Iterator[_Case]:
    yield _Case("none", "none")
    yield _Case("random", RandomDrafter())
    yield _Case("ngram", "ngram:min=1")
    yield _Case("predicted", "predicted", "right")
    yield _Case("predicted, wrong text", "predicted", "wrong")
    yield _Case("replay", f"replay:path={answers},error={options.error}")
    if pair.draft is not None:
        yield _Case("model", "model")
        yield _Case("ngram+model", "ngram:min=1+model")
    for name in options.drafters:
        yield _Case(name, name)


def _one_dtype(
    pair: Pair,
    prompts: Sequence[Text],
    dtype: str,
    options: IdentityOptions,
    step: Callable[[str], None],
) -> IdentityResult:
    plain_jobs = [
        Job(prompt, params, options.tokens, k=0)
        for prompt in prompts
        for params in options.settings
    ]
    cases: list[_Case] = []
    differ: list[tuple[_Case, int, int, Text]] = []  # case, K, number of the job, text
    compared, most = 0, max(options.ks)
    # One engine at a time: a model may be half as large as the device.
    with pair.open("none", dtype=dtype, k=most, slots=1) as judge:
        plain = [tuple(tokens) for tokens in write(judge, plain_jobs)]
    del judge  # or its weights stay where the next one's have to go
    with tempfile.TemporaryDirectory() as folder:
        answers = _answers_file(Path(folder), plain_jobs, plain)
        for case in _cases(pair, options, answers):
            cases.append(case)
            with pair.open(case.spec, dtype=dtype, k=most, slots=options.slots) as engine:
                for k in case.ks(options.ks):
                    texts = map(tuple, write(engine, _jobs(plain_jobs, plain, case, k)))
                    for number, text in enumerate(texts):
                        compared += 1
                        if text != plain[number]:
                            differ.append((case, k, number, text))
                    step(f"{dtype}, {case.name}, K = {k}")
            del engine
    found = _judged(pair, dtype, plain_jobs, plain, differ, options) if differ else ()
    must = asserted(dtype, pair.device)
    return IdentityResult(
        dtype=dtype,
        asserted=must,
        texts=compared,
        tokens=compared * options.tokens,
        drafters=tuple(case.name for case in cases),
        divergences=found,
        rate=len(found) / compared if compared else 0.0,
        passed=compared > 0 and not (must and found),
    )


def _judged(
    pair: Pair,
    dtype: str,
    jobs: Sequence[Job],
    plain: Sequence[Text],
    differ: Sequence[tuple[_Case, int, int, Text]],
    options: IdentityOptions,
) -> tuple[Divergence, ...]:
    """Where texts that differ first do so, and by how much the plain token won there."""
    found: list[Divergence] = []
    with pair.open("none", dtype=dtype, k=max(options.ks), slots=1) as judge:
        for case, k, number, text in differ:
            where = divergence(judge, jobs[number], plain[number], text)
            assert where is not None
            prompt = number // len(options.settings)
            found.append(replace(where, drafter=case.name, k=k, prompt=prompt))
    return tuple(found)


def _answers_file(folder: Path, jobs: Sequence[Job], plain: Sequence[Text]) -> str:
    """Write the plain texts for the replay drafter; one a prompt, the first."""
    answers = {job.prompt: text for job, text in reversed(list(zip(jobs, plain, strict=True)))}
    lines = [json.dumps({"prompt": p, "answer": a}) for p, a in answers.items()]
    path = folder / "answers.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def _jobs(plain_jobs: Sequence[Job], plain: Sequence[Text], case: _Case, k: int) -> list[Job]:
    """The plain jobs with K = k; predictions are the text itself, or another job's."""
    shift = {"right": 0, "wrong": len(plain) // 2 + 1}.get(case.prediction)
    return [
        replace(
            job, k=k, prediction=None if shift is None else plain[(number + shift) % len(plain)]
        )
        for number, job in enumerate(plain_jobs)
    ]


def divergence(judge: Engine, job: Job, plain: Text, text: Text) -> Divergence | None:
    """Return the first difference and the margin there, or None. Which case it was in is the
    caller's to fill in."""
    if plain == text:
        return None
    same = (a == b for a, b in zip(plain, text, strict=False))
    index = next((i for i, equal in enumerate(same) if not equal), min(len(plain), len(text)))
    a, b = (x[index] if index < len(x) else -1 for x in (plain, text))
    margin = top_two_margin(judge, job.prompt, plain[:index], job.params)
    return Divergence("", 0, label(job.params), 0, index, a, b, margin)


def top_two_margin(engine: Engine, prompt: Text, text: Text, params: SamplingParams) -> float:
    """Return by how much the drawn token won after prompt + text: scores plus the seed's noise."""
    scores = teacher_forced(engine, prompt, text, params, one_hot=False)
    row = scores[-1:].unsqueeze(0)  # [1, 1, V]
    if params.temperature > 0:
        position = torch.tensor([[len(prompt) + len(text)]])
        seed = torch.tensor([params.seed or 0])
        noise = RULES["match"].noise(seed, position[0] - 1, position, row.shape[2], row.dtype, True)
        assert noise.gumbel is not None
        row = row + noise.gumbel
    best = row[0, 0].topk(2).values
    return float(best[0] - best[1])

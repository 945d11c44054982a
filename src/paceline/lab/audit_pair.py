"""The user's pair as the audit sees it: engines to open, texts to write, laws to compare with.

Drives the public engine only; the law of the next token is made from the target's own logits
(`Engine.score`) by the same function that the engine draws from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec

import torch
from torch import Tensor

from paceline import Drafter, Engine, SamplingParams
from paceline.speculation.noise import Stream, keys
from paceline.speculation.sampling import (
    History,
    SamplingTensors,
    distribution,
    probabilities,
)
from paceline.types import Draft, Limits, Rows, RuleName, SamplingFlags


@dataclass(frozen=True, slots=True)
class Pair:
    """What to audit. target, draft: as `Engine` takes them; draft None: drafters without a
    model. max_length, threads, device, capture: as in `EngineConfig`."""

    target: str
    draft: str | None = None
    max_length: int | None = None
    threads: int | None = None
    device: str = "auto"
    capture: bool = True

    def open(
        self,
        drafter: str | Drafter,
        *,
        rule: RuleName = "match",
        dtype: str = "float32",
        k: int = 5,
        slots: int = 8,
        adaptive: bool = False,
        cache_tokens: int | None = None,
        prefix_cache: bool = True,
    ) -> Engine:
        """Open an engine; K is what was asked for, always, unless `adaptive`. Raises ConfigError
        and CheckpointError."""
        return Engine(
            self.target,
            drafter=drafter,
            draft=self.draft,
            rule=rule,
            dtype=dtype,
            k=k,
            slots=slots,
            max_length=self.max_length,
            threads=self.threads,
            device=self.device,
            capture=self.capture,
            seed=0,
            adaptive=adaptive,
            cache_tokens=cache_tokens,
            prefix_cache=prefix_cache,
        )


def asserted(dtype: str, device: str) -> bool:
    """Whether texts must be the same, and not only nearly always are: in float64, where no draw
    nearly ties, and on a GPU, where the kernels fix the order of every sum (docs/numerics.md)."""
    fixed = device.startswith("cuda") and find_spec("triton") is not None
    return dtype == "float64" or fixed


@dataclass(frozen=True, slots=True)
class Job:
    """One text to write: the first `length` tokens after prompt (token ids) under params."""

    prompt: tuple[int, ...]
    params: SamplingParams
    length: int
    k: int | None = None
    prediction: tuple[int, ...] | None = None


def write(engine: Engine, jobs: Sequence[Job], at_once: int = 64) -> Iterator[list[int]]:
    """Yield each job's tokens, in order; `at_once` of them wait in the engine together.

    More tokens are asked for than are kept, so that the draft is not cut at the limit.
    """
    for start in range(0, len(jobs), at_once):
        group = jobs[start : start + at_once]
        streams = [
            engine.stream(
                job.prompt,
                replace(job.params, max_tokens=job.length + engine.config.k, ignore_eos=True),
                prediction=job.prediction,
                k=job.k,
            )
            for job in group
        ]
        for job, stream in zip(group, streams, strict=True):
            tokens: list[int] = []
            for event in stream:
                tokens += event.token_ids
                if len(tokens) >= job.length:
                    break
            yield tokens[: job.length]


def label(params: SamplingParams) -> str:
    """Return the sampling parameters that differ from greedy, for a report."""
    names = {
        "temperature": "T", "top_k": "top-k", "top_p": "top-p", "min_p": "min-p",
        "repetition_penalty": "repetition", "presence_penalty": "presence",
        "frequency_penalty": "frequency",
    }  # fmt: skip
    plain = SamplingParams()
    parts = [
        f"{short}={getattr(params, name):g}"
        for name, short in names.items()
        if getattr(params, name) != getattr(plain, name)
    ]
    return " ".join(parts) or "greedy"


def _tensors(params: SamplingParams, prompt_length: int) -> tuple[SamplingTensors, SamplingFlags]:
    """One row of sampling parameters, in the precision that the engine keeps them."""

    def one(value: float) -> Tensor:
        return torch.tensor([value], dtype=torch.float32)

    bias = params.logit_bias or ((0, 0.0),)
    tensors = SamplingTensors(
        temperature=one(params.temperature),
        top_k=torch.tensor([params.top_k]),
        top_p=one(params.top_p),
        min_p=one(params.min_p),
        repetition=one(params.repetition_penalty),
        presence=one(params.presence_penalty),
        frequency=one(params.frequency_penalty),
        bias_ids=torch.tensor([[token for token, _ in bias]]),
        bias_values=torch.tensor([[value for _, value in bias]]),
        stop_ids=torch.tensor([[-1]]),
        min_position=torch.tensor([prompt_length]),
        processed=torch.tensor([params.processed_logprobs]),
    )
    flags = SamplingFlags(
        draws=params.temperature > 0,
        penalties=params.penalized,
        bias=bool(params.logit_bias),
        truncation=params.truncated,
    )
    return tensors, flags


def teacher_forced(
    engine: Engine,
    prompt: Sequence[int],
    text: Sequence[int],
    params: SamplingParams,
    one_hot: bool = True,
) -> Tensor:
    """Return the target's scores [n + 1, V] after prompt + text[:0], ..., prompt + text[:n].

    one_hot: see `distribution`.
    """
    logits = engine.score([*prompt, *text]).cpu()[..., len(prompt) - 1 :, :]
    logits = logits.reshape(1, len(text) + 1, -1)
    tensors, flags = _tensors(params, len(prompt))
    vocab_size = logits.shape[2]
    history = None
    if flags.penalties:
        seen = torch.zeros(1, vocab_size, dtype=torch.bool)
        seen[0, list(prompt)] = True
        window = torch.tensor([[prompt[-1], *text]])
        history = History(seen, torch.zeros(1, vocab_size, dtype=torch.int64), window)
    position = torch.arange(len(text) + 1).add(len(prompt)).unsqueeze(0)
    return distribution(logits, tensors, flags, position, history, one_hot)[0]


def next_probabilities(
    engine: Engine, prompt: Sequence[int], text: Sequence[int], params: SamplingParams
) -> Tensor:
    """Return softmax of `teacher_forced` in float64: [n + 1, V]."""
    return probabilities(teacher_forced(engine, prompt, text, params).double())


class RandomDrafter(Drafter):
    """Proposes tokens that have nothing to do with the text: the worst drafter there is."""

    name = "random"

    def propose(self, rows: Rows, k: int, draw: object) -> Draft:
        """Return k tokens a row, hashed from slot and position."""
        position = rows.length.unsqueeze(1) + torch.arange(k, device=rows.length.device)
        hashed = keys(rows.index, Stream.PROPOSAL, position)
        tokens = hashed.remainder(self._vocab_size)
        return Draft(tokens, torch.full_like(rows.length, k), torch.zeros_like(rows.length))

    def bind(self, target: object, limits: Limits) -> None:
        """Remember the vocabulary."""
        self._vocab_size: int = limits.vocab_size

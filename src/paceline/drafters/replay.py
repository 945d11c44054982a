"""Replay drafter: a known answer, spoiled at a set rate, for tests and the lab.

Owns the answers and the spoiling. Whether a position is spoiled, and by what, depends on the
seed, the prompt and the position alone, so it is the same in every round and at every K, and
every tested position is accepted with probability 1 - error. Knows nothing of models or rounds.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import ClassVar

import torch

from paceline.drafters.base import Drafter, Draw, TargetInfo
from paceline.errors import ConfigError
from paceline.files import read_text
from paceline.ops.upload import put
from paceline.types import Draft, Limits, MemoryPart, Request, Rows


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """path: a file of answers (see `read_answers`). error: share of positions that are spoiled,
    0 to 1. seed: which ones."""

    path: str = ""
    error: float = 0.0
    seed: int = 0


class ReplayDrafter(Drafter):
    """Proposes the answer that is known for a request's prompt; nothing for another prompt."""

    name: ClassVar[str] = "replay"
    Options: ClassVar[type[ReplayOptions]] = ReplayOptions

    def __init__(
        self,
        options: ReplayOptions | None = None,
        answers: Mapping[tuple[int, ...], Sequence[int]] | None = None,
    ) -> None:
        """answers: prompt token ids to answer token ids, over those of the file. ConfigError."""
        self.options = options or ReplayOptions()
        if not 0.0 <= self.options.error <= 1.0:
            raise ConfigError(f"drafter 'replay': error must be 0 to 1, not {self.options.error}")
        self._answers = read_answers(self.options.path) if self.options.path else {}
        for prompt, answer in (answers or {}).items():
            self._answers[tuple(prompt)] = tuple(answer)
        if not self._answers and answers is None:
            raise ConfigError("drafter 'replay' has no answers: write replay:path=FILE.jsonl")

    def memory(self, limits: Limits) -> tuple[MemoryPart, ...]:
        """The answers."""
        return (MemoryPart("answers", 8 * limits.slots * (limits.max_length + limits.max_k + 2)),)

    def bind(self, target: TargetInfo, limits: Limits) -> None:
        """Allocate the answers, L + K numbers a slot. Raises ConfigError on a bad token id."""
        self._limits = limits
        for answer in self._answers.values():
            for token in answer:
                if not 0 <= token < limits.vocab_size:
                    raise ConfigError(
                        f"drafter 'replay': an answer holds token id {token}, outside the "
                        f"target's vocabulary of {limits.vocab_size}"
                    )
        width = limits.max_length + limits.max_k
        self._text = torch.zeros(limits.slots, width, dtype=torch.int64, device=limits.device)
        # Per slot: prompt length, answer length.
        self._state = torch.zeros(limits.slots, 2, dtype=torch.int64, device=limits.device)
        self._steps = torch.arange(limits.max_k, device=limits.device)

    def admit(self, slot: int, request: Request) -> None:
        """Look the answer up and spoil it, once."""
        answer = self._answers.get(request.prompt, ())[: self._limits.max_length]
        spoiled = spoil(
            answer, request.prompt, self.options.error, self.options.seed, self._limits.vocab_size
        )
        put(self._text[slot], spoiled)
        put(self._state[slot], (len(request.prompt), len(answer)))

    def release(self, slot: int) -> None:
        """Forget the answer."""
        self._state[slot] = 0

    def propose(self, rows: Rows, k: int, draw: Draw) -> Draft:
        """Return up to k tokens a row of the spoiled answer; count 0 after its end."""
        start, size = self._state.index_select(0, rows.index).unbind(1)  # [B] each
        place = (rows.length - start).clamp_(0, self._limits.max_length)
        tokens = self._text[rows.index[:, None], place[:, None] + self._steps[:k]]  # [B, k]
        count = (size - place).clamp_(0, k)
        return Draft(tokens, count, torch.zeros_like(count))


def spoil(
    answer: Sequence[int], prompt: Sequence[int], error: float, seed: int, vocab_size: int
) -> tuple[int, ...]:
    """Replace each token of `answer` by another id with probability `error`.

    Deterministic in seed, prompt and position; a position spoiled at one rate is spoiled at every
    higher one. With a vocabulary of one token nothing can be spoiled.
    """
    digest = blake2b(repr((seed, tuple(prompt))).encode(), digest_size=16).digest()
    source = random.Random(int.from_bytes(digest, "big"))
    spoiled = []
    for token in answer:
        drawn, other = source.random(), source.random()
        if drawn < error and vocab_size > 1:
            token = (token + 1 + int(other * (vocab_size - 1))) % vocab_size
        spoiled.append(token)
    return tuple(spoiled)


def read_answers(path: str) -> dict[tuple[int, ...], tuple[int, ...]]:
    """Read `{"prompt": [ids], "answer": [ids]}` objects: a JSON list, or one a line (JSONL).

    Raises ConfigError where the file is missing or holds something else.
    """
    text = read_text(path, "drafter 'replay' takes a file of answers")
    try:
        if text.lstrip().startswith("["):
            items = json.loads(text)
        else:
            items = [json.loads(line) for line in text.splitlines() if line.strip()]
        return {_ids(item["prompt"]): _ids(item["answer"]) for item in items}
    except (ValueError, KeyError, TypeError):
        raise ConfigError(
            f'drafter \'replay\': {path} must hold {{"prompt": [ids], "answer": [ids]}} objects, '
            "as a JSON list or one a line"
        ) from None


def _ids(value: object) -> tuple[int, ...]:
    """Check that `value` is a list of whole numbers; ValueError."""
    if not isinstance(value, list) or not all(type(item) is int for item in value):
        raise ValueError
    return tuple(value)
